// An engine whose ranks compute on devices that execute by themselves (StreamOps), with peers where there are several.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "tests/harness/stream_ops.h"
#include "tests/harness/tampered_engine.h"

namespace moectl::test {

struct StreamedEngine {
  std::vector<StreamOps*> ops;  // by rank; valid as long as the engine
  std::unique_ptr<Engine> engine;
};

struct StreamedEngineOptions {
  std::vector<StreamOps::Hooks> hooks;  // by rank; what is missing: none
  std::chrono::milliseconds peer_timeout = kPeerTimeout, step_timeout = kStepTimeout;
};

inline StreamedEngine streamed_engine(const EngineConfig& flags, StreamedEngineOptions options = {}) {
  EngineParts parts = engine_parts(flags);
  parts.setup.scheduler.max_steps_in_flight = 2;
  options.hooks.resize(parts.ranks.size());
  const bool has_peers = parts.ranks.size() > 1;
  StreamedEngine result;
  std::vector<Device*> devices;
  for (size_t r = 0; r < parts.ranks.size(); ++r) {
    auto ops = std::make_unique<StreamOps>(std::move(parts.ranks[r].ops), options.hooks[r],
                                           has_peers ? std::optional(int(r)) : std::nullopt);
    result.ops.push_back(ops.get());
    devices.push_back(&ops->device());
    parts.ranks[r].ops = std::move(ops);
  }
  if (has_peers) {
    auto comms = make_p2p_communicators(devices, {.peer_timeout = options.peer_timeout});
    for (size_t r = 0; r < comms.size(); ++r) parts.ranks[r].comm = std::move(comms[r]);
  }
  result.engine = start_engine(parts.info(), parts.setup.scheduler,
                               start_rank_workers(parts.config, std::move(parts.ranks)), {}, options.step_timeout);
  return result;
}

}  // namespace moectl::test
