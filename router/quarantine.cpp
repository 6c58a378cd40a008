#include "router/quarantine.h"

#include <algorithm>

namespace moectl::router {

void Quarantine::on_death(const BlockHash& request, int worker, TimePoint now) {
  std::lock_guard lock(mutex_);
  auto [it, inserted] = entries_.try_emplace(request);
  if (inserted) order_.push_back(request);
  Entry& entry = it->second;
  if (now >= entry.until) entry.workers.clear();
  entry.until = now + kDuration;
  if (std::find(entry.workers.begin(), entry.workers.end(), worker) == entry.workers.end() &&
      entry.workers.size() < kDeaths)
    entry.workers.push_back(worker);
  while (order_.size() > kMaxEntries) {
    entries_.erase(order_.front());
    order_.pop_front();
  }
}

void Quarantine::on_success(const BlockHash& request) {
  std::lock_guard lock(mutex_);
  if (entries_.empty()) return;
  if (entries_.erase(request)) std::erase(order_, request);
}

bool Quarantine::holds(const BlockHash& request, TimePoint now) {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(request);
  return it != entries_.end() && now < it->second.until && it->second.workers.size() >= kDeaths;
}

}  // namespace moectl::router
