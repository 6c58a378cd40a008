#include "cmd/deploy/probe.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "cmd/deploy/plan.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "core/base/json_depth.h"

namespace moectl {
namespace {

constexpr size_t kMaxAnswer = 1 << 20;

InstanceHealth health_of_worker(std::string load) {
  InstanceHealth health;
  health.state = "unhealthy";
  health.reason = "no answer";
  if (load.empty()) return health;
  health.reason = "its answer to GET /load is not usable";
  try {
    check_json_depth(load, 16, "answer");
  } catch (const Error&) {
    return health;
  }
  const auto report = nlohmann::json::parse(load, nullptr, false);
  if (!report.is_object() || !report.contains("state") || !report["state"].is_string()) return health;
  const auto& state = report["state"].get_ref<const std::string&>();
  const auto seconds = report.find("seconds_since_progress");
  health.load = std::move(load);
  health.reason.clear();
  if (state == "ready" || state == "draining") {
    health.state = state;
  } else if (state == "stalled" && seconds != report.end() && seconds->is_number()) {
    health.reason = fmt::format("stalled: no step completed for {:.0f} s", seconds->get<double>());
  } else {
    health.reason = "it says " + state.substr(0, 32);
  }
  return health;
}

}  // namespace

Task<std::string> get_text(http::Client& client, std::string url) {
  http::ClientRequest request;
  request.url = std::move(url);
  request.connect_timeout = request.header_timeout = request.idle_timeout = kProbeTimeout;
  try {
    const std::unique_ptr<http::ClientResponse> response = co_await client.send(std::move(request));
    std::string answer = co_await response->read_all(kMaxAnswer);
    if (response->status() == 200) co_return answer;
  } catch (const Error&) {
  }
  co_return std::string();
}

Task<InstanceHealth> ask_instance(http::Client& client, std::string role, std::string ops) {
  std::string load = co_await get_text(client, ops + "/load");
  if (role != kRouterRole) co_return health_of_worker(std::move(load));
  InstanceHealth health;
  if (load.empty()) {
    health.state = "unhealthy";
    health.reason = "no answer";
    co_return health;
  }
  const std::string answer = co_await get_text(client, ops + "/health");
  health.state = answer.empty() ? "unhealthy" : "ready";
  if (answer.empty()) health.reason = "GET /health fails";
  health.load = std::move(load);
  co_return health;
}

InstanceProber::InstanceProber() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  CHECK(fd_ >= 0, "eventfd: errno {}", errno);
  thread_.spawn("the supervisor's prober", run());
}

InstanceProber::~InstanceProber() {
  thread_.stop();
  ::close(fd_);
}

void InstanceProber::watch(int instance, std::string role, std::string ops) {
  const std::lock_guard lock(mutex_);
  targets_[instance] = {std::move(role), std::move(ops), ++num_lives_};
}

void InstanceProber::forget(int instance) {
  const std::lock_guard lock(mutex_);
  targets_.erase(instance);
}

std::vector<InstanceProber::Result> InstanceProber::take() {
  uint64_t count = 0;
  (void)!::read(fd_, &count, sizeof count);
  std::vector<Result> fresh;
  const std::lock_guard lock(mutex_);
  for (auto& [life, result] : results_) {
    const auto target = targets_.find(result.instance);
    if (target != targets_.end() && target->second.life == life) fresh.push_back(std::move(result));
  }
  results_.clear();
  return fresh;
}

Task<void> InstanceProber::run() {
  const auto client = http::Client::create();
  for (;;) {
    std::map<int, Target> targets;
    {
      const std::lock_guard lock(mutex_);
      targets = targets_;
    }
    std::vector<Task<void>> probes;
    for (const auto& [instance, target] : targets) probes.push_back(probe(*client, instance, target));
    co_await http::run_all(std::move(probes));
    co_await sleep_for(kProbeInterval);
  }
}

Task<void> InstanceProber::probe(http::Client& client, int instance, Target target) {
  InstanceHealth health = co_await ask_instance(client, target.role, target.ops);
  const std::lock_guard lock(mutex_);
  results_.push_back({target.life, {instance, std::move(health)}});
  const uint64_t one = 1;
  (void)!::write(fd_, &one, sizeof one);
}

}  // namespace moectl
