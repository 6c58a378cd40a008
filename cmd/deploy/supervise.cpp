// The supervisor's process: starts the instances, reads what they print, writes the state and the logs, and carries out
// what router/supervisor.h decides. All of it on the main thread, which also forks: instances ask the kernel for
// SIGTERM when the thread that started them ends (PR_SET_PDEATHSIG), so that a killed supervisor leaves none behind.
// The probes have a thread of their own (probe.h). It signals its own children only, which it has not reaped:
// their numbers cannot belong to other processes.
#include "cmd/deploy/supervise.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "cmd/deploy/log.h"
#include "cmd/deploy/probe.h"
#include "cmd/deploy/state.h"
#include "core/base/check.h"
#include "core/base/error.h"
#include "router/supervisor.h"

namespace moectl {
namespace {

using router::Action;
using router::Do;

constexpr std::chrono::seconds kRetryWrite{1};

// One instance's process and what comes from it.
struct Child {
  pid_t pid = 0;
  int out = -1, err = -1;  // its stdout and stderr
  std::string first_line;  // of stdout, until it is whole
  bool had_line = false;
  std::string killed_because;  // empty: not by the supervisor
  std::unique_ptr<LogWriter> log;
};

std::string describe_exit(int status) {
  if (WIFSIGNALED(status))
    return fmt::format("killed by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
  return fmt::format("exit status {}", WEXITSTATUS(status));
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> result;
  for (std::string& word : words) result.push_back(word.data());
  result.push_back(nullptr);
  return result;
}

class Deployment {
 public:
  Deployment(const DeployPlan& plan, const std::string& folder, const std::string& program)
      : plan_(plan), folder_(folder), program_(program), supervisor_(make_instances(plan), options_of(plan)) {
    sigset_t set;
    sigemptyset(&set);
    for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) sigaddset(&set, number);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    signals_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    CHECK(signals_ >= 0, "signalfd: errno {}", errno);
    prober_ = std::make_unique<InstanceProber>();  // now that the signals are blocked
    children_.resize(supervisor_.instances().size());
    state_.name = plan.name;
    state_.model = plan.model;
    state_.served_model_name = plan.served_model_name;
    state_.supervisor = identify(::getpid());
    state_.started_unix_ms = unix_ms();
    for (const PlannedInstance& planned : planned_instances(plan)) {
      InstanceStatus status;
      status.id = planned.id;
      status.role = planned.role;
      status.ep_size = role_of(plan, planned.role).ep_size;
      state_.instances.push_back(status);
    }
  }

  int run() {
    save();
    while (!supervisor_.ended()) {
      for (const Action& action : supervisor_.decide(Clock::now())) carry_out(action);
      save();
      if (supervisor_.ended()) break;
      wait();
    }
    save();
    return supervisor_.failed() ? 1 : 0;
  }

 private:
  static std::vector<router::SupervisedInstance> make_instances(const DeployPlan& plan) {
    std::vector<router::SupervisedInstance> instances;
    for (const PlannedInstance& planned : planned_instances(plan)) {
      router::SupervisedInstance instance;
      instance.id = planned.id;
      instance.stage = planned.role == kRouterRole ? 1 : 0;  // it reads where the workers are
      instances.push_back(instance);
    }
    return instances;
  }

  static router::SupervisorOptions options_of(const DeployPlan& plan) {
    router::SupervisorOptions options;
    options.unhealthy_timeout = plan.unhealthy_timeout;
    return options;
  }

  void carry_out(const Action& action) {
    Child& child = children_[size_t(action.instance)];
    switch (action.what) {
      case Do::kStart:
        start(action.instance);
        break;
      case Do::kTerminate:
        if (child.pid > 0) ::kill(child.pid, SIGTERM);
        break;
      case Do::kKill:
        child.killed_because = why_killed(action.instance);
        if (child.pid > 0) ::kill(child.pid, SIGKILL);
        break;
    }
  }

  std::string why_killed(int index) const {
    const auto seconds = [](auto duration) {
      return std::chrono::duration_cast<std::chrono::seconds>(duration).count();
    };
    const router::SupervisedInstance& instance = supervisor_.instances()[size_t(index)];
    if (instance.state == router::InstanceState::kUnhealthy)
      return fmt::format("{}, unhealthy for {} s", state_.instances[size_t(index)].reason,
                         seconds(instance.unhealthy_until - instance.unhealthy_since));
    if (instance.state == router::InstanceState::kStarting)
      return fmt::format("not ready after {} s", seconds(Clock::now() - instance.started_at));
    return "it was told to end and did not";
  }

  // ---------------------------------------------------------------------------------------------- start
  void start(int index) {
    InstanceStatus& status = state_.instances[size_t(index)];
    Child& child = children_[size_t(index)];
    child = {};
    child.log = std::make_unique<LogWriter>(folder_, status.id);
    std::vector<std::string> arguments = instance_arguments(plan_, status.role, folder_, ports_of(plan_, status));
    child.log->line(fmt::format("supervisor: moectl {}", fmt::join(arguments, " ")));
    arguments.insert(arguments.begin(), "moectl");
    std::vector<std::string> environment = instance_environment(role_of(plan_, status.role));
    try {
      if (status.role == kRouterRole && !save_file(workers_file_, workers_json()) && !supervisor_.was_complete())
        throw Error(Code::kUnavailable, workers_file_.problem);
      spawn(child, arguments, environment);
    } catch (const Error& error) {
      child.log->line(fmt::format("supervisor: it cannot be started: {}", error.what()));
      status.last_exit = error.what();
      status.process = {};
      supervisor_.exited(index, Clock::now());
      return;
    }
    status.process = identify(child.pid);
    status.started_unix_ms = unix_ms();
  }

  void spawn(Child& child, std::vector<std::string>& arguments, std::vector<std::string>& environment) {
    int out[2] = {-1, -1}, err[2] = {-1, -1};
    if (::pipe2(out, O_CLOEXEC) != 0) throw Error(Code::kUnavailable, "no pipe: too many open files?");
    if (::pipe2(err, O_CLOEXEC) != 0) {
      ::close(out[0]), ::close(out[1]);
      throw Error(Code::kUnavailable, "no pipe: too many open files?");
    }
    const std::vector<char*> argv = pointers(arguments), envp = pointers(environment);
    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (::getppid() != parent) ::_exit(1);  // the supervisor ended before the line above
      ::setpgid(0, 0);
      const int null = ::open("/dev/null", O_RDONLY);
      ::dup2(null, 0), ::dup2(out[1], 1), ::dup2(err[1], 2);
      ::close_range(3, ~0u, 0);  // a probe's connection among them
      sigset_t none;
      sigemptyset(&none);
      sigprocmask(SIG_SETMASK, &none, nullptr);
      ::execve(program_.c_str(), argv.data(), envp.data());
      ::execve("/proc/self/exe", argv.data(), envp.data());  // a build has replaced the file
      ::_exit(127);
    }
    ::close(out[1]), ::close(err[1]);
    if (pid < 0) {
      ::close(out[0]), ::close(err[0]);
      throw Error(Code::kUnavailable, "no new process: too many of them, or too little memory");
    }
    ::fcntl(out[0], F_SETFL, O_NONBLOCK), ::fcntl(err[0], F_SETFL, O_NONBLOCK);
    child.pid = pid, child.out = out[0], child.err = err[0];
  }

