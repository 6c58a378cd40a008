// Gate: tests of what happens in the middle of a step.
#pragma once

#include <condition_variable>
#include <mutex>

namespace moectl::test {

// Holds a thread of the engine (a sink's, an operation's) at chosen moments, so that tests act while it stands still.
class Gate {
 public:
  // Engine's thread: announces moment `n` (counting from 1) and waits until it is let through.
  void arrive(int n) {
    std::unique_lock lock(mutex_);
    arrived_ = n;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_up_to_ >= n; });
  }
  // Test's thread.
  void wait_until_arrived(int n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrived_ >= n; });
  }
  void open(int up_to) {
    std::lock_guard lock(mutex_);
    open_up_to_ = up_to;
    changed_.notify_all();
  }
  static constexpr int kAll = 1 << 30;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0, open_up_to_ = 0;
};

}  // namespace moectl::test
