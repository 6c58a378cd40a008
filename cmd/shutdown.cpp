#include "cmd/shutdown.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/base/check.h"
#include "core/base/line_writer.h"
#include "core/http/descriptors.h"

namespace moectl {
namespace {

// Logging may hang too, in a lock that a frozen thread holds: then SIGALRM ends the process.
constexpr unsigned kLastResortSeconds = 5;

bool is_ignored(int number) {
  struct sigaction action {};
  return sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

}  // namespace

Shutdown::Shutdown(std::chrono::seconds timeout) : timeout_(timeout) {
  sigemptyset(&set_);
  sigaddset(&set_, SIGINT);
  sigaddset(&set_, SIGTERM);
  if (!is_ignored(SIGHUP)) sigaddset(&set_, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &set_, &before_);
  signal(SIGPIPE, SIG_IGN);
  signals_ = signalfd(-1, &set_, SFD_CLOEXEC);
  wake_ = eventfd(0, EFD_CLOEXEC);
  CHECK(signals_ >= 0 && wake_ >= 0, "signalfd, eventfd: errno {}", errno);
  thread_ = std::thread([this] { watch(); });
}

Shutdown::~Shutdown() {
  {
    std::lock_guard lock(mutex_);
    over_ = true;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_, &one, sizeof one);
  thread_.join();
  ::close(signals_);
  ::close(wake_);
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

std::optional<int> Shutdown::wait(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  if (changed_.wait_for(lock, limit, [this] { return first_ != 0; })) return first_;
  return std::nullopt;
}

void Shutdown::begin(std::chrono::seconds limit, const std::string& why) {
  {
    std::lock_guard lock(mutex_);
    if (!deadline_) {
      deadline_ = Clock::now() + limit;
      deadline_text_ = fmt::format("{} s after {}", limit.count(), why);
    }
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_, &one, sizeof one);
}

void Shutdown::set_step(std::string step) {
  std::lock_guard lock(mutex_);
  step_ = std::move(step);
}

void Shutdown::watch() {
  for (;;) {
    int wait_ms = -1;
    {
      std::lock_guard lock(mutex_);
      if (over_) return;
      if (deadline_) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(*deadline_ - Clock::now()).count();
        if (left <= 0)
          end_at_once(1, fmt::format("the process did not end within {} and is ended; it hung while {}", deadline_text_,
                                     step_));
        wait_ms = int(std::min<int64_t>(left, 3'600'000));
      }
    }
    pollfd fds[] = {{signals_, POLLIN, 0}, {wake_, POLLIN, 0}};
    if (::poll(fds, 2, wait_ms) <= 0) continue;
    uint64_t count;
    if (fds[1].revents != 0 && ::read(wake_, &count, sizeof count) < 0) continue;
    signalfd_siginfo info;
    if (fds[0].revents != 0 && ::read(signals_, &info, sizeof info) == sizeof info) take(int(info.ssi_signo));
  }
}

void Shutdown::take(int signal) {
  std::lock_guard lock(mutex_);
  if (deadline_)  // the second one, or the server is ending anyway
    end_at_once(signal == SIGINT ? 130 : 1, fmt::format("second signal: the process ends at once, while {}", step_));
  first_ = signal;
  deadline_ = Clock::now() + timeout_ + kShutdownGrace;
  deadline_text_ = fmt::format("{} s after --shutdown-timeout", kShutdownGrace.count());
  changed_.notify_all();
}

void Shutdown::end_at_once(int status, const std::string& message) {
  ::alarm(kLastResortSeconds);
  log::warn("{}", message);
  log::flush();
  std::_Exit(status);
}

void start_serving_process() {
  log::start_writer();
  const size_t before = http::descriptor_limit(), now = http::raise_descriptor_limit();
  if (now != before) log::info("the process may open {} files instead of {} (ulimit -n)", now, before);
}

void print_ready_line(const std::string& url, const std::optional<std::string>& ops,
                      const std::optional<std::string>& kv) {
  nlohmann::ordered_json line = {{"ready", true}, {"url", url}, {"ops", nullptr}, {"kv", nullptr}};
  if (ops) line["ops"] = *ops;
  if (kv) line["kv"] = *kv;
  // Never destroyed: its thread may wait for the consumer as long as the process lives.
  static LineWriter& writer = *new LineWriter(STDOUT_FILENO, [](int64_t) { return std::string(); });
  writer.write(line.dump() + "\n");
  if (!writer.flush(std::chrono::seconds(1)))
    log::warn("the consumer of stdout is too slow: the ready line still waits there");
}

}  // namespace moectl