  // The router reads this file again when it changes. A worker that is being restarted stays in it.
  std::string workers_json() const {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const InstanceStatus& status : state_.instances)
      if (status.role != kRouterRole && !status.url.empty())
        list.push_back({{"role", status.role}, {"url", status.url}});
    return list.dump(1) + "\n";
  }

  // ---------------------------------------------------------------------------------------------- events
  void wait() {
    std::vector<pollfd> fds = {{signals_, POLLIN, 0}, {prober_->fd(), POLLIN, 0}};
    std::vector<std::pair<int, bool>> sources(fds.size());  // instance, is stdout
    for (size_t i = 0; i < children_.size(); ++i) {
      if (children_[i].out >= 0) fds.push_back({children_[i].out, POLLIN, 0}), sources.push_back({int(i), true});
      if (children_[i].err >= 0) fds.push_back({children_[i].err, POLLIN, 0}), sources.push_back({int(i), false});
    }
    int timeout = -1;
    std::optional<Clock::time_point> next = supervisor_.next_wakeup();
    for (const SavedFile* file : {&workers_file_, &state_file_})
      if (!file->problem.empty() && (!next || file->retry_at < *next)) next = file->retry_at;
    if (next) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next - Clock::now()).count();
      timeout = int(std::clamp<int64_t>(left, 0, 3'600'000));
    }
    if (::poll(fds.data(), fds.size(), timeout) <= 0) return;
    for (size_t i = 2; i < fds.size(); ++i)
      if (fds[i].revents != 0) take_output(sources[i].first, sources[i].second);
    if (fds[1].revents != 0) take_probes();
    if (fds[0].revents != 0) take_signals();
  }

  void take_signals() {
    signalfd_siginfo info;
    while (::read(signals_, &info, sizeof info) == sizeof info) {
      if (info.ssi_signo == SIGCHLD || info.ssi_signo == SIGHUP) continue;
      if (supervisor_.stopping())
        supervisor_.kill();
      else
        supervisor_.stop(Clock::now());
    }
    for (size_t i = 0; i < children_.size(); ++i) {
      int status = 0;
      if (children_[i].pid > 0 && ::waitpid(children_[i].pid, &status, WNOHANG) == children_[i].pid)
        take_exit(int(i), status);
    }
  }

  // What can be read now, a bounded amount: an instance that writes without end must not keep the others waiting.
  void take_output(int index, bool is_stdout) {
    Child& child = children_[size_t(index)];
    int& fd = is_stdout ? child.out : child.err;
    char buffer[64 << 10];
    for (int i = 0; fd >= 0 && i < 16; ++i) {
      const ssize_t n = ::read(fd, buffer, sizeof buffer);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return;
      if (n <= 0) {
        ::close(fd);
        fd = -1;
        return;
      }
      child.log->write({buffer, size_t(n)});
      if (is_stdout && !child.had_line) look_for_ready_line(index, {buffer, size_t(n)});
    }
  }

  void look_for_ready_line(int index, std::string_view piece) {
    Child& child = children_[size_t(index)];
    child.first_line.append(piece.substr(0, kMaxLogLine));
    const size_t end = child.first_line.find('\n');
    child.had_line = end != std::string::npos || child.first_line.size() > kMaxLogLine;
    if (!child.had_line) return;
    const auto line = nlohmann::json::parse(child.first_line.substr(0, end), nullptr, false);
    if (!line.is_object() || !line.contains("url") || !line["url"].is_string()) {
      child.log->line("supervisor: the first line of its output is not the ready line");
      return;  // it is given up after the start timeout, or when it ends
    }
    InstanceStatus& status = state_.instances[size_t(index)];
    const auto text = [&line](const char* key) {
      return line.contains(key) && line[key].is_string() ? line[key].get<std::string>() : std::string();
    };
    status.url = text("url");
    status.ops = text("ops");
    status.kv = text("kv");
    if (status.role == kRouterRole) state_.url = status.url;
    supervisor_.ready(index, Clock::now());
    prober_->watch(index, status.role, status.ops);
  }

  void take_probes() {
    for (const InstanceProber::Result& result : prober_->take()) {
      const size_t index = size_t(result.instance);
      const router::InstanceState& state = supervisor_.instances()[index].state;
      const router::InstanceState before = state;
      supervisor_.probed(result.instance, result.health.healthy(), Clock::now());
      const bool unhealthy = state == router::InstanceState::kUnhealthy;
      state_.instances[index].reason = unhealthy ? result.health.reason : "";
      if (state != before)
        children_[index].log->line(unhealthy ? "supervisor: it is unhealthy: " + result.health.reason
                                             : "supervisor: it is healthy again");
    }
  }

  void take_exit(int index, int wait_status) {
    Child& child = children_[size_t(index)];
    InstanceStatus& status = state_.instances[size_t(index)];
    take_output(index, true);
    take_output(index, false);
    for (int* fd : {&child.out, &child.err})
      if (*fd >= 0) ::close(*fd), *fd = -1;
    child.pid = 0;
    prober_->forget(index);
    status.process = {};
    status.reason.clear();
    status.last_exit = describe_exit(wait_status);
    if (!child.killed_because.empty() && WIFSIGNALED(wait_status))
      status.last_exit = "killed by the supervisor: " + child.killed_because;
    const bool first_failure = !supervisor_.failed();
    supervisor_.exited(index, Clock::now());
    if (supervisor_.failed() == index && first_failure) {
      state_.failed_instance = status.id;
      state_.failure = fmt::format("{} ended before it was ready: {}", status.id, status.last_exit);
      state_.failed_status = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 0;
    }
    const router::SupervisedInstance& decided = supervisor_.instances()[size_t(index)];
    std::string next;
    if (decided.state == router::InstanceState::kBackoff)
      next =
          fmt::format("; started again in {} ms",
                      std::chrono::duration_cast<std::chrono::milliseconds>(decided.retry_at - Clock::now()).count());
    child.log->line(fmt::format("supervisor: it ended: {}{}", status.last_exit, next));
  }

  // ---------------------------------------------------------------------------------------------- state
  std::string phase() const {
    if (supervisor_.ended()) return supervisor_.failed() ? "failed" : "stopped";
    if (supervisor_.stopping()) return "stopping";
    return supervisor_.was_complete() ? "running" : "starting";
  }

  void save() {
    state_.phase = phase();
    for (size_t i = 0; i < state_.instances.size(); ++i) {
      const router::SupervisedInstance& decided = supervisor_.instances()[i];
      InstanceStatus& status = state_.instances[i];
      status.state = name_of(decided.state);
      status.restarts = decided.restarts;
      status.retry_unix_ms = 0;
      if (decided.state == router::InstanceState::kBackoff)
        status.retry_unix_ms =
            unix_ms() + std::chrono::duration_cast<std::chrono::milliseconds>(decided.retry_at - Clock::now()).count();
    }
    save_file(workers_file_, workers_json());
    save_file(state_file_, state_json(state_));
  }

  // A file of the folder as it was last written. What cannot be written, on a full disk, is tried again each second.
  struct SavedFile {
    std::string path, written = {};
    std::string problem = {};  // of the last try; empty: it is up to date
    Clock::time_point retry_at{};
  };

  bool save_file(SavedFile& file, const std::string& text) {
    if (text == file.written) file.problem.clear();
    if (text == file.written) return true;
    if (!file.problem.empty() && Clock::now() < file.retry_at) return false;
    try {
      write_file_atomically(file.path, text, 0600);
      if (!file.problem.empty()) std::fprintf(stderr, "%s is written again\n", file.path.c_str());
      file.written = text;
      file.problem.clear();
      return true;
    } catch (const Error& error) {
      if (file.problem.empty()) std::fprintf(stderr, "%s; tried again each second\n", error.what());
      file.problem = error.what();
      file.retry_at = Clock::now() + kRetryWrite;
      return false;
    }
  }

  const DeployPlan& plan_;
  const std::string folder_, program_;
  router::Supervisor supervisor_;
  DeployState state_;
  std::vector<Child> children_;
  int signals_ = -1;
  SavedFile workers_file_{folder_ + "/workers.json"}, state_file_{folder_ + "/state.json"};
  std::unique_ptr<InstanceProber> prober_;
};

}  // namespace

int supervise(const DeployPlan& plan, const std::string& folder, const std::string& program) {
  return Deployment(plan, folder, program).run();
}

}  // namespace moectl
