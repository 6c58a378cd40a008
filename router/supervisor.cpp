#include "router/supervisor.h"

#include <algorithm>
#include <utility>

namespace moectl::router {
namespace {

bool has_process(const SupervisedInstance& instance) {
  return instance.state == InstanceState::kStarting || instance.state == InstanceState::kReady ||
         instance.state == InstanceState::kUnhealthy || instance.state == InstanceState::kStopping;
}

}  // namespace

std::string_view name_of(InstanceState state) {
  switch (state) {
    case InstanceState::kWaiting:
      return "waiting";
    case InstanceState::kStarting:
      return "starting";
    case InstanceState::kReady:
      return "ready";
    case InstanceState::kUnhealthy:
      return "unhealthy";
    case InstanceState::kBackoff:
      return "backoff";
    case InstanceState::kStopping:
      return "stopping";
    case InstanceState::kStopped:
      return "stopped";
  }
  return "?";
}

Supervisor::Supervisor(std::vector<SupervisedInstance> instances, SupervisorOptions options)
    : instances_(std::move(instances)), options_(options) {}

void Supervisor::ready(int index, TimePoint now) {
  SupervisedInstance& instance = instances_[size_t(index)];
  if (instance.state != InstanceState::kStarting) return;  // it is being stopped
  instance.state = InstanceState::kReady;
  instance.was_ready = true;
  instance.ready_at = now;
  was_complete_ |= all_ready();
}

void Supervisor::exited(int index, TimePoint now) {
  SupervisedInstance& instance = instances_[size_t(index)];
  if (stopping_) {
    instance.state = InstanceState::kStopped;
    return;
  }
  if (!was_complete_) {
    instance.state = InstanceState::kStopped;
    failed_ = index;
    stop(now);
    return;
  }
  const TimePoint last_ready = instance.state == InstanceState::kUnhealthy ? instance.unhealthy_since : now;
  const bool was_stable =
      instance.state != InstanceState::kStarting && last_ready - instance.ready_at >= options_.stable_after;
  instance.failures = was_stable ? 1 : instance.failures + 1;
  instance.state = InstanceState::kBackoff;
  instance.retry_at = now + backoff(instance.failures);
}

void Supervisor::probed(int index, bool healthy, TimePoint now) {
  SupervisedInstance& instance = instances_[size_t(index)];
  if (instance.state == InstanceState::kReady && !healthy) {
    instance.state = InstanceState::kUnhealthy;
    instance.unhealthy_since = instance.unhealthy_until = now;
  } else if (instance.state == InstanceState::kUnhealthy && !healthy) {
    if (now - instance.unhealthy_until > options_.max_probe_gap) instance.unhealthy_since = now;
    instance.unhealthy_until = now;
  } else if (instance.state == InstanceState::kUnhealthy && !instance.killed) {
    instance.state = InstanceState::kReady;
    instance.ready_at = now;
  }
}

void Supervisor::stop(TimePoint now) {
  if (stopping_) return;
  stopping_ = true;
  for (SupervisedInstance& instance : instances_) {
    instance.stop_at = now + options_.stop_timeout;
    if (!has_process(instance)) instance.state = InstanceState::kStopped;
  }
}

void Supervisor::kill() {
  stop(TimePoint{});
  kill_now_ = true;
}

std::vector<Action> Supervisor::decide(TimePoint now) {
  std::vector<Action> actions;
  for (size_t i = 0; i < instances_.size(); ++i) {
    SupervisedInstance& instance = instances_[i];
    const int index = int(i);
    if (stopping_) {
      if (!has_process(instance)) continue;
      if (instance.state != InstanceState::kStopping && !kill_now_) actions.push_back({Do::kTerminate, index});
      instance.state = InstanceState::kStopping;
      if ((kill_now_ || now >= instance.stop_at) && !instance.killed) {
        instance.killed = true;
        actions.push_back({Do::kKill, index});
      }
      continue;
    }
    const bool due = instance.state == InstanceState::kBackoff && now >= instance.retry_at;
    if (due || (instance.state == InstanceState::kWaiting && stage_open(instance.stage))) {
      if (due) ++instance.restarts;
      instance.state = InstanceState::kStarting;
      instance.started_at = now;
      instance.killed = false;
      actions.push_back({Do::kStart, index});
    } else if (is_given_up(instance, now)) {
      instance.killed = true;
      actions.push_back({Do::kKill, index});
    }
  }
  return actions;
}

std::optional<Supervisor::TimePoint> Supervisor::next_wakeup() const {
  std::optional<TimePoint> next;
  const auto consider = [&next](TimePoint at) { next = next ? std::min(*next, at) : at; };
  for (const SupervisedInstance& instance : instances_) {
    if (instance.killed) continue;  // what follows is its exit
    if (instance.state == InstanceState::kBackoff) consider(instance.retry_at);
    if (instance.state == InstanceState::kStarting) consider(instance.started_at + options_.start_timeout);
    if (instance.state == InstanceState::kStopping) consider(instance.stop_at);
  }
  return next;
}

bool Supervisor::all_ready() const {
  return std::all_of(instances_.begin(), instances_.end(),
                     [](const SupervisedInstance& i) { return i.state == InstanceState::kReady; });
}

bool Supervisor::ended() const {
  return stopping_ && std::none_of(instances_.begin(), instances_.end(), has_process);
}

std::chrono::milliseconds Supervisor::backoff(int failures) const {
  std::chrono::milliseconds delay = options_.first_backoff;
  for (int i = 1; i < failures && delay < options_.max_backoff; ++i) delay *= 2;
  return std::min(delay, options_.max_backoff);
}

bool Supervisor::is_given_up(const SupervisedInstance& instance, TimePoint now) const {
  if (instance.killed) return false;
  if (instance.state == InstanceState::kStarting) return now >= instance.started_at + options_.start_timeout;
  return instance.state == InstanceState::kUnhealthy &&
         instance.unhealthy_until - instance.unhealthy_since >= options_.unhealthy_timeout;
}

bool Supervisor::stage_open(int stage) const {
  return std::all_of(instances_.begin(), instances_.end(),
                     [stage](const SupervisedInstance& i) { return i.stage >= stage || i.was_ready; });
}

}  // namespace moectl::router
