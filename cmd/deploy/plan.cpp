#include "cmd/deploy/plan.h"

#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>

#include "cmd/deploy/deploy_file.h"
#include "cmd/deploy/state.h"
#include "cmd/flags/flags.h"

extern char** environ;

namespace moectl {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxInstances = 64;

// The flag's, else the file's, else the default.
template <class T>
T first_given(const std::optional<T>& flag, const std::optional<T>& file, const T& otherwise) {
  return flag ? *flag : file.value_or(otherwise);
}

std::string command_of(std::string_view role) {
  return fmt::format("serve-{}", role);
}

// Flags that say who is who in the deployment: it sets them itself.
bool is_own_flag(std::string_view name) {
  for (std::string_view own : {"model", "served-model-name", "host", "port", "ops-port", "kv-port",
                               "cluster-secret-file", "workers-file", "prefill", "decode", "config", "help", "version"})
    if (name == own) return true;
  return false;
}

// As words for argv, checked against the flags of the role's command.
std::vector<std::string> read_flags(std::string_view role, const std::vector<DeployEntry>& entries) {
  const std::string command = command_of(role);
  std::vector<std::string> words;
  for (const DeployEntry& entry : entries) {
    const Flag* flag = find_flag(command, entry.key);
    if (!flag) {
      std::vector<std::string> names;
      for (const std::string& word : flag_words(command)) names.push_back(word.substr(2));
      const std::string near = closest(entry.key, names);
      throw Error(Code::kBadData, fmt::format("{}: `moectl {}` has no flag `{}`{}", entry.origin, command, entry.key,
                                              near.empty() ? fmt::format("; `moectl {} --help` lists them", command)
                                                           : fmt::format(", did you mean `{}`?", near)));
    }
    if (is_own_flag(flag->name))
      throw Error(Code::kBadData, fmt::format("{}: deploy sets this flag itself", entry.origin));
    if (flag->secret)
      throw Error(Code::kBadData, fmt::format("{}: a command line is visible to other users; set MOECTL_API_KEY in the "
                                              "environment of `moectl deploy up` instead",
                                              entry.origin));
    std::vector<GivenValue> values;
    for (const std::string& text : entry.values) values.push_back({text, entry.origin, Code::kBadData});
    RawOptions scratch;
    set_value(scratch, *flag, values);
    for (const std::string& text : entry.values) words.push_back(fmt::format("--{}={}", flag->name, text));
  }
  return words;
}

PlannedRole read_role(std::string_view role, const DeployFileRole& file, std::optional<int> given) {
  PlannedRole planned;
  planned.role = role;
  planned.instances = first_given(given, file.instances, planned.instances);
  if (planned.instances > kMaxInstances)
    throw Error(Code::kBadConfig,
                fmt::format("{} instances of {}: at most {} on one machine", planned.instances, role, kMaxInstances));
  planned.flags = read_flags(role, file.flags);
  for (const DeployEntry& entry : file.environment) {
    const bool good = !entry.key.empty() && std::all_of(entry.key.begin(), entry.key.end(),
                                                        [](unsigned char c) { return std::isalnum(c) || c == '_'; });
    if (!good) throw Error(Code::kBadData, fmt::format("{}: `{}` is no name of a variable", entry.origin, entry.key));
    if (entry.values.size() != 1) throw Error(Code::kBadData, fmt::format("{}: expected one value", entry.origin));
    planned.environment.emplace_back(entry.key, entry.values[0]);
  }
  return planned;
}

// What the instance itself will say about its flags is said here, before anything starts.
void check_role(PlannedRole& role, const DeployPlan& plan) {
  if (role.instances == 0) return;
  Environment environment;
  for (const auto& [name, value] : role.environment) environment[name] = value;
  try {
    const Options options = parse_command_line(instance_arguments(plan, role.role, "/", {}), environment).options;
    const Parallelism& p = options.engine.parallelism;
    role.ep_size = p.ep_size;
    role.dp_size = p.dp_size;
    role.tp_size = p.tp_size;
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", role.role, error.what()));
  }
}

std::string find_model(const std::optional<std::string>& model, const std::string& origin) {
  std::error_code failed;
  // Without one the demo checkpoint, as the workers find it.
  const std::string folder =
      model ? *model : parse_command_line({command_of(kDecodeRole)}, {}).options.engine.model_dir;
  const fs::path real = fs::canonical(folder, failed);
  if (failed || !fs::exists(real / "config.json", failed))
    throw Error(Code::kNotFound, fmt::format("{}: there is no checkpoint in `{}`. Models are not downloaded: give the "
                                             "path of a folder with config.json",
                                             origin, folder));
  return real.string();
}

}  // namespace

