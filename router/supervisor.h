// What to do about the processes of a deployment: which to start, which to end, when to try again. Pure decisions:
// events and the time come in, actions go out; it starts, signals and waits for nothing itself. Not
// thread-safe; its owner (cmd/deploy/supervise.cpp) calls it from one thread.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moectl::router {

enum class InstanceState {
  kWaiting,   // not started yet: instances it needs are not ready
  kStarting,  // a process runs and has not said that it is ready
  kReady,
  kUnhealthy,  // its process runs and was ready, and cannot do its work now: no answer, or it says so itself
  kBackoff,    // its process ended; it is started again at retry_at
  kStopping,   // has got SIGTERM
  kStopped,    // no process, and none will be started
};
std::string_view name_of(InstanceState state);

struct SupervisorOptions {
  std::chrono::milliseconds first_backoff{500}, max_backoff{30'000};
  std::chrono::milliseconds stable_after{60'000};       // ready for so long: its failures count no more
  std::chrono::milliseconds start_timeout{600'000};     // not ready by then: killed and tried again
  std::chrono::milliseconds unhealthy_timeout{30'000};  // failed probes for so long: killed and started again
  // No probe for so long: the supervisor itself was stopped, or the machine slept; what came before proves nothing.
  std::chrono::milliseconds max_probe_gap{15'000};
  std::chrono::milliseconds stop_timeout{30'000};  // from the request to end until it is killed
};

struct SupervisedInstance {
  using TimePoint = std::chrono::steady_clock::time_point;
  std::string id;  // "decode/0"
  int stage = 0;   // starts when every instance of a smaller stage has been ready once
  InstanceState state = InstanceState::kWaiting;
  bool was_ready = false;  // at least once
  bool killed = false;     // a kill was decided for this process
  int restarts = 0;
  int failures = 0;  // in a row, since it was last stable
  TimePoint started_at{}, ready_at{}, retry_at{}, stop_at{};
  TimePoint unhealthy_since{}, unhealthy_until{};  // the first and the last of the failed probes
};

enum class Do { kStart, kTerminate, kKill };
struct Action {
  Do what;
  int instance;  // index
  friend bool operator==(const Action&, const Action&) = default;
};

class Supervisor {
 public:
  using TimePoint = SupervisedInstance::TimePoint;
  Supervisor(std::vector<SupervisedInstance> instances, SupervisorOptions options);

  // What happened. An instance that exits before the whole deployment was ready once fails the start (see failed()).
  void ready(int instance, TimePoint now);
  void exited(int instance, TimePoint now);
  void probed(int instance, bool healthy, TimePoint now);  // of a process that has been ready
  void stop(TimePoint now);                                // end everything
  void kill();                                             // end everything that is left, at once

  // What to do now. Every action is handed out once and counts as done; a process that could not be started is
  // reported as exited().
  std::vector<Action> decide(TimePoint now);
  // When decide() may have more to say although nothing happens.
  std::optional<TimePoint> next_wakeup() const;

  const std::vector<SupervisedInstance>& instances() const { return instances_; }
  bool all_ready() const;
  bool was_complete() const { return was_complete_; }  // all were ready at the same time, once
  bool stopping() const { return stopping_; }
  bool ended() const;  // stopping, and no process is left
  // The instance whose end made the first start fail; everything is being stopped then.
  std::optional<int> failed() const { return failed_; }

 private:
  std::chrono::milliseconds backoff(int failures) const;
  bool is_given_up(const SupervisedInstance& instance, TimePoint now) const;  // its process is to be killed
  bool stage_open(int stage) const;

  std::vector<SupervisedInstance> instances_;
  const SupervisorOptions options_;
  bool stopping_ = false, kill_now_ = false, was_complete_ = false;
  std::optional<int> failed_;
};

}  // namespace moectl::router
