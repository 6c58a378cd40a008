// Health: the one definition of whether an instance can do its work. /health, /readiness, /load and the handlers answer
// from it, and through /load so do the router, `deploy status` and the supervisor. Any thread.
#pragma once

#include <string>
#include <string_view>

namespace moectl {

struct Instance;

struct Health {
  enum class State {
    kLoading,
    kReady,
    kDraining,  // finishes what it has, takes nothing new
    kStalled,   // there is work and no layer of a step completed for --stall-timeout; may recover
    kFailed,    // the engine has ended, and the process will
  };
  State state = State::kLoading;
  std::string reason;                   // for people; empty when ready
  double seconds_since_progress = 0.0;  // 0: idle or not loaded

  bool works() const { return state == State::kReady || state == State::kDraining; }
};

Health health_of(const Instance& instance);
std::string_view name_of(Health::State state);  // as in GET /load

}  // namespace moectl
