// Policies: which of several eligible workers takes a request. One interface, a table of names; nothing outside the
// table asks for a policy's name. Not thread-safe; the dispatcher calls under its lock.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/block_hash.h"
#include "router/options.h"

namespace moectl::router {

struct PolicyWorker {
  int id = 0;
  double requests = 0, tokens = 0;  // on it now
};

struct PolicyChoice {
  size_t index = 0;       // into the workers
  std::string why;        // "longest prefix: 12 of 14 blocks"
  int cached_blocks = 0;  // that the chosen one has
};

class Policy {
 public:
  virtual ~Policy() = default;
  // `workers` is not empty; they are in the order of configuration.
  virtual PolicyChoice choose(std::span<const PolicyWorker> workers, const std::vector<BlockHash>& prompt) = 0;
  // What the policy knows of `worker`'s cache, for the timeline.
  virtual int cached_blocks(int /*worker*/, const std::vector<BlockHash>& /*prompt*/) const { return 0; }
  virtual void on_routed(int /*worker*/, const std::vector<BlockHash>& /*prompt*/) {}
  virtual void on_worker_removed(int /*worker*/) {}
  virtual size_t state_bytes() const { return 0; }
};

std::vector<std::string_view> policy_names();  // without aliases
// Throws Error{kInvalidArgument} for an unknown name; aliases and `_` for `-` are taken.
std::unique_ptr<Policy> make_policy(std::string_view name, const PolicyOptions& options);

}  // namespace moectl::router
