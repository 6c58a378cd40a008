// Concurrent coroutines, without Asio's own vocabulary: start one, wait for many, a thread that runs them.
#pragma once

#include <memory>
#include <vector>

#include "core/http/async.h"

namespace moectl::http {

// Starts `task` on the executor of the calling coroutine and does not wait. What it throws is logged, with `name`.
Task<void> spawn(const char* name, Task<void> task);
// Runs all of them on the executor of the calling coroutine and waits for the last. Rethrows the first exception, after
// the others have ended too.
Task<void> run_all(std::vector<Task<void>> tasks);

// A thread with an I/O loop of its own.
class IoThread {
 public:
  IoThread();
  ~IoThread();                                    // as stop()
  void spawn(const char* name, Task<void> task);  // from any thread
  // Coroutines that have not ended are destroyed where they wait. Blocks; not from the thread itself.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moectl::http
