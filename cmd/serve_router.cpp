// serve-router: binds, watches its workers, serves, and goes down in order. The main thread waits for signals.
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

router::RouterOptions router_options(const ServeRouterOptions& given) {
  if (given.cluster_secret_file.empty())
    throw Error(Code::kBadConfig,
                "serve-router needs --cluster-secret-file FILE, the same as its workers: it signs what it tells them. "
                "Make one with `openssl rand -hex 32 > FILE`");
  router::RouterOptions options = given.router;
  options.read_workers_file = read_workers_file;
  options.cluster_secret = read_secret_file(given.cluster_secret_file);
  options.dispatcher.policy.seed = std::random_device{}();
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
  Shutdown shutdown(given.shutdown_timeout);
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