DeployPlan make_plan(const DeployOptions& options) {
  DeployFile file;
  if (!options.file.empty()) file = read_deploy_file(options.file);
  DeployPlan plan;
  plan.name = first_given(options.name, file.name, plan.name);
  plan.template_name = first_given(options.template_name, file.template_name, plan.template_name);
  if (plan.template_name != "ep-pd")
    throw Error(Code::kBadData, fmt::format("there is no template `{}`; ep-pd is the only one: a router, prefill and "
                                            "decode workers",
                                            plan.template_name));
  if (file.model)  // relative to the file, as it may be used from anywhere; an absolute path stays itself
    file.model = (fs::path(options.file).parent_path() / *file.model).string();
  plan.model = find_model(options.model ? options.model : file.model, options.model ? "--model" : "model");
  plan.served_model_name = file.served_model_name.value_or(fs::path(plan.model).filename().string());
  plan.host = first_given(options.host, file.host, plan.host);
  plan.port = first_given(options.port, file.port, plan.port);
  if (file.unhealthy_timeout) plan.unhealthy_timeout = std::chrono::seconds(*file.unhealthy_timeout);
  plan.unhealthy_timeout = options.unhealthy_timeout.value_or(plan.unhealthy_timeout);

  plan.router = read_role(kRouterRole, file.router, std::nullopt);
  plan.prefill = read_role(kPrefillRole, file.prefill, options.prefill);
  plan.decode = read_role(kDecodeRole, file.decode, options.decode);
  if (plan.router.instances != 1)
    throw Error(Code::kBadConfig,
                fmt::format("{} routers: a deployment on one machine has one", plan.router.instances));
  if (plan.decode.instances == 0)
    throw Error(Code::kBadConfig, "no decode worker: without one nothing can be answered; give at least 1");
  deploy_folder(plan.name);  // refuses a bad name
  for (PlannedRole* role : {&plan.prefill, &plan.decode, &plan.router}) check_role(*role, plan);
  return plan;
}

const PlannedRole& role_of(const DeployPlan& plan, std::string_view role) {
  return role == kPrefillRole ? plan.prefill : role == kDecodeRole ? plan.decode : plan.router;
}

std::vector<PlannedInstance> planned_instances(const DeployPlan& plan) {
  std::vector<PlannedInstance> instances;
  for (const PlannedRole* role : {&plan.prefill, &plan.decode, &plan.router})
    for (int i = 0; i < role->instances; ++i) instances.push_back({fmt::format("{}/{}", role->role, i), role->role});
  return instances;
}

std::string listen_address(const DeployPlan& plan, std::string_view role) {
  return role == kRouterRole ? plan.host : "127.0.0.1";
}

int try_port(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0)
    throw Error(Code::kInvalidArgument, fmt::format("host {} is no address of this machine", host));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, ::freeaddrinfo);
  const int fd = ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int one = 1;
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  const int error = ::bind(fd, found->ai_addr, found->ai_addrlen) == 0 ? 0 : errno;
  ::close(fd);
  return error;
}

