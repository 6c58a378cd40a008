// Prompts that workers died of. A request in which two different workers died, one after the other, is not given to a
// third; the same request from another client is refused for a while. Plain data, time passed in; any thread.
#pragma once

#include <deque>
#include <mutex>
#include <unordered_map>

#include "core/text/block_hash.h"
#include "router/worker.h"

namespace moectl::router {

class Quarantine {
 public:
  static constexpr std::chrono::seconds kDuration{60};
  static constexpr size_t kMaxEntries = 1024;
  static constexpr size_t kDeaths = 2;  // of different workers

  // Hash of a request body.
  static BlockHash key_of(std::string_view body) { return root_hash(body); }
  void on_death(const BlockHash& request, int worker, TimePoint now);
  void on_success(const BlockHash& request);
  bool holds(const BlockHash& request, TimePoint now);

 private:
  struct Entry {
    std::vector<int> workers;
    TimePoint until;
  };
  std::mutex mutex_;
  std::unordered_map<BlockHash, Entry, BlockHasher> entries_;
  std::deque<BlockHash> order_;  // of insertion
};

}  // namespace moectl::router
