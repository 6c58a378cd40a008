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
  const RouterOptions& o = context_.options;
  http::ServerOptions data;
  data.host = o.host;
  data.port = uint16_t(o.port);
  data.name = "router";
  data.descriptors_per_connection = 2;  // the client's and a worker's
  data.ssl_certfile = o.ssl_certfile;
  data.ssl_keyfile = o.ssl_keyfile;
  data_server_ = make_server(std::move(data), data_routes(context_), &o.api_keys, o.metrics_without_key);
  if (o.ops_port >= 0) {
    http::ServerOptions ops;
    ops.host = o.ops_host;
    ops.port = uint16_t(o.ops_port);
    ops.name = "ops";
    ops.is_ops = true;
    ops_server_ = make_server(std::move(ops), ops_routes(context_));
    context_.administration = {o.api_keys, o.cluster_secret, origins_of(o.ops_host, ops_server_->port())};
  }
  context_.url = service_url(!o.ssl_certfile.empty(), o.host, data_server_->port());
  context_.probe_now = [this](int id) { prober_.probe_now(id); };
  prober_.start();
  data_server_->start();
  if (ops_server_) ops_server_->start();
}

RouterService::~RouterService() {
  stop(std::chrono::milliseconds(0));
}

std::optional<std::string> RouterService::ops_url() const {
  if (!ops_server_) return std::nullopt;
  return service_url(false, context_.options.ops_host, ops_server_->port());
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
  data_server_->stop(grace);
  if (ops_server_) ops_server_->stop(std::chrono::milliseconds(0));
  prober_.stop();
  context_.pool.join();
  // Handlers that outlived the cut refer to the context and go with their server.
  data_server_.reset();
  ops_server_.reset();
}

}  // namespace moectl::router
