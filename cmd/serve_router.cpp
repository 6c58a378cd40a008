// serve-router: binds, watches its workers, serves, and goes down in order. The main thread waits for signals.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>

#include "cmd/command.h"
#include "cmd/signals.h"
#include "cmd/workers_file.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/secret_file.h"
#include "router/router_service.h"

namespace moectl {
namespace {

using std::chrono::milliseconds;

void choose_policy(std::string& chosen, std::string_view flag, const std::string& given) {
  if (given.empty()) return;
  try {
    router::make_policy(given, {});
  } catch (const Error& e) {
    throw Error(Code::kUsage, fmt::format("{} {}: {}", flag, given, e.what()));
  }
  chosen = given;
}

router::RouterOptions router_options(const ServeRouterOptions& given) {
  const ApiOptions& api = given.api;
  const RoutingOptions& routing = given.routing;
  if (given.cluster.secret_file.empty())
    throw Error(Code::kBadConfig,
                "serve-router needs --cluster-secret-file FILE, the same as its workers: it signs what it tells them. "
                "Make one with `openssl rand -hex 32 > FILE`");
  router::RouterOptions options;
  options.version = MOECTL_VERSION;
  options.host = api.host;
  options.port = api.port;
  options.ops_port = api.ops_port;
  options.api_keys = api.api_keys;
  options.ssl_certfile = api.ssl_certfile;
  options.ssl_keyfile = api.ssl_keyfile;
  options.prefill_urls = routing.prefill_urls;
  options.decode_urls = routing.decode_urls;
  options.workers_file = routing.workers_file;
  options.read_workers_file = read_workers_file;
  options.cluster_secret = read_secret_file(given.cluster.secret_file);
  options.queue_timeout = routing.queue_timeout;
  options.max_retries = routing.max_retries;
  router::DispatcherOptions& dispatcher = options.dispatcher;
  choose_policy(dispatcher.prefill_policy, "--policy", routing.policy);
  choose_policy(dispatcher.decode_policy, "--policy", routing.policy);
  choose_policy(dispatcher.prefill_policy, "--prefill-policy", routing.prefill_policy);
  choose_policy(dispatcher.decode_policy, "--decode-policy", routing.decode_policy);
  dispatcher.policy.prefix_cache_load_tolerance = routing.prefix_cache_load_tolerance;
  dispatcher.policy.seed = std::random_device{}();
  dispatcher.breaker = {routing.cb_failure_threshold, routing.cb_success_threshold, routing.cb_timeout};
  dispatcher.max_queue_size = size_t(routing.max_queue_size);
  dispatcher.max_requests_per_worker = routing.max_requests_per_worker;
  return options;
}

// The one line on stdout, for programs that started us. The router listens then; whether its workers are ready is said
// by /readiness.
void print_ready_line(const router::RouterService& service) {
  nlohmann::ordered_json line = {{"ready", true}, {"url", service.url()}, {"ops", nullptr}, {"kv", nullptr}};
  if (const auto ops = service.ops_url()) line["ops"] = *ops;
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

// Returns the signal that ended it, and says when a full path is ready and when none is left.
int wait_for_end(const router::RouterService& service, const Signals& signals) {
  bool ready = false;
  for (;;) {
    if (const auto signal = signals.wait(milliseconds(250))) return *signal;
    const std::string reason = service.not_ready_reason();
    if (reason.empty() == ready) continue;
    ready = !ready;
    if (ready) log::info("ready: requests can be answered");
    if (!ready) log::warn("not ready: {}", reason);
  }
}

void shut_down(router::RouterService& service, const Signals& signals, std::chrono::seconds timeout) {
  service.drain();
  log::info("shutting down: waiting up to {} s for {} requests; a second signal ends them at once", timeout.count(),
            service.num_in_flight());
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (service.num_in_flight() > 0 && std::chrono::steady_clock::now() < deadline)
    if (const auto signal = signals.wait(milliseconds(20))) {
      log::warn("second signal: {} requests are cut", service.num_in_flight());
      std::_Exit(*signal == SIGINT ? 130 : 1);
    }
  if (const int left = service.num_in_flight(); left > 0)
    log::warn("{} requests did not finish within {} s and are cut (--shutdown-timeout)", left, timeout.count());
  service.stop(milliseconds(500));
}

}  // namespace

int serve_router(const ServeRouterOptions& given) {
  const Signals signals;
  router::RouterService service(router_options(given));
  log::info("listening on {}", service.url());
  print_ready_line(service);
  const int signal = wait_for_end(service, signals);
  shut_down(service, signals, given.api.shutdown_timeout);
  log::info("stopped");
  return exit_status(signal);
}

}  // namespace moectl
