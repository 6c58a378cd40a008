// The plan of a deployment: a router, prefill and decode workers as processes of this machine, resolved from flags,
// file and defaults, and from it the command line of each instance. Plain data and functions.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moectl {

struct DeployOptions;
struct InstanceStatus;

inline constexpr std::string_view kRouterRole = "router", kPrefillRole = "prefill", kDecodeRole = "decode";

struct PlannedRole {
  std::string role;  // "decode"
  int instances = 1;
  std::vector<std::string> flags;                                // beyond those that deploy sets itself
  std::vector<std::pair<std::string, std::string>> environment;  // beyond what is inherited
  int ep_size = 1, dp_size = 1, tp_size = 1;                     // of workers
};
struct DeployPlan {
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
DeployPlan make_plan(const DeployOptions& options);
std::string plan_text(const DeployPlan& plan);

struct PlannedInstance {
  std::string id;    // "decode/0"
  std::string role;  // "decode"
};
std::vector<PlannedInstance> planned_instances(const DeployPlan& plan);  // prefill, decode, router
const PlannedRole& role_of(const DeployPlan& plan, std::string_view role);

struct InstancePorts {
  int port = 0, ops = 0, kv = 0;  // 0: the system picks one
};
// Where an instance listens: where it did before its restart, unless another process has taken that port.
InstancePorts ports_of(const DeployPlan& plan, const InstanceStatus& before);
std::string listen_address(const DeployPlan& plan, std::string_view role);
// 0 when a server could listen there now, or errno. Throws Error{kInvalidArgument}: not an address of this machine.
int try_port(const std::string& host, int port);

// What one instance is started with. `folder` is the deployment's state folder.
std::vector<std::string> instance_arguments(const DeployPlan& plan, std::string_view role, const std::string& folder,
                                            const InstancePorts& ports);
// The environment of this process without the settings that belong to other commands, and the role's own.
std::vector<std::string> instance_environment(const PlannedRole& role);

}  // namespace moectl
