// For the files that hold a part of the tables of flags.h.
#pragma once

#include "cmd/flags/flags.h"

namespace moectl {

std::vector<Flag> engine_flags();        // engine.cpp: model, parallelism, batching, hardware
std::vector<Flag> bench_flags();         // bench.cpp
std::vector<Flag> router_flags();        // router.cpp
std::vector<Flag> server_flags();        // server.cpp
std::vector<Flag> tool_flags();          // tools.cpp
std::vector<Flag> deploy_flags();        // deploy.cpp
std::vector<Command> deploy_commands();  // deploy.cpp

}  // namespace moectl

// Targets: the value that a command reads, and a value that resolve() needs first.
#define VALUE(path)                 \
  Target {                          \
    [](RawOptions & raw) -> auto& { \
      return raw.values.path;       \
    }                               \
  }
#define RAW(path)                   \
  Target {                          \
    [](RawOptions & raw) -> auto& { \
      return raw.path;              \
    }                               \
  }
