#include "core/serving/info_handlers.h"

#include <malloc.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/api/cluster.h"
#include "core/api/cost.h"
#include "core/api/json.h"
#include "core/api/openai_response.h"
#include "core/base/error.h"
#include "core/serving/expert_load.h"
#include "core/serving/generation.h"
#include "core/serving/job.h"
#include "core/serving/kv_role.h"
#include "core/serving/prepare.h"
#include "core/serving/request_context.h"

namespace moectl {
namespace {

using Json = nlohmann::ordered_json;

// A handler that computes its answer at once, on the I/O thread.
http::Handler immediate(http::Response (*answer)(Instance&, const http::Request&), Instance& instance) {
  return [answer, &instance](http::Exchange& exchange) -> Task<void> {
    http::Response response = answer(instance, exchange.request());
    co_await exchange.respond(std::move(response));
  };
}

// The same on the CPU pool, for answers that take time.
http::Handler pooled(http::Response (*answer)(Instance&, const http::Request&), Instance& instance) {
  return [answer, &instance](http::Exchange& exchange) -> Task<void> {
    const std::unique_ptr<Admission::Ticket> turn = co_await turn_to_prepare(instance, exchange);
    auto compute = [answer, &instance, &exchange] { return answer(instance, exchange.request()); };
    http::Response response = co_await run_on(instance.pool, std::move(compute));
    co_await exchange.respond(std::move(response));
  };
}

// ------------------------------------------------------------------------------------------------ models and text

http::Response list_models(Instance& instance, const http::Request&) {
  return json_response(api::models_response(instance.options.served_model_name, instance.started,
                                            instance.engine->info().max_model_len));
}

http::Response show_model(Instance& instance, const http::Request& request) {
  constexpr std::string_view kBefore = "/v1/models/";  // behind the EAS prefix, perhaps
  const std::string_view path = request.path;
  const std::string_view name = path.substr(path.find(kBefore) + kBefore.size());
  const std::string& served = instance.options.served_model_name;
  if (name.empty() || !instance.serves(name)) return error_response(api::model_not_found(name, served));
  return json_response(api::model_response(served, instance.started, instance.engine->info().max_model_len));
}

http::Response tokenize(Instance& instance, const http::Request& request) {
  const auto asked = api::read_tokenize_request(request.body, limits_of(instance));
  if (!instance.serves(asked.model))
    return error_response(api::model_not_found(asked.model, instance.options.served_model_name));
  api::check_tokenize(asked);
  const auto* prompt = std::get_if<std::string>(&asked.input);
  // A text of kMaxTokenizeBytes has no more tokens than that and what the template adds.
  const std::optional<std::vector<int32_t>> ids =
      prompt ? instance.text.encode_prompt(*prompt, asked.add_special_tokens, 2 * api::kMaxTokenizeBytes)
             : instance.text.encode_chat(std::get<api::ChatRequest>(asked.input), 2 * api::kMaxTokenizeBytes);
  if (!ids) throw Error(Code::kInvalidArgument, "the rendered messages are too long to be tokenized", "messages");
  std::function<std::string(int32_t)> token_text;
  if (asked.return_token_strs) token_text = [&text = instance.text](int32_t id) { return text.token_bytes(id); };
  return json_response(api::tokenize_response(*ids, instance.engine->info().max_model_len, token_text));
}

http::Response detokenize(Instance& instance, const http::Request& request) {
  const auto asked = api::read_detokenize_request(request.body, limits_of(instance));
  if (!instance.serves(asked.model))
    return error_response(api::model_not_found(asked.model, instance.options.served_model_name));
  if (!instance.text.tokenizer)
    throw Error(Code::kInvalidArgument, "this server runs with --skip-tokenizer-init and has no text", "tokens");
  return json_response(api::detokenize_response(instance.text.tokenizer->decode(asked.tokens, false)));
}

http::Response no_generation(Instance&, const http::Request&) {
  return error_response(api::from_status(
      404,
      "This is a prefill worker: it computes prompts for decode workers and answers no requests. Send them to the "
      "router (moectl serve-router), or to a decode worker"));
}

// ------------------------------------------------------------------------------------------------ operations

http::Response health(Instance& instance, const http::Request&) {
  const Health health = health_of(instance);
  if (health.state == Health::State::kLoading) return error_response(api::loading());
  if (!health.works()) return error_response(api::from_status(503, health.reason));
  return json_response(R"({"status":"ok"})");
}

http::Response liveness(Instance&, const http::Request&) {
  return json_response(R"({"status":"alive"})");
}

http::Response readiness(Instance& instance, const http::Request& request) {
  if (health_of(instance).state == Health::State::kDraining) return error_response(api::draining());
  http::Response response = health(instance, request);
  if (response.status == 200) response.body = R"({"status":"ready"})";
  return response;
}

// The engine's, with the choices that wait for admission to it.
EngineStats queue_stats(const Instance& instance) {
  EngineStats stats = instance.engine->stats();
  const Admission::Stats waiting = instance.admission.stats();
  stats.num_waiting += waiting.num_waiting;
  stats.num_tokens_in_flight += waiting.num_tokens_waiting;
  return stats;
}

http::Response metrics(Instance& instance) {
  http::Response response{.content_type = "text/plain; version=0.0.4; charset=utf-8"};
  InstanceReport report{.role = std::string(name_of(instance.options.role)),
                        .phase = std::string(name_of(health_of(instance).state))};
  EngineStats stats;
  KvTransferTotals transfers;
  if (instance.loaded()) {
    stats = queue_stats(instance);
    transfers = transfer_totals(instance);
    report.stats = &stats;
    report.info = &instance.engine->info();
    if (!instance.options.cluster_secret.empty()) report.transfers = &transfers;
  }
  response.body = instance.metrics.text(report);
  return response;
}

http::Handler metrics_handler(Instance& instance) {
  return [&instance](http::Exchange& exchange) -> Task<void> {
    if (instance.loaded()) co_await refresh_expert_load(instance);
    http::Response response = metrics(instance);
    co_await exchange.respond(std::move(response));
  };
}

http::Response version(Instance& instance, const http::Request&) {
  return json_response(api::to_text({{"version", instance.options.api.version}}));
}

// Where decode workers reach the KV port. A wildcard address is of no use to a peer; in its place stands the address by
// which this caller reached the server.
std::string kv_endpoint(const Instance& instance, const http::Request& request) {
  std::string host = instance.options.api.host;
  if (host == "0.0.0.0" || host == "::") {
    const std::string_view asked = request.header("host");
    const size_t colon = asked.rfind(':');
    const bool has_port = colon != std::string_view::npos && asked.find(']', colon) == std::string_view::npos;
    host = asked.substr(0, has_port ? colon : asked.size());
  }
  if (host.find(':') != std::string::npos && !host.starts_with('[')) host = "[" + host + "]";
  return fmt::format("{}:{}", host, instance.kv_server->port());
}

http::Response load(Instance& instance, const http::Request& request) {
  const Health health = health_of(instance);
  api::LoadReport report{.role = std::string(name_of(instance.options.role)),
                         .model = instance.options.served_model_name,
                         .state = std::string(name_of(health.state)),
                         .instance_id = instance.id,
                         .seconds_since_progress = health.seconds_since_progress};
  const int64_t unix_ms = read_clocks().unix_ms;
  report.cluster_problem =
      api::cluster_problem(request.headers, request.body, instance.options.cluster_secret, unix_ms);
  if (instance.loaded()) {
    const EngineStats stats = queue_stats(instance);
    const ModelInfo& info = instance.engine->info();
    if (instance.kv_server) report.kv_endpoint = kv_endpoint(instance, request);
    report.exactness = info.exactness;
    report.kv_format = info.kv_format;
    report.model_hash = info.model_hash;
    report.num_running = stats.num_running;
    report.num_waiting = stats.num_waiting;
    report.num_tokens_in_flight = stats.num_tokens_in_flight;
    report.kv_pages_total = stats.kv_pages_total;
    report.kv_pages_used = stats.kv_pages_used;
    report.max_model_len = info.max_model_len;
  }
  Json object = Json::parse(api::to_json(report));
  object["server_load"] = instance.num_in_flight();
  return json_response(api::to_text(object));
}

http::Response server_info(Instance& instance, const http::Request&) {
  const ModelInfo& info = instance.engine->info();
  const Parallelism& p = info.parallelism;
  return json_response(api::to_text(
      {{"version", instance.options.api.version},
       {"role", name_of(instance.options.role)},
       {"state", name_of(health_of(instance).state)},
       {"model", instance.options.served_model_name},
       {"architecture", info.architecture},
       {"vocab_size", info.vocab_size},
       {"max_model_len", info.max_model_len},
       {"eos_token_ids", info.eos_token_ids},
       {"num_params", info.num_params},
       {"weight_bytes", info.weight_bytes},
       {"kv_bytes_per_token", info.kv_bytes_per_token},
       {"kv_pool_tokens", info.kv_pool_tokens},
       {"exactness", info.exactness},
       {"kv_format", info.kv_format},
       {"parallelism", {{"ep_size", p.ep_size}, {"dp_size", p.dp_size}, {"tp_size", p.tp_size}}},
       {"all2all_backend", info.all2all_backend ? Json(all2all_backend_name(*info.all2all_backend)) : Json(nullptr)},
       {"reasoning_parser", instance.text.reasoning ? Json(instance.text.reasoning->name) : Json(nullptr)},
       {"tool_call_parser", instance.text.tool_calls ? Json(instance.text.tool_calls->name) : Json(nullptr)}}));
}

http::Response drain(Instance& instance, const http::Request&) {
  start_draining(instance);
  return json_response(api::to_text({{"status", "draining"}, {"in_flight", instance.num_in_flight()}}));
}

http::Response undrain(Instance& instance, const http::Request&) {
  if (!stop_draining(instance))
    return error_response(api::from_status(409, "The server is shutting down and takes no new requests"));
  return json_response(api::to_text({{"status", name_of(health_of(instance).state)}}));
}

http::Response flush_cache(Instance& instance, const http::Request&) {
  instance.engine->flush_prefix_cache();
  malloc_trim(0);
  return json_response(R"({"status":"flushed"})");
}

// ------------------------------------------------------------------------------------------------ routes

// Changes the state of the instance.
Route administration(const char* path, http::Response (*answer)(Instance&, const http::Request&), Instance& instance) {
  return {"POST", path,
          for_administrators(instance.administration, when_ready(instance, false, immediate(answer, instance)))};
}

void add_operations(Instance& instance, std::vector<Route>& routes) {
  routes.push_back({"GET", "/health", immediate(health, instance)});
  routes.push_back({"GET", "/liveness", immediate(liveness, instance)});
  routes.push_back({"GET", "/readiness", immediate(readiness, instance)});
  routes.push_back({"GET", "/metrics", metrics_handler(instance)});
  routes.push_back({"GET", "/version", immediate(version, instance)});
  routes.push_back({"GET", "/load", immediate(load, instance)});
}

}  // namespace

std::vector<Route> data_routes(Instance& instance) {
  std::vector<Route> routes;
  if (instance.options.role == Role::kDecode) {
    routes.push_back({"POST", "/v1/chat/completions", chat_handler(instance)});
    routes.push_back({"POST", "/v1/completions", completion_handler(instance)});
    routes.push_back({"POST", "/tokenize", when_ready(instance, false, pooled(tokenize, instance))});
    routes.push_back({"POST", "/detokenize", when_ready(instance, false, pooled(detokenize, instance))});
  } else {
    for (const char* path : {"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"})
      routes.push_back({"POST", path, immediate(no_generation, instance)});
  }
  routes.push_back({"GET", "/v1/models", when_ready(instance, false, immediate(list_models, instance))});
  routes.push_back({"GET", "/v1/models/*", when_ready(instance, false, immediate(show_model, instance))});
  add_operations(instance, routes);
  add_eas_prefix(routes);
  return routes;
}

std::vector<Route> ops_routes(Instance& instance) {
  std::vector<Route> routes;
  add_operations(instance, routes);
  routes.push_back({"GET", "/server_info", when_ready(instance, false, immediate(server_info, instance))});
  routes.push_back(administration("/drain", drain, instance));
  routes.push_back(administration("/undrain", undrain, instance));
  routes.push_back(administration("/flush_cache", flush_cache, instance));
  return routes;
}

}  // namespace moectl
