// `moectl deploy up` and `down`. `up` shows the plan, starts the supervisor in a session of its own, watches its state
// until a request can be answered, and leaves; with --foreground it stays, and its end is the deployment's. `down` ends
// the supervisor, which ends the instances, and then whatever the state still names.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>

#include "cmd/command.h"
#include "cmd/deploy/log.h"
#include "cmd/deploy/plan.h"
#include "cmd/deploy/state.h"
#include "cmd/deploy/status.h"
#include "cmd/deploy/supervise.h"
#include "cmd/signals.h"
#include "core/base/error.h"

namespace moectl {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kLook{25};         // at the state, while waiting
constexpr milliseconds kLastGrace{5000};  // from the second signal until the processes are killed one by one

std::string name_of(const DeployOptions& options) {
  return options.name.value_or(DeployPlan().name);
}

// ---------------------------------------------------------------------------------------------- before the start
void make_folder(const std::string& folder) {
  std::error_code failed;
  fs::create_directories(folder + "/logs", failed);
  if (failed || ::chmod(folder.c_str(), 0700) != 0)
    throw Error(Code::kUnavailable, fmt::format("{} cannot be made: {}", folder, failed.message()));
}

// Held by the supervisor for as long as it lives.
int lock_folder(const DeployPlan& plan, const std::string& folder) {
  const int fd = ::open((folder + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) throw Error(Code::kUnavailable, fmt::format("{}/lock cannot be opened", folder));
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  ::close(fd);
  const auto state = read_state(folder);
  const std::string where = state && !state->url.empty() ? fmt::format(" at {}", state->url) : "";
  const std::string flag = plan.name == DeployPlan().name ? "" : " --name " + plan.name;
  throw Error(Code::kInvalidArgument,
              fmt::format("deployment {} is running{}. `moectl deploy status{}` shows it, `moectl deploy down{}` ends "
                          "it; --name starts another beside it",
                          plan.name, where, flag, flag));
}

// A port in use is better said before the model is loaded. The router binds it later, and may still fail.
void check_port(const DeployPlan& plan) {
  if (plan.port == 0) return;
  const int error = try_port(plan.host, plan.port);
  if (error == 0) return;
  throw Error(Code::kInvalidArgument,
              fmt::format("the router cannot listen on {}:{}: {}. Choose another with --port, or --port 0 for any free "
                          "one",
                          plan.host, plan.port, std::strerror(error)));
}

void make_secret(const std::string& folder) {
  unsigned char bytes[32];
  std::ifstream random("/dev/urandom", std::ios::binary);
  if (!random.read(reinterpret_cast<char*>(bytes), sizeof bytes))
    throw Error(Code::kInternal, "/dev/urandom cannot be read");
  std::string text;
  for (const unsigned char byte : bytes) text += fmt::format("{:02x}", byte);
  write_file_atomically(folder + "/secret", text + "\n", 0600);
}

bool confirmed(const DeployOptions& options) {
  if (options.yes || !isatty(STDIN_FILENO) || !isatty(STDERR_FILENO)) return true;
  std::fputs("\nStart it? [Y/n] ", stderr);
  std::string answer;
  for (int c; (c = std::getchar()) != EOF && c != '\n';) answer += char(c);
  return answer.empty() || answer[0] == 'y' || answer[0] == 'Y';
}

// ---------------------------------------------------------------------------------------------- the supervisor
// Instances of a supervisor that was killed may still be ending.
void end_leftovers(const DeployState& state, milliseconds grace) {
  std::vector<std::unique_ptr<ProcessHandle>> left;
  for (const InstanceStatus& instance : state.instances) {
    left.push_back(std::make_unique<ProcessHandle>(instance.process));
    left.back()->signal(SIGTERM);
  }
  const auto deadline = Clock::now() + grace;
  for (const auto& process : left) {
    const auto rest = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
    if (process->wait(std::max(rest, milliseconds(0)))) continue;
    process->signal(SIGKILL);
    process->wait(kLastGrace);
  }
}

// The calling process has one thread. The child gets the lock; its output goes to logs/supervisor.log.
pid_t start_supervisor(const DeployPlan& plan, const std::string& folder, int lock, bool foreground) {
  std::error_code failed;
  const std::string program = fs::read_symlink("/proc/self/exe", failed).string();
  std::fflush(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) throw Error(Code::kUnavailable, "no new process: too many of them, or too little memory");
  if (pid > 0) return pid;
  ::setsid();
  if (foreground) {  // it must not outlive the command, however that ends
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != parent) ::_exit(1);
  }
  const int null = ::open("/dev/null", O_RDONLY);
  const int log = ::open((folder + "/logs/supervisor.log").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  ::dup2(null, 0), ::dup2(log, 1), ::dup2(log, 2);
  // Only the lock stays open of the descriptors of the command: a reader may wait for the end of a pipe.
  if (lock > 3) ::close_range(3, unsigned(lock) - 1, 0);
  ::close_range(unsigned(lock) + 1, ~0u, 0);
  int code = 1;
  try {
    code = supervise(plan, folder, program);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "moectl: error: the supervisor ends: %s\n", error.what());
  }
  std::fflush(nullptr);
  ::_exit(code);
}

// ---------------------------------------------------------------------------------------------- waiting
// One line per instance, drawn again in place on a terminal; a line for each change elsewhere.
class StartProgress {
 public:
  StartProgress() : live_(isatty(STDERR_FILENO)), start_(Clock::now()) {}

