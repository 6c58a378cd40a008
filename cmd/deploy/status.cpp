// `moectl deploy status`: what the state says, what is really alive, and what the instances say of themselves.
#include "cmd/deploy/status.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cmd/command.h"
#include "cmd/deploy/plan.h"
#include "cmd/deploy/probe.h"
#include "cmd/deploy/state.h"
#include "core/base/error.h"
#include "core/base/json_depth.h"
#include "core/http/client.h"
#include "core/http/spawn.h"

namespace moectl {
namespace {

using Json = nlohmann::ordered_json;

struct Answers {
  std::vector<std::optional<InstanceHealth>> health;  // by instance; nullopt: not asked
  std::vector<std::string> metrics;                   // by instance; empty: none
  std::string workers;                                // the router's view of them
};

template <class T, class Slot>
Task<void> store(Task<T> task, Slot* slot) {
  *slot = co_await std::move(task);
}

Task<void> ask_all(const DeployState& state, Answers& answers) {
  const auto client = http::Client::create();
  std::vector<Task<void>> tasks;
  for (size_t i = 0; i < state.instances.size(); ++i) {
    const InstanceStatus& instance = state.instances[i];
    if ((instance.state != "ready" && instance.state != "unhealthy") || instance.ops.empty()) continue;
    tasks.push_back(store(ask_instance(*client, instance.role, instance.ops), &answers.health[i]));
    if (instance.role == kDecodeRole)
      tasks.push_back(store(get_text(*client, instance.ops + "/metrics"), &answers.metrics[i]));
    if (instance.role == kRouterRole)
      tasks.push_back(store(get_text(*client, instance.ops + "/workers"), &answers.workers));
  }
  co_await http::run_all(std::move(tasks));
}

// What the instances say now replaces what the supervisor wrote: it may be stopped itself.
void take_over(DeployState& state, const Answers& answers) {
  for (size_t i = 0; i < state.instances.size(); ++i) {
    if (!answers.health[i]) continue;
    InstanceStatus& instance = state.instances[i];
    instance.state = answers.health[i]->state;
    instance.reason = answers.health[i]->reason;
    if (!answers.health[i]->healthy() && is_stopped(instance.process)) instance.reason += ": the process is stopped";
  }
}

Task<void> ask_router(std::string ops, std::string* workers) {
  const auto client = http::Client::create();
  *workers = co_await get_text(*client, ops + "/workers");
}

Json parse_object(const std::string& text) {
  try {
    check_json_depth(text, 16, "answer");
  } catch (const Error&) {
    return nullptr;
  }
  Json json = Json::parse(text, nullptr, false);
  return json.is_object() ? json : Json(nullptr);
}

int64_t number(const Json& load, const char* key) {
  return load.is_object() && load.contains(key) && load[key].is_number() ? load[key].get<int64_t>() : 0;
}

// Of one sample without labels.
int64_t metric(const std::string& text, const std::string& name) {
  const size_t at = text.starts_with(name + " ") ? 0 : text.find("\n" + name + " ");
  if (at == std::string::npos) return 0;
  return int64_t(std::atof(text.c_str() + text.find(' ', at) + 1));
}

std::string duration_text(int64_t ms) {
  const int64_t s = std::max<int64_t>(0, ms / 1000);
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02}m", s / 3600, s % 3600 / 60);
  return fmt::format("{}d{:02}h", s / 86400, s % 86400 / 3600);
}

std::string load_text(const InstanceStatus& instance, const Json& load) {
  if (!instance.reason.empty()) return instance.reason;
  if (!load.is_object()) return "-";
  if (instance.role == kRouterRole)
    return fmt::format("{} in flight, {} waiting", number(load, "in_flight"), number(load, "waiting"));
  return fmt::format("{} running, {} waiting, {} tokens, KV {}/{} pages", number(load, "num_running"),
                     number(load, "num_waiting"), number(load, "num_tokens_in_flight"), number(load, "kv_pages_used"),
                     number(load, "kv_pages_total"));
}

std::string port_text(const std::string& url) {
  const size_t colon = url.rfind(':');
  return colon == std::string::npos ? "-" : url.substr(colon + 1);
}

// Whether the router finds every worker ready where it is now: after a restart it looks at the old place for a moment.
bool router_finds_all(const DeployState& state, const std::string& workers) {
  const Json answer = parse_object(workers);
  if (!answer.is_object() || !answer.contains("workers") || !answer["workers"].is_array()) return false;
  return std::all_of(state.instances.begin(), state.instances.end(), [&answer](const InstanceStatus& instance) {
    if (instance.role == kRouterRole) return true;
    return std::any_of(answer["workers"].begin(), answer["workers"].end(), [&instance](const Json& worker) {
      return worker.is_object() && worker.value("url", Json()) == instance.url &&
             worker.value("state", Json()) == "ready";
    });
  });
}

struct DeploySummary {
  size_t num_ready = 0;
  bool path_ready = false;  // the router finds every worker ready
  int64_t running = 0, waiting = 0, prompt_tokens = 0, generated_tokens = 0;
};

DeploySummary summarize(const DeployState& state, const std::vector<Json>& loads, const Answers& answers) {
  DeploySummary sum;
  for (size_t i = 0; i < state.instances.size(); ++i) {
    const InstanceStatus& instance = state.instances[i];
    sum.num_ready += instance.state == "ready";
    if (instance.role == kDecodeRole) sum.running += number(loads[i], "num_running");
    sum.waiting += number(loads[i], instance.role == kRouterRole ? "waiting" : "num_waiting");
    sum.prompt_tokens += metric(answers.metrics[i], "moectl_prompt_tokens_total");
    sum.generated_tokens += metric(answers.metrics[i], "moectl_generation_tokens_total");
  }
  sum.path_ready = router_finds_all(state, answers.workers);
  return sum;
}

void print_json(const DeployState& state, const DeploySummary& sum, const std::vector<Json>& loads, bool supervised) {
  Json json = Json::parse(state_json(state));
  json["supervised"] = supervised;
  json["ready"] = sum.num_ready == state.instances.size() && sum.path_ready;
  json["instances_ready"] = sum.num_ready;
  json["requests_running"] = sum.running;
  json["requests_waiting"] = sum.waiting;
  json["prompt_tokens_total"] = sum.prompt_tokens;
  json["generation_tokens_total"] = sum.generated_tokens;
  for (size_t i = 0; i < state.instances.size(); ++i) {
    const InstanceStatus& instance = state.instances[i];
    json["instances"][i]["load"] = loads[i];
    json["instances"][i]["uptime_seconds"] =
        instance.process.pid > 0 ? double(unix_ms() - instance.started_unix_ms) / 1000 : 0.0;
  }
  std::fputs((json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n").c_str(), stdout);
}

void print_text(const DeployState& state, const DeploySummary& sum, const std::vector<Json>& loads, bool supervised) {
  std::string text = fmt::format("{}: {}, {}/{} instances ready, {} requests running, {} waiting, {} tokens in, {} out",
                                 state.name, state.phase, sum.num_ready, state.instances.size(), sum.running,
                                 sum.waiting, sum.prompt_tokens, sum.generated_tokens);
  if (!state.url.empty()) text += fmt::format("  {}", state.url);
  text += fmt::format("\n\n  {:<12} {:<9} {:<8} {:<9} {:<6} {:<5} {}\n", "INSTANCE", "STATE", "UPTIME", "RESTARTS",
                      "PORT", "PID", "LOAD");
  for (size_t i = 0; i < state.instances.size(); ++i) {
    const InstanceStatus& instance = state.instances[i];
    const bool runs = instance.process.pid > 0;
    text += fmt::format("  {:<12} {:<9} {:<8} {:<9} {:<6} {:<5} {}", instance.id, instance.state,
                        runs ? duration_text(unix_ms() - instance.started_unix_ms) : "-", instance.restarts,
                        port_text(instance.url), runs ? std::to_string(instance.process.pid) : "-",
                        load_text(instance, loads[i]));
    if (!instance.last_exit.empty()) text += fmt::format("; last ended: {}", instance.last_exit);
    text += "\n";
  }
  if (!supervised)
    text += fmt::format("\nThe supervisor is {}: nothing is restarted. `moectl deploy down` ends what is left.\n",
                        is_stopped(state.supervisor) ? "stopped" : "gone");
  if (sum.num_ready == state.instances.size() && !sum.path_ready)
    text += "\nThe router does not find every worker ready yet.\n";
  std::fputs(text.c_str(), stdout);
}

}  // namespace

bool requests_are_answered(const DeployState& state) {
  std::string workers;
  for (const InstanceStatus& instance : state.instances) {
    if (instance.state != "ready") return false;
    if (instance.role == kRouterRole) http::run_blocking(ask_router(instance.ops, &workers));
  }
  return router_finds_all(state, workers);
}

int deploy_status(const CommonOptions& common, const DeployOptions& options) {
  const std::string name = options.name.value_or(DeployPlan().name);
  std::optional<DeployState> state = read_state(deploy_folder(name));
  const bool supervisor_alive = state && is_alive(state->supervisor);
  const bool supervised = supervisor_alive && !is_stopped(state->supervisor);
  size_t num_alive = 0;
  if (state)
    for (InstanceStatus& instance : state->instances) {
      if (is_alive(instance.process)) {
        ++num_alive;
      } else if (!supervisor_alive) {
        instance.process = {};
        instance.state = "gone";
      }
    }
  if (!supervisor_alive && num_alive == 0) {
    std::string why =
        state && !state->failure.empty() ? fmt::format(" The last start failed: {}.", state->failure) : "";
    throw Error(Code::kUnavailable,
                fmt::format("deployment {} is not running.{} `moectl deploy up` starts one", name, why));
  }
  Answers answers;
  answers.health.resize(state->instances.size());
  answers.metrics.resize(state->instances.size());
  http::run_blocking(ask_all(*state, answers));
  take_over(*state, answers);
  std::vector<Json> loads;
  for (const auto& health : answers.health) loads.push_back(health ? parse_object(health->load) : Json(nullptr));
  const DeploySummary sum = summarize(*state, loads, answers);
  (common.json ? print_json : print_text)(*state, sum, loads, supervised);
  return supervised && sum.num_ready == state->instances.size() && sum.path_ready ? 0 : 1;
}

}  // namespace moectl
