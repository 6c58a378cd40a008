#include "router/router_service.h"

#include "core/base/error.h"
#include "router/routes.h"

namespace moectl::router {
namespace {

constexpr size_t kMaxBodyBytes = 32u << 20;

http::Response respond_to_error(const http::Request&, int status, std::string_view message, std::exception_ptr error) {
  if (error) {
    try {
      std::rethrow_exception(error);
    } catch (const Error& e) {
      return error_response(api::from_error(e));
    } catch (...) {
      return error_response(api::from_status(500, "An internal error; the router's log has more"));
    }
  }
  return error_response(api::from_status(status, message));
}

// All keys are compared, whatever the outcome, so that the time tells nothing.
std::optional<http::Response> check_key(const std::vector<std::string>& keys, const http::Request& request) {
  const std::string_view given = api::api_key_of(request.header("authorization"));
  bool known = false;
  for (const std::string& key : keys) known |= api::equal_constant_time(key, given);
  if (known) return std::nullopt;
  return error_response(api::invalid_api_key());
}

std::unique_ptr<http::Server> make_server(http::ServerOptions options, std::vector<Route> routes) {
  options.max_body_bytes = kMaxBodyBytes;
  auto server = http::Server::create(std::move(options), respond_to_error);
  for (Route& route : routes) server->route(route.method, route.path, std::move(route.handler));
  return server;
}

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

std::string url_of(const char* scheme, std::string host, uint16_t port) {
  if (host == "0.0.0.0") host = "127.0.0.1";
  if (host == "::") host = "::1";
  return host.find(':') == std::string::npos ? fmt::format("{}://{}:{}", scheme, host, port)
                                             : fmt::format("{}://[{}]:{}", scheme, host, port);
}

}  // namespace

RouterService::RouterService(RouterOptions options) : context_(checked(std::move(options))), prober_(context_) {
  const RouterOptions& o = context_.options;
  http::ServerOptions data;
  data.host = o.host;
  data.port = uint16_t(o.port);
  data.name = "router";
  data.ssl_certfile = o.ssl_certfile;
  data.ssl_keyfile = o.ssl_keyfile;
  data_server_ = make_server(std::move(data), data_routes(context_));
  if (!o.api_keys.empty())
    data_server_->set_gate([&o](const http::Request& request) { return check_key(o.api_keys, request); });
  if (o.ops_port >= 0) {
    http::ServerOptions ops;
    ops.port = uint16_t(o.ops_port);
    ops.name = "ops";
    ops_server_ = make_server(std::move(ops), ops_routes(context_));
  }
  context_.url = url_of(o.ssl_certfile.empty() ? "http" : "https", o.host, data_server_->port());
  prober_.start();
  data_server_->start();
  if (ops_server_) ops_server_->start();
}

RouterService::~RouterService() {
  stop(std::chrono::milliseconds(0));
}

std::optional<std::string> RouterService::ops_url() const {
  if (!ops_server_) return std::nullopt;
  return url_of("http", "127.0.0.1", ops_server_->port());
}

std::string RouterService::not_ready_reason() const {
  return router::not_ready_reason(context_);
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