  void show(const DeployState& state) {
    std::string text;
    for (const InstanceStatus& instance : state.instances) {
      std::string what = instance.state;
      if (instance.state == "ready") what += fmt::format("  {}", instance.url);
      if (!instance.reason.empty()) what += fmt::format(" ({})", instance.reason);
      if (!instance.last_exit.empty() && instance.state != "ready") what += fmt::format(" ({})", instance.last_exit);
      if (live_) {
        text += fmt::format("\033[K  {:<12} {}\n", instance.id, what);
      } else if (std::string& last = shown_[instance.id]; last != what) {
        last = what;
        text += fmt::format("[{:6.2f} s] {:<12} {}\n", seconds(), instance.id, what);
      }
    }
    if (live_ && text == last_text_) return;
    if (live_ && num_lines_ > 0) std::fprintf(stderr, "\033[%zuA", num_lines_);
    last_text_ = text;
    if (live_) num_lines_ = state.instances.size();
    std::fputs(text.c_str(), stderr);
    std::fflush(stderr);
  }
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  const bool live_;
  const Clock::time_point start_;
  std::map<std::string, std::string> shown_;
  std::string last_text_;
  size_t num_lines_ = 0;
};

std::string last_lines(const std::string& folder, const std::string& instance, size_t count) {
  std::vector<std::string> lines;
  LogReader reader(log_path(folder, instance, false));
  reader.read([&lines](LogLine line) { lines.push_back(std::move(line.text)); });
  std::string text;
  for (size_t i = lines.size() > count ? lines.size() - count : 0; i < lines.size(); ++i)
    text += "  " + lines[i] + "\n";
  return text;
}

// The supervisor of this very start, not of an earlier one whose state is still there.
std::optional<DeployState> own_state(const std::string& folder, pid_t supervisor) {
  std::optional<DeployState> state = read_state(folder);
  if (!state || state->supervisor.pid != supervisor) return std::nullopt;
  return state;
}

int end_supervisor(pid_t supervisor, const Signals& signals) {
  ::kill(supervisor, SIGTERM);  // our child, not waited for yet
  int status = 0;
  while (::waitpid(supervisor, &status, WNOHANG) == 0)
    if (signals.wait(kLook)) ::kill(supervisor, SIGTERM);  // a second Ctrl-C: at once
  return status;
}

[[noreturn]] void throw_failed_start(const std::string& folder, pid_t supervisor) {
  const auto state = own_state(folder, supervisor);
  if (!state || state->failure.empty())
    throw Error(Code::kInternal, fmt::format("the supervisor ended; {}/logs/supervisor.log may say why", folder));
  const std::string said = last_lines(folder, state->failed_instance, 10);
  const Code code = state->failed_status == 65   ? Code::kBadData
                    : state->failed_status == 78 ? Code::kBadConfig
                                                 : Code::kInvalidArgument;
  throw Error(code, fmt::format("{}. The end of its log:\n{}Everything else was ended; the logs are in {}/logs",
                                state->failure, said, folder));
}

void print_ready(const DeployPlan& plan, const DeployState& state, double seconds, bool json) {
  if (json) {
    std::fputs(state_json(state).c_str(), stdout);
    return;
  }
  const std::string flag = plan.name == DeployPlan().name ? "" : " --name " + plan.name;
  std::printf(
      "\nReady after %.1f s: %s\n\n"
      "  curl -s %s/v1/chat/completions -H 'Content-Type: application/json' \\\n"
      "    -d '{\"model\": \"%s\", \"messages\": [{\"role\": \"user\", \"content\": \"What is 384 + 157?\"}]}'\n\n"
      "  moectl deploy status%s\n  moectl deploy logs%s -f\n  moectl debug-request --url %s --message 'Hello'\n"
      "  moectl deploy down%s\n",
      seconds, state.url.c_str(), state.url.c_str(), plan.served_model_name.c_str(), flag.c_str(), flag.c_str(),
      state.url.c_str(), flag.c_str());
  std::fflush(stdout);
}

// Watches until requests are answered. Returns a signal when one came.
std::optional<int> wait_until_ready(const DeployPlan& plan, const DeployOptions& options, const std::string& folder,
                                    pid_t supervisor, const Signals& signals, bool json) {
  StartProgress progress;
  const auto deadline = Clock::now() + options.ready_timeout;
  for (;;) {
    if (const auto signal = signals.wait(kLook)) return *signal;
    const bool ended = ::waitpid(supervisor, nullptr, WNOHANG) == supervisor;
    const std::optional<DeployState> state = own_state(folder, supervisor);
    if (state) progress.show(*state);
    if (ended) throw_failed_start(folder, supervisor);
    if (state && state->phase == "running" && requests_are_answered(*state)) {
      print_ready(plan, *state, progress.seconds(), json);
      return std::nullopt;
    }
    if (Clock::now() >= deadline) {
      end_supervisor(supervisor, signals);
      throw Error(Code::kUnavailable,
                  fmt::format("not ready within {} s (--ready-timeout); everything was ended. The logs "
                              "are in {}/logs",
                              options.ready_timeout.count(), folder));
    }
  }
}

int stay(const std::string& folder, pid_t supervisor, const Signals& signals) {
  StartProgress progress;
  for (;;) {
    if (const auto signal = signals.wait(milliseconds(100))) {
      std::fputs("\nEnding the deployment; Ctrl-C once more ends it at once.\n", stderr);
      end_supervisor(supervisor, signals);
      return exit_status(*signal);
    }
    if (::waitpid(supervisor, nullptr, WNOHANG) == supervisor) return 0;  // `deploy down` from elsewhere
    if (const auto state = own_state(folder, supervisor)) progress.show(*state);
  }
}

}  // namespace

