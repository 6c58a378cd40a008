// `moectl deploy up|status|logs|down`: a router, prefill and decode workers as processes of this machine, from one
// description. `up` leaves a supervisor behind (supervise.cpp) that owns the processes; everybody else reads the
// state it writes (state.h). These are the options and the plan, plain data.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moectl {

struct CommonOptions;
struct InstanceStatus;

// Everything that flags of the four commands set; -1, empty and an unhealthy_timeout of 0: not given.
struct DeployOptions {
  std::string name;
  // up
  std::string file, template_name, model, host;
  int prefill = -1, decode = -1, port = -1;
  bool yes = false, foreground = false, dry_run = false;
  std::chrono::seconds ready_timeout{300}, unhealthy_timeout{0};
  // logs
  std::string instance, since, grep;
  bool follow = false, previous = false;
  int tail = 0;  // 0: everything
  // down
  std::chrono::seconds stop_timeout{30};
};

int deploy_up(const CommonOptions& common, const DeployOptions& options);      // cmd/deploy/deploy.cpp
int deploy_down(const DeployOptions& options);                                 // cmd/deploy/deploy.cpp
int deploy_status(const CommonOptions& common, const DeployOptions& options);  // cmd/deploy/status.cpp
int deploy_logs(const CommonOptions& common, const DeployOptions& options);    // cmd/deploy/logs.cpp

// ---------------------------------------------------------------------------------------------- a deployment file
// One entry of a mapping in the file, and where it stands ("FILE:12: decode.flags.max-num-seqs").
struct DeployEntry {
  std::string key;
  std::vector<std::string> values;
  std::string origin;
};
struct DeployFileRole {
  int instances = -1;
  std::vector<DeployEntry> flags, environment;
};
struct DeployFile {
  std::string name, template_name, model, served_model_name, host;
  int port = -1, unhealthy_timeout = -1;  // seconds
  DeployFileRole router, prefill, decode;
};
// cmd/flags/config_file.cpp. Throws Error{kNotFound, kBadData} that name file, line and key.
DeployFile read_deploy_file(const std::string& path);

// ---------------------------------------------------------------------------------------------- the plan
inline constexpr std::string_view kRouterRole = "router", kPrefillRole = "prefill", kDecodeRole = "decode";

struct PlannedRole {
  std::string role;  // "decode"
  int instances = 1;
  std::vector<std::string> flags;                                // beyond those that deploy sets itself
  std::vector<std::pair<std::string, std::string>> environment;  // beyond what is inherited
  int ep_size = 1, dp_size = 1, tp_size = 1;                     // of workers
};
struct Plan {
  std::string name = "demo", template_name = "ep-pd";
  std::string model;  // absolute
  std::string served_model_name;
  std::string host = "127.0.0.1";              // of the router; workers listen on loopback
  int port = 8080;                             // of the router; 0: the system picks one
  std::chrono::seconds unhealthy_timeout{30};  // an instance that fails its probes for so long is started again
  PlannedRole prefill, decode, router;
};
// Everything that can be known to be wrong is refused here, before a process starts: names, flags and sizes are read by
// the parser of the commands that will get them. Throws Error{kUsage, kNotFound, kBadData, kBadConfig}.
Plan make_plan(const DeployOptions& options);
std::string plan_text(const Plan& plan);

struct PlannedInstance {
  std::string id;    // "decode/0"
  std::string role;  // "decode"
};
std::vector<PlannedInstance> planned_instances(const Plan& plan);  // prefill, decode, router
const PlannedRole& role_of(const Plan& plan, std::string_view role);

struct InstancePorts {
  int port = 0, ops = 0, kv = 0;  // 0: the system picks one
};
// Where an instance listens: where it did before its restart, unless another process has taken that port.
InstancePorts ports_of(const Plan& plan, const InstanceStatus& before);
std::string listen_address(const Plan& plan, std::string_view role);
// 0 when a server could listen there now, or errno. Throws Error{kInvalidArgument}: not an address of this machine.
int try_port(const std::string& host, int port);

// What one instance is started with. `folder` is the deployment's state folder.
std::vector<std::string> instance_arguments(const Plan& plan, std::string_view role, const std::string& folder,
                                            const InstancePorts& ports);
// The environment of this process without the settings that belong to other commands, and the role's own.
std::vector<std::string> instance_environment(const PlannedRole& role);

// Runs the deployment until it is told to end: SIGTERM or SIGINT in order, a second one at once. Called in a process of
// its own that holds the lock of the folder. Returns the exit status.                     cmd/deploy/supervise.cpp
int supervise(const Plan& plan, const std::string& folder, const std::string& program);

// "5m", "90s", "1h30m", "2d"; a bare number is seconds. Throws Error{kUsage}.                  cmd/deploy/logs.cpp
std::chrono::seconds parse_duration(std::string_view text, std::string_view origin);

}  // namespace moectl
