// What a command gets: its options as typed values, already merged (flag > environment > file), checked and resolved by
// cmd/flags. Commands never see flag names or strings to parse. Each command is one function, called on the main
// thread; it returns the exit code or throws Error, which main turns into a message and a code. Data goes to stdout,
// diagnostics to stderr.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "core/engine/engine.h"

namespace moectl {

struct CommonOptions {
  bool json = false;                // --json: machine-readable result on stdout
  bool no_color = false;            // --no-color or NO_COLOR
  std::string log_format = "text";  // text | json; main has already called log::init
  std::string log_level = "info";   // debug | info | warn | error
  std::string config_file;          // --config; already merged
};

// How the model is spread over ranks, as given; 0: not given. resolve() checks them against each other and writes
// EngineConfig::ep_size, which is what commands use.
struct ParallelOptions {
  int tp_size = 0, dp_size = 0, ep_size = 0;
};

// The HTTP side of a server.
struct ApiOptions {
  std::string served_model_name;  // resolved: the checkpoint folder's name when not given
  std::string host = "127.0.0.1";
  int port = -1;                          // 0: the system picks one; the ready line tells which. Resolved by command
  int ops_port = -1;                      // operations and admin; -1: off, 0: the system picks one. Always on loopback
  std::vector<std::string> api_keys;      // any of them is accepted; empty: no authentication. Never log or print them
  std::string ssl_certfile, ssl_keyfile;  // both or none
  std::chrono::seconds shutdown_timeout{30};
  std::string reasoning_parser = "auto";  // auto (by checkpoint) | deepseek_r1 | none
  bool skip_tokenizer_init = false;       // prompts and answers as token ids only
};

struct BenchLoad {
  int input_len = 512, output_len = 128;  // tokens a request
  std::vector<int> concurrency = {1, 4, 16};
  int num_requests = 0;  // a concurrency level; 0: twice the level
  uint64_t seed = 0;
};

// A server's part in a cluster of prefill, decode and router.
struct ClusterOptions {
  std::string secret_file;  // empty: no part in one
  int kv_port = 9100;       // serve-prefill; 0: the system picks one
};

struct ServeOptions {
  CommonOptions common;
  EngineConfig engine;  // engine.progress is empty: the command sets it (cmd/progress.h)
  ApiOptions api;
  ClusterOptions cluster;
};

struct InspectOptions {
  CommonOptions common;
  std::string model_dir;
};

struct BenchEngineOptions {
  CommonOptions common;
  EngineConfig engine;
  BenchLoad load;
};

struct DocgenOptions {
  std::string root = ".";  // source tree that holds man/ and completions/
  bool check = false;      // compare, write nothing, fail with the names of files that differ
};

int serve_decode(const ServeOptions& options);        // cmd/serve.cpp
int serve_prefill(const ServeOptions& options);       // cmd/serve.cpp
int inspect(const InspectOptions& options);           // cmd/inspect.cpp
int bench_engine(const BenchEngineOptions& options);  // cmd/bench.cpp
int docgen(const DocgenOptions& options);             // cmd/docgen.cpp

}  // namespace moectl
