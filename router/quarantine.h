// Requests that workers die of. A worker's end is no proof against the requests that it had: they are innocent
// neighbors but for one, if any. So a request is quarantined only on evidence:
//   - two workers ended while they had it, and
//   - the last one had nothing else of this router (after two shared ends a request is tried alone, see Standing), and
//   - no request with the same body has succeeded: a health check's prompt, sent every second, is never quarantined.
// Plain data, time passed in; any thread.
#pragma once

#include <deque>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "core/text/block_hash.h"
#include "router/worker.h"

namespace moectl::router {

class Quarantine {
 public:
  static constexpr std::chrono::seconds kDuration{60};
  static constexpr size_t kMaxEntries = 1024, kMaxSucceeded = 8192;
  static constexpr int kEnds = 2;

  enum class Standing {
    kClear,
    kSuspect,      // workers ended with it and its neighbors: the next attempt goes to a worker that has nothing else
    kQuarantined,  // given to no worker, for kDuration
  };

  // Hash of a request body.
  static BlockHash key_of(std::string_view body) { return root_hash(body); }
  // `alone`: the worker had no other request of this router.
  void on_worker_ended(const BlockHash& request, const WorkerLife& worker, bool alone, TimePoint now);
  void on_success(const BlockHash& request);
  Standing standing(const BlockHash& request, TimePoint now);

 private:
  struct Entry {
    int ends = 0;     // of different lives of workers
    WorkerLife last;  // of them
    bool quarantined = false;
    TimePoint until;
  };
  std::mutex mutex_;
  std::unordered_map<BlockHash, Entry, BlockHasher> entries_;
  std::unordered_set<BlockHash, BlockHasher> succeeded_;
  std::deque<BlockHash> order_, succeeded_order_;  // of insertion
};

}  // namespace moectl::router