InstancePorts ports_of(const DeployPlan& plan, const InstanceStatus& before) {
  const auto port_of = [](const std::string& endpoint) {  // "http://127.0.0.1:1234", "127.0.0.1:1234", or empty
    const size_t colon = endpoint.rfind(':');
    return colon == std::string::npos ? 0 : std::atoi(endpoint.c_str() + colon + 1);
  };
  const auto kept = [](const std::string& host, int port) { return port == 0 || try_port(host, port) != 0 ? 0 : port; };
  const std::string host = listen_address(plan, before.role);
  InstancePorts ports{.ops = kept("127.0.0.1", port_of(before.ops)), .kv = kept(host, port_of(before.kv))};
  if (before.role != kRouterRole) {
    ports.port = kept(host, port_of(before.url));
  } else {  // clients know it: another one would not help them, and a taken one may become free
    ports.port = before.url.empty() ? plan.port : port_of(before.url);
  }
  return ports;
}

std::vector<std::string> instance_arguments(const DeployPlan& plan, std::string_view role, const std::string& folder,
                                            const InstancePorts& ports) {
  const auto flag = [](std::string_view name, const auto& value) { return fmt::format("--{}={}", name, value); };
  const bool is_router = role == kRouterRole;
  std::vector<std::string> words = {command_of(role), flag("host", listen_address(plan, role)),
                                    flag("port", ports.port), flag("ops-port", ports.ops),
                                    flag("cluster-secret-file", folder + "/secret")};
  if (is_router) {
    words.push_back(flag("workers-file", folder + "/workers.json"));
  } else {
    words.push_back(flag("model", plan.model));
    words.push_back(flag("served-model-name", plan.served_model_name));
  }
  if (role == kPrefillRole) words.push_back(flag("kv-port", ports.kv));
  const std::vector<std::string>& more = role_of(plan, role).flags;
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

std::vector<std::string> instance_environment(const PlannedRole& role) {
  std::vector<std::string> result;
  const auto is_set_by_role = [&](std::string_view name) {
    return std::any_of(role.environment.begin(), role.environment.end(),
                       [&](const auto& e) { return e.first == name; });
  };
  for (char** entry = environ; entry && *entry; ++entry) {
    const std::string_view text(*entry), name = text.substr(0, text.find('='));
    const bool is_setting = (name.starts_with("MOECTL_") && name != "MOECTL_API_KEY") || name == "EP_SIZE" ||
                            name == "DP_SIZE" || name == "TP_SIZE";
    if (!is_setting && !is_set_by_role(name)) result.emplace_back(text);
  }
  for (const auto& [name, value] : role.environment) result.push_back(fmt::format("{}={}", name, value));
  return result;
}

std::string plan_text(const DeployPlan& plan) {
  std::string text = fmt::format("Deployment {}: template {}, model {} ({})\n\n", plan.name, plan.template_name,
                                 plan.model, plan.served_model_name);
  text += fmt::format("  {:<12} {:<15} {:<8} {:<18} {}\n", "INSTANCE", "COMMAND", "PORT", "RANKS", "FLAGS");
  std::vector<PlannedInstance> instances = planned_instances(plan);
  std::rotate(instances.begin(), instances.end() - 1, instances.end());  // the router first, as requests go
  for (const PlannedInstance& instance : instances) {
    const PlannedRole& role = role_of(plan, instance.role);
    const bool is_router = instance.role == kRouterRole;
    const std::string port = is_router && plan.port > 0 ? fmt::format("{}", plan.port) : "auto";
    const std::string ranks =
        is_router ? "-" : fmt::format("EP {} DP {} TP {}", role.ep_size, role.dp_size, role.tp_size);
    text += fmt::format("  {:<12} {:<15} {:<8} {:<18} {}\n", instance.id, command_of(instance.role), port, ranks,
                        role.flags.empty() ? "-" : fmt::format("{}", fmt::join(role.flags, " ")));
  }
  return text;
}

}  // namespace moectl
