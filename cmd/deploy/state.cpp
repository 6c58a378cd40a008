#include "cmd/deploy/state.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/base/error.h"
#include "core/base/json_depth.h"

namespace moectl {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;

std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text;
  std::getline(file, text);
  return text;
}

// /proc/PID/stat from field 3, the state, on; empty: there is no such process. The name in field 2 may hold anything,
// also `)`.
std::string stat_fields(int pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text);
  const size_t end = text.rfind(") ");
  return end == text.npos ? "" : text.substr(end + 2);
}

// Field 22; 0: there is no such process.
uint64_t start_ticks(int pid) {
  std::istringstream fields(stat_fields(pid));
  std::string skipped;
  for (int i = 3; i < 22; ++i) fields >> skipped;
  uint64_t ticks = 0;
  return fields >> ticks ? ticks : 0;
}

Json to_json(const ProcessId& id) {
  return {{"pid", id.pid}, {"start_ticks", id.start_ticks}, {"boot", id.boot}};
}

ProcessId process_id(const Json& json) {
  ProcessId id;
  id.pid = json.at("pid").get<int>();
  id.start_ticks = json.at("start_ticks").get<uint64_t>();
  id.boot = json.at("boot").get<std::string>();
  return id;
}

Json to_json(const InstanceStatus& i) {
  return {{"id", i.id},
          {"role", i.role},
          {"state", i.state},
          {"process", to_json(i.process)},
          {"url", i.url},
          {"ops", i.ops},
          {"kv", i.kv},
          {"restarts", i.restarts},
          {"ep_size", i.ep_size},
          {"started_unix_ms", i.started_unix_ms},
          {"retry_unix_ms", i.retry_unix_ms},
          {"last_exit", i.last_exit},
          {"reason", i.reason}};
}

InstanceStatus instance_status(const Json& json) {
  InstanceStatus i;
  i.id = json.at("id").get<std::string>();
  i.role = json.at("role").get<std::string>();
  i.state = json.at("state").get<std::string>();
  i.process = process_id(json.at("process"));
  i.url = json.at("url").get<std::string>();
  i.ops = json.at("ops").get<std::string>();
  i.kv = json.at("kv").get<std::string>();
  i.restarts = json.at("restarts").get<int>();
  i.ep_size = json.at("ep_size").get<int>();
  i.started_unix_ms = json.at("started_unix_ms").get<int64_t>();
  i.retry_unix_ms = json.at("retry_unix_ms").get<int64_t>();
  i.last_exit = json.at("last_exit").get<std::string>();
  i.reason = json.value("reason", "");
  return i;
}

}  // namespace

// ---------------------------------------------------------------------------------------------- processes
ProcessId identify(int pid) {
  const uint64_t ticks = start_ticks(pid);
  return ticks == 0 ? ProcessId{} : ProcessId{pid, ticks, boot_id()};
}

ProcessHandle::ProcessHandle(const ProcessId& id) {
  if (id.pid <= 1 || id.boot != boot_id()) return;
  fd_ = int(::syscall(SYS_pidfd_open, id.pid,
                      0));  // first: whoever has the number now keeps it while the start time is compared
  if (fd_ >= 0 && start_ticks(id.pid) != id.start_ticks) {
    ::close(fd_);
    fd_ = -1;
  }
}

ProcessHandle::~ProcessHandle() {
  if (fd_ >= 0) ::close(fd_);
}

bool is_stopped(const ProcessId& id) {
  if (!is_alive(id)) return false;
  const std::string fields = stat_fields(id.pid);
  return fields.starts_with('T') || fields.starts_with('t');
}

bool ProcessHandle::signal(int number) const {
  return fd_ >= 0 && ::syscall(SYS_pidfd_send_signal, fd_, number, nullptr, 0) == 0;
}

bool ProcessHandle::wait(std::chrono::milliseconds timeout) const {
  if (fd_ < 0) return true;
  pollfd entry{fd_, POLLIN, 0};
  return ::poll(&entry, 1, int(timeout.count())) > 0;
}

// ---------------------------------------------------------------------------------------------- files
std::string state_root() {
  if (const char* state = std::getenv("XDG_STATE_HOME"); state && *state == '/') return fmt::format("{}/moectl", state);
  const char* home = std::getenv("HOME");
  if (!home || *home != '/')
    throw Error(Code::kBadConfig, "no folder for the state of deployments: set HOME or XDG_STATE_HOME");
  return fmt::format("{}/.local/state/moectl", home);
}

std::string deploy_folder(const std::string& name) {
  const bool good = !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '-' || c == '_';
  });
  if (!good)
    throw Error(Code::kUsage, fmt::format("'{}' is no name for a deployment: letters, digits, `-` and `_`, at most 64",
                                          name.substr(0, 80)));
  return fmt::format("{}/{}", state_root(), name);
}

void write_file_atomically(const std::string& path, std::string_view text, int mode) {
  const std::string beside = path + ".new";
  const int fd = ::open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  int error = fd >= 0 ? 0 : errno;
  for (std::string_view rest = text; error == 0 && !rest.empty();) {
    const ssize_t n = ::write(fd, rest.data(), rest.size());
    if (n > 0)
      rest.remove_prefix(size_t(n));
    else if (errno != EINTR)
      error = errno;
  }
  if (fd >= 0 && ::close(fd) != 0 && error == 0) error = errno;
  if (error == 0 && ::rename(beside.c_str(), path.c_str()) != 0) error = errno;
  if (error == 0) return;
  if (fd >= 0) ::unlink(beside.c_str());
  throw Error(Code::kUnavailable, fmt::format("{} cannot be written: {}", path, std::strerror(error)));
}

std::string state_json(const DeployState& s) {
  Json instances = Json::array();
  for (const InstanceStatus& i : s.instances) instances.push_back(to_json(i));
  const Json json = {{"version", kVersion},
                     {"name", s.name},
                     {"phase", s.phase},
                     {"failure", s.failure},
                     {"failed_instance", s.failed_instance},
                     {"failed_status", s.failed_status},
                     {"supervisor", to_json(s.supervisor)},
                     {"model", s.model},
                     {"served_model_name", s.served_model_name},
                     {"url", s.url},
                     {"started_unix_ms", s.started_unix_ms},
                     {"instances", instances}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void write_state(const std::string& folder, const DeployState& state) {
  write_file_atomically(folder + "/state.json", state_json(state), 0600);
}

std::optional<DeployState> read_state(const std::string& folder) {
  const std::string path = folder + "/state.json";
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  try {
    check_json_depth(text, 16, path);
    const Json json = Json::parse(text);
    if (json.at("version").get<int>() != kVersion) throw Error(Code::kBadData, "written by another version");
    DeployState s;
    s.name = json.at("name").get<std::string>();
    s.phase = json.at("phase").get<std::string>();
    s.failure = json.at("failure").get<std::string>();
    s.failed_instance = json.at("failed_instance").get<std::string>();
    s.failed_status = json.at("failed_status").get<int>();
    s.supervisor = process_id(json.at("supervisor"));
    s.model = json.at("model").get<std::string>();
    s.served_model_name = json.at("served_model_name").get<std::string>();
    s.url = json.at("url").get<std::string>();
    s.started_unix_ms = json.at("started_unix_ms").get<int64_t>();
    for (const Json& i : json.at("instances")) s.instances.push_back(instance_status(i));
    return s;
  } catch (const std::exception& error) {
    throw Error(Code::kBadData, fmt::format("{} cannot be used: {}. Remove it when nothing of that deployment runs",
                                            path, error.what()));
  }
}

int64_t unix_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace moectl
