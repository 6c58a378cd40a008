// SIGINT and SIGTERM for commands that run until a signal ends them: taken one by one by the main thread.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <optional>

namespace moectl {

// Blocks both signals in every thread started after it. Ignores SIGPIPE.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set_, &before_);
    signal(SIGPIPE, SIG_IGN);
  }
  ~Signals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  // The next signal, or nullopt when none came within `timeout`.
  std::optional<int> wait(std::chrono::milliseconds timeout) const {
    const timespec duration{timeout.count() / 1000, (timeout.count() % 1000) * 1'000'000};
    const int signal = sigtimedwait(&set_, nullptr, &duration);
    return signal > 0 ? std::optional(signal) : std::nullopt;
  }

 private:
  sigset_t set_, before_;
};

// Of a server that ended because of the signal: SIGTERM is the orderly way.
inline int exit_status(int signal) {
  return signal == SIGINT ? 130 : 0;
}

}  // namespace moectl
