// Ctrl-C and SIGTERM for commands that run coroutines: blocked in the thread that makes it and in threads started
// later, and taken by a thread of its own. The second signal ends the process at once.
#pragma once

#include <atomic>
#include <thread>

#include "core/http/async.h"

namespace moectl {

class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;

  Task<void> wait() const;  // returns when the first signal has come; one coroutine waits

 private:
  void watch();

  int signals_ = -1, stop_ = -1;  // signalfd, eventfd
  sigset_t before_;
  std::atomic<int> signal_{0};
  AsyncQueue<int> taken_;
  std::thread thread_;
};

}  // namespace moectl
