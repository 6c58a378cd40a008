#include "router/router_service.h"

#include "core/base/error.h"
#include "router/routes.h"

namespace moectl::router {
namespace {

RouterOptions checked(RouterOptions options) {
  if (options.cluster_secret.empty())
    throw Error(Code::kBadConfig,
                "the router needs --cluster-secret-file, the same file as its workers: make one with "
                "`openssl rand -hex 32 > FILE`");
  if (options.workers_file.empty() && options.decode_urls.empty())
    throw Error(Code::kBadConfig, "the router has no decode worker: give --decode URL, or --workers-file FILE");
  if (!options.workers_file.empty() && !(options.decode_urls.empty() && options.prefill_urls.empty()))
    throw Error(Code::kBadConfig, "give the workers by --workers-file or by --prefill and --decode, not by both");
  return options;
}

}  // namespace

RouterService::RouterService(RouterOptions options) : context_(checked(std::move(options))), prober_(context_) {
  const ApiOptions& api = context_.options.api;
  // A request holds two descriptors: the client's and a worker's.
  http::ServerOptions data{.name = "router", .descriptors_per_connection = 2};
  ports_ = std::make_unique<ServicePorts>(api, std::move(data), data_routes(context_), ops_routes(context_));
  context_.administration = ports_->administration(context_.options.cluster_secret);
  context_.url = ports_->url();
  context_.probe_now = [this](int id) { prober_.probe_now(id); };
  prober_.start();
  ports_->start();
}

RouterService::~RouterService() {
  stop(std::chrono::milliseconds(0));
}

std::string RouterService::not_ready_reason() const {
  return router::not_ready_reason(context_);
}

void RouterService::drain() {
  context_.shutting_down = true;
  context_.draining = true;
}

void RouterService::stop(std::chrono::milliseconds grace) {
  if (std::exchange(stopped_, true)) return;
  ports_->stop(grace);
  prober_.stop();
  context_.pool.join();
  ports_.reset();  // handlers that outlived the cut refer to the context
}

}  // namespace moectl::router
