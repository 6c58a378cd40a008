#include "router/quarantine.h"

#include <algorithm>

namespace moectl::router {

void Quarantine::on_worker_ended(const BlockHash& request, const WorkerLife& worker, bool alone, TimePoint now) {
  std::lock_guard lock(mutex_);
  if (succeeded_.contains(request)) return;
  auto [it, inserted] = entries_.try_emplace(request);
  if (inserted) order_.push_back(request);
  Entry& entry = it->second;
  // What is old counts for a suspicion only: one more end, alone, and it is quarantined again.
  if (now >= entry.until) {
    entry.ends = std::min(entry.ends, kEnds);
    entry.quarantined = false;
  }
  if (entry.last == worker) return;  // two requests of one body
  entry.last = worker;
  ++entry.ends;
  entry.quarantined |= alone && entry.ends >= kEnds;
  entry.until = now + kDuration;
  while (order_.size() > kMaxEntries) {
    entries_.erase(order_.front());
    order_.pop_front();
  }
}

void Quarantine::on_success(const BlockHash& request) {
  std::lock_guard lock(mutex_);
  if (succeeded_.insert(request).second) succeeded_order_.push_back(request);
  if (succeeded_order_.size() > kMaxSucceeded) {
    succeeded_.erase(succeeded_order_.front());
    succeeded_order_.pop_front();
  }
  if (!entries_.empty() && entries_.erase(request)) std::erase(order_, request);
}

Quarantine::Standing Quarantine::standing(const BlockHash& request, TimePoint now) {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(request);
  if (it == entries_.end()) return Standing::kClear;
  const Entry& entry = it->second;
  if (entry.quarantined && now < entry.until) return Standing::kQuarantined;
  return entry.ends >= kEnds ? Standing::kSuspect : Standing::kClear;
}

}  // namespace moectl::router
