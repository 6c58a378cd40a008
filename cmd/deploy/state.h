// The folder of a deployment and the state its supervisor keeps there: who runs, since when, where. Written by the
// supervisor alone (atomically, so that a reader sees one whole state), read by the deploy commands. A process is
// known by its number, the time it started and the boot: a recycled number is never taken for it.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moectl {

struct ProcessId {
  int pid = 0;               // 0: none
  uint64_t start_ticks = 0;  // since boot; /proc/PID/stat
  std::string boot;
};
ProcessId identify(int pid);  // pid 0 when there is no such process

// A handle of a process that cannot come to mean another one. Empty when that process is gone.
class ProcessHandle {
 public:
  explicit ProcessHandle(const ProcessId& id);
  ~ProcessHandle();
  ProcessHandle(const ProcessHandle&) = delete;
  bool alive() const { return wait(std::chrono::milliseconds(0)) == false; }
  bool signal(int number) const;                       // false: it is gone
  bool wait(std::chrono::milliseconds timeout) const;  // true: it has ended

 private:
  int fd_ = -1;
};
inline bool is_alive(const ProcessId& id) {
  return ProcessHandle(id).alive();
}
bool is_stopped(const ProcessId& id);  // by SIGSTOP or a debugger

struct InstanceStatus {
  std::string id, role, state;  // state: router/supervisor.h
  ProcessId process;
  std::string url, ops, kv;  // of the last ready line
  int restarts = 0, ep_size = 1;
  int64_t started_unix_ms = 0, retry_unix_ms = 0;  // 0: not
  std::string last_exit;                           // "killed by signal 9"; empty: never ended
  std::string reason;                              // why it is unhealthy: "no answer"
};
struct DeployState {
  std::string name;
  std::string phase;    // starting | running | stopping | stopped | failed
  std::string failure;  // why it is failed: an instance and its end
  std::string failed_instance;
  int failed_status = 0;  // its exit status; 0: a signal
  ProcessId supervisor;
  std::string model, served_model_name, url;  // url: of the router
  int64_t started_unix_ms = 0;
  std::vector<InstanceStatus> instances;
};

std::string state_root();                            // $XDG_STATE_HOME/moectl or ~/.local/state/moectl
std::string deploy_folder(const std::string& name);  // below it. Throws Error{kUsage} on a bad name
void write_state(const std::string& folder, const DeployState& state);
std::optional<DeployState> read_state(const std::string& folder);  // nullopt: there is none. Throws Error{kBadData}
std::string state_json(const DeployState& state);

// Writes a temporary file and renames it; what could not be written whole is removed. Throws Error{kUnavailable}.
void write_file_atomically(const std::string& path, std::string_view text, int mode);

int64_t unix_ms();

}  // namespace moectl
