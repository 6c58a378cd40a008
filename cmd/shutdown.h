// How a serving command ends, in one place. The first signal ends it in order: no new requests, running ones get
// --shutdown-timeout, what is left then is cut. The second signal ends the process at once. A thread of its own takes
// the signals, so that neither a hung engine nor a hung main thread can keep the process alive: kShutdownGrace after
// the timeout it ends the process itself and says what hung.
#pragma once

#include <signal.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "core/base/log.h"

namespace moectl {

// For cutting what is left and for joining threads, after --shutdown-timeout.
inline constexpr std::chrono::seconds kShutdownGrace{10};

// The signals of a serving process: SIGTERM and SIGINT, and SIGHUP unless it was ignored when the process started
// (nohup). SIGPIPE is ignored. Made on the main thread before any other thread; all methods are the main thread's.
class Shutdown {
 public:
  explicit Shutdown(std::chrono::seconds timeout);
  ~Shutdown();  // after it, no signal and no deadline ends the process
  Shutdown(const Shutdown&) = delete;

  std::chrono::seconds timeout() const { return timeout_; }
  // The first signal, or nullopt when none came within `limit`.
  std::optional<int> wait(std::chrono::milliseconds limit);
  // The server ends without a signal, at most `limit` after `why`, "the engine failed"; the next signal ends the
  // process at once.
  void begin(std::chrono::seconds limit, const std::string& why);
  // What the main thread does from now on, for the line that says what hung: "stopping the engine".
  void set_step(std::string step);

 private:
  using Clock = std::chrono::steady_clock;
  void watch();
  void take(int signal);
  [[noreturn]] void end_at_once(int status, const std::string& message);

  const std::chrono::seconds timeout_;
  sigset_t set_, before_;
  int signals_ = -1, wake_ = -1;  // signalfd, eventfd
  std::mutex mutex_;
  std::condition_variable changed_;
  int first_ = 0;  // signal
  std::optional<Clock::time_point> deadline_;
  std::string deadline_text_;  // "10 s after --shutdown-timeout"
  std::string step_ = "serving";
  bool over_ = false;
  std::thread thread_;
};

// The exit status of a server that ended in order because of the signal.
inline int exit_status(int signal) {
  return signal == SIGINT ? 130 : 0;
}

// At the start of a server, when Shutdown exists: the log no longer blocks, and the process may open as many files as
// the hard limit allows.
void start_serving_process();

// The orderly end. `Service` has drain(), num_in_flight() and stop(grace).
template <class Service>
void shut_down(Service& service, Shutdown& shutdown) {
  using std::chrono::milliseconds, std::chrono::steady_clock;
  shutdown.set_step("draining");
  service.drain();
  log::info("shutting down: waiting up to {} s for {} requests and transfers; a second signal ends them at once",
            shutdown.timeout().count(), service.num_in_flight());
  shutdown.set_step("waiting for running requests");
  const auto deadline = steady_clock::now() + shutdown.timeout();
  while (service.num_in_flight() > 0 && steady_clock::now() < deadline) std::this_thread::sleep_for(milliseconds(20));
  if (const int left = service.num_in_flight(); left > 0)
    log::warn("{} requests did not finish within {} s and are cut (--shutdown-timeout)", left,
              shutdown.timeout().count());
  shutdown.set_step("stopping servers and engine");
  service.stop(milliseconds(500));
}

// The one line on stdout, for programs that started us: where the server listens, with --port 0 above all. Waits a
// second at most for a consumer that has stopped.
void print_ready_line(const std::string& url, const std::optional<std::string>& ops,
                      const std::optional<std::string>& kv);

}  // namespace moectl
