#include "router/routes.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "core/api/json.h"
#include "router/proxy.h"

namespace moectl::router {
namespace {

using Json = nlohmann::ordered_json;

// No round of probes for this long: the router hangs.
constexpr std::chrono::seconds kWatchdog{30};
constexpr std::string_view kModelPath = "/v1/models/";

struct ForwardedPath {
  const char *method, *path;
  Forwarding forwarding;
};
constexpr ForwardedPath kForwarded[] = {
    {"POST", "/v1/chat/completions", Forwarding::kGenerate},
    {"POST", "/v1/completions", Forwarding::kGenerate},
    {"POST", "/tokenize", Forwarding::kBody},
    {"POST", "/detokenize", Forwarding::kBody},
    {"GET", "/v1/models", Forwarding::kPlain},
};

http::Handler immediate(http::Response (*answer)(RouterContext&), RouterContext& context) {
  return [answer, &context](http::Exchange& exchange) -> Task<void> {
    http::Response response = answer(context);
    co_await exchange.respond(std::move(response));
  };
}

// ------------------------------------------------------------------------------------------------ operations

http::Response health(RouterContext& context) {
  const TimePoint last{TimePoint::duration(context.last_probe_round.load())};
  if (last != TimePoint{} && Clock::now() - last > kWatchdog)
    return error_response(api::from_status(503, "The router's prober makes no progress"));
  return json_response(R"({"status":"ok"})");
}

http::Response liveness(RouterContext&) {
  return json_response(R"({"status":"alive"})");
}

http::Response readiness(RouterContext& context) {
  if (context.draining) return error_response(api::draining());
  if (const std::string reason = not_ready_reason(context); !reason.empty())
    return error_response(api::from_status(503, reason));
  const TimePoint now = Clock::now();
  return json_response(api::to_text({{"status", "ready"},
                                     {"decode_workers", context.dispatcher.num_ready(Role::kDecode, now)},
                                     {"prefill_workers", context.dispatcher.num_ready(Role::kPrefill, now)}}));
}

http::Response metrics(RouterContext& context) {
  http::Response response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = context.metrics.text(context.dispatcher, context.in_flight, Clock::now());
  return response;
}

http::Response version(RouterContext& context) {
  return json_response(api::to_text({{"version", context.options.api.version}}));
}

http::Response load(RouterContext& context) {
  return json_response(api::to_text(
      {{"role", "router"}, {"in_flight", context.in_flight.load()}, {"waiting", context.dispatcher.num_waiting()}}));
}

// ------------------------------------------------------------------------------------------------ administration

http::Response workers(RouterContext& context) {
  Json list = Json::array();
  for (const WorkerView& w : context.dispatcher.view(Clock::now()))
    list.push_back({{"id", w.id},
                    {"role", name_of(w.address.role)},
                    {"url", w.address.url},
                    {"state", name_of(w.state)},
                    {"reason", w.reason},
                    {"breaker_open", w.breaker_open},
                    {"requests", w.in_flight},
                    {"load_requests", w.load_requests},
                    {"load_tokens", w.load_tokens},
                    {"model", w.report.model},
                    {"kv_endpoint", w.report.kv_endpoint},
                    {"exactness", w.report.exactness},
                    {"kv_pages_used", w.report.kv_pages_used},
                    {"kv_pages_total", w.report.kv_pages_total}});
  return json_response(api::to_text({{"workers", list}, {"waiting", context.dispatcher.num_waiting()}}));
}

http::Response drain(RouterContext& context) {
  context.draining = true;
  return json_response(api::to_text({{"status", "draining"}, {"in_flight", context.in_flight.load()}}));
}

http::Response undrain(RouterContext& context) {
  if (!context.shutting_down) context.draining = false;
  // A shutdown that began meanwhile found the router draining already.
  if (context.shutting_down) {
    context.draining = true;
    return error_response(api::from_status(409, "The router is shutting down and takes no new requests"));
  }
  return json_response(R"({"status":"ready"})");
}

// ------------------------------------------------------------------------------------------------ routes

void add_operations(RouterContext& context, std::vector<Route>& routes) {
  routes.push_back({"GET", "/health", immediate(health, context)});
  routes.push_back({"GET", "/liveness", immediate(liveness, context)});
  routes.push_back({"GET", "/readiness", immediate(readiness, context)});
  routes.push_back({"GET", "/metrics", immediate(metrics, context)});
  routes.push_back({"GET", "/version", immediate(version, context)});
  routes.push_back({"GET", "/load", immediate(load, context)});
}

http::Handler forwarder(RouterContext& context, std::string path, Forwarding forwarding) {
  return [&context, path = std::move(path), forwarding](http::Exchange& exchange) -> Task<void> {
    co_await forward(context, exchange, path, forwarding);
  };
}

}  // namespace

std::string not_ready_reason(const RouterContext& context) {
  // A decode worker alone is a full path: without a prefill worker it computes prompts itself.
  if (context.dispatcher.num_ready(Role::kDecode, Clock::now()) > 0) return "";
  return "No decode worker is ready";
}

std::vector<Route> data_routes(RouterContext& context) {
  std::vector<Route> routes;
  for (const ForwardedPath& f : kForwarded)
    routes.push_back({f.method, f.path, forwarder(context, f.path, f.forwarding)});
  add_operations(context, routes);
  routes.push_back({"GET", std::string(kModelPath) + "*", [&context](http::Exchange& exchange) -> Task<void> {
                      const std::string& whole = exchange.request().path;  // behind the EAS prefix, perhaps
                      std::string path = whole.substr(whole.find(kModelPath));
                      co_await forward(context, exchange, std::move(path), Forwarding::kPlain);
                    }});
  add_eas_prefix(routes);
  return routes;
}

std::vector<Route> ops_routes(RouterContext& context) {
  std::vector<Route> routes;
  add_operations(context, routes);
  routes.push_back({"GET", "/workers", immediate(workers, context)});
  routes.push_back({"POST", "/drain", for_administrators(context.administration, immediate(drain, context))});
  routes.push_back({"POST", "/undrain", for_administrators(context.administration, immediate(undrain, context))});
  return routes;
}

}  // namespace moectl::router
