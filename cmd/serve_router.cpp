// serve-router: binds, watches its workers, serves, and goes down in order. The main thread waits for signals.
#include <algorithm>
#include <random>

#include "cmd/command.h"
#include "cmd/deploy/workers_file.h"
#include "cmd/shutdown.h"
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
  options.ops_host = api.ops_host;
  options.ops_port = api.ops_port;
  options.api_keys = api.api_keys;
  options.metrics_without_key = api.metrics_without_key;
  options.debug_header = api.debug_header;
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

// Returns the signal that ended it, and says when a full path is ready and when none is left.
int wait_for_end(const router::RouterService& service, Shutdown& shutdown) {
  bool ready = false;
  for (;;) {
    if (const auto signal = shutdown.wait(milliseconds(250))) return *signal;
    const std::string reason = service.not_ready_reason();
    if (reason.empty() == ready) continue;
    ready = !ready;
    if (ready) log::info("ready: requests can be answered");
    if (!ready) log::warn("not ready: {}", reason);
  }
}

}  // namespace

int serve_router(const ServeRouterOptions& given) {
  Shutdown shutdown(given.api.shutdown_timeout);
  start_serving_process();
  router::RouterService service(router_options(given));
  log::info("listening on {}", service.url());
  // The router listens; whether its workers are ready is said by /readiness.
  print_ready_line(service.url(), service.ops_url(), std::nullopt);
  const int signal = wait_for_end(service, shutdown);
  shut_down(service, shutdown);
  log::info("stopped");
  return exit_status(signal);
}

}  // namespace moectl