int deploy_up(const CommonOptions& common, const DeployOptions& options) {
  const DeployPlan plan = make_plan(options);
  std::fputs(plan_text(plan).c_str(), common.json ? stderr : stdout);
  std::fflush(stdout);
  if (options.dry_run) return 0;
  const std::string folder = deploy_folder(plan.name);
  make_folder(folder);
  const int lock = lock_folder(plan, folder);
  check_port(plan);
  if (!confirmed(options)) return 1;
  std::fputs("\n", stderr);
  if (const auto before = read_state(folder)) end_leftovers(*before, options.stop_timeout);
  make_secret(folder);
  std::error_code none;
  fs::remove(folder + "/workers.json", none);

  const pid_t supervisor = start_supervisor(plan, folder, lock, options.foreground);
  ::close(lock);
  const Signals signals;
  if (const auto signal = wait_until_ready(plan, options, folder, supervisor, signals, common.json)) {
    std::fputs("\nEnding what was started.\n", stderr);
    end_supervisor(supervisor, signals);
    return *signal == SIGINT ? 130 : 1;
  }
  return options.foreground ? stay(folder, supervisor, signals) : 0;
}

int deploy_down(const DeployOptions& options) {
  const std::string name = name_of(options), folder = deploy_folder(name);
  std::optional<DeployState> state = read_state(folder);
  int num_running = 0;
  if (state)
    for (const InstanceStatus& instance : state->instances) num_running += is_alive(instance.process);
  const ProcessHandle supervisor(state ? state->supervisor : ProcessId{});
  if (!supervisor.alive() && num_running == 0) {
    std::printf("Deployment %s is not running.\n", name.c_str());
    return 0;
  }
  supervisor.signal(SIGTERM);
  if (!supervisor.wait(options.stop_timeout)) {
    std::fprintf(stderr, "Not ended within %lld s: killing what is left.\n",
                 static_cast<long long>(options.stop_timeout.count()));
    supervisor.signal(SIGTERM);  // the second one: at once
    if (!supervisor.wait(kLastGrace)) supervisor.signal(SIGKILL);
    supervisor.wait(kLastGrace);
  }
  // It may have started something after the state was read above.
  if (const auto last = read_state(folder)) state = last;
  end_leftovers(*state, options.stop_timeout);
  if (state->phase != "stopped" && state->phase != "failed") {  // the supervisor did not live to say so
    state->phase = "stopped";
    for (InstanceStatus& instance : state->instances) instance.state = "stopped", instance.process = {};
    write_state(folder, *state);
  }
  std::printf("Deployment %s has ended; its logs stay in %s/logs.\n", name.c_str(), folder.c_str());
  return 0;
}

}  // namespace moectl
