#include "core/service/service.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <optional>
#include <utility>

#include "core/api/loggable.h"
#include "core/base/error.h"
#include "core/base/log.h"

namespace moectl {
namespace {

constexpr size_t kMaxBodyBytes = 32u << 20;
constexpr size_t kMaxTotalBodyBytes = 512u << 20;  // of one port
constexpr std::string_view kEasPrefix = "/api/predict/";

api::ApiError to_api_error(int status, std::string_view message, std::exception_ptr error) {
  if (!error) return api::from_status(status, message);
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return api::from_error(e);
  } catch (...) {
    return api::from_status(500, "An internal error; the server's log has more");
  }
}

// A handler that keeps a record of its request (core/serving/request_record.h) answers errors itself.
void log_refusal(const http::Request& request, const api::ApiError& error) {
  const api::LoggedError logged = api::loggable(error);
  const std::string path = api::loggable(request.path);
  const log::Field fields[] = {{"path", path},
                               {"status", int64_t(error.status)},
                               {"error", logged.message},
                               {"param", logged.param},
                               {"code", error.code}};
  log::info(log::About{request.id, fields}, "{} {}{}{}: {}", path, error.status,
            logged.param.empty() ? "" : " param=", logged.param, logged.message);
}

http::Response respond_to_error(const http::Request& request, int status, std::string_view message,
                                std::exception_ptr error) {
  const api::ApiError answer = to_api_error(status, message, error);
  if (answer.status < 500) log_refusal(request, answer);
  return error_response(answer);
}

// All keys are compared, whatever the outcome, so that the time leaks nothing.
bool is_one_of(const std::vector<std::string>& keys, std::string_view given) {
  bool known = false;
  for (const std::string& key : keys) known |= api::equal_constant_time(key, given);
  return known;
}

// The path behind /api/predict/<service>; "/" when nothing is there. nullopt: no such prefix.
std::optional<std::string_view> behind_eas_prefix(std::string_view path) {
  if (!path.starts_with(kEasPrefix)) return std::nullopt;
  path.remove_prefix(kEasPrefix.size());
  const size_t slash = path.find('/');
  return slash == std::string_view::npos ? std::string_view("/") : path.substr(slash);
}

bool needs_key(std::string_view whole_path, bool metrics_without_key) {
  const std::string_view path = behind_eas_prefix(whole_path).value_or(whole_path);
  if (path == "/metrics") return !metrics_without_key;
  return path != "/health" && path != "/liveness" && path != "/readiness";
}

std::string_view host_of_peer(std::string_view peer) {
  return peer.substr(0, peer.rfind(':'));
}

bool matches(const Route& route, std::string_view path) {
  if (!route.path.ends_with("/*")) return route.path == path;
  return path.starts_with(std::string_view(route.path).substr(0, route.path.size() - 1));
}

Task<void> serve_under_prefix(const std::vector<Route>& routes, http::Exchange& exchange) {
  const http::Request& request = exchange.request();
  const std::string_view path = behind_eas_prefix(request.path).value_or("/");
  const std::string_view method = request.method == "HEAD" ? "GET" : std::string_view(request.method);
  std::string allowed;
  for (const Route& route : routes) {
    if (!matches(route, path)) continue;
    if (route.method == method) {
      co_await route.handler(exchange);
      co_return;
    }
    allowed += (allowed.empty() ? "" : ", ") + route.method;
  }
  http::Response response = error_response(allowed.empty() ? api::from_status(404, "There is no such path")
                                                           : api::from_status(405, "This path takes " + allowed));
  if (!allowed.empty()) response.headers.emplace_back("Allow", allowed);
  co_await exchange.respond(std::move(response));
}

}  // namespace

http::Response error_response(const api::ApiError& error) {
  http::Response response;
  response.status = error.status;
  response.body = api::error_body(error);
  if (error.retry_after_seconds > 0)
    response.headers.emplace_back("Retry-After", std::to_string(error.retry_after_seconds));
  // Clients repeat 5xx answers by themselves; no client waits for this one any more.
  if (error.status == 504) response.headers.emplace_back("x-should-retry", "false");
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

bool is_json_type(std::string_view content_type) {
  std::string type(content_type.substr(0, content_type.find(';')));
  while (!type.empty() && type.back() == ' ') type.pop_back();
  std::transform(type.begin(), type.end(), type.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  return type.empty() || type == "application/json" || (type.starts_with("application/") && type.ends_with("+json"));
}

api::ApiError unsupported_type() {
  return api::from_status(415, "Send the header `Content-Type: application/json`");
}

http::Response json_response(std::string body) {
  http::Response response;
  response.body = std::move(body);
  return response;
}

std::unique_ptr<http::Server> make_server(http::ServerOptions options, std::vector<Route> routes,
                                          const std::vector<std::string>* api_keys, bool metrics_without_key) {
  options.max_body_bytes = kMaxBodyBytes;
  options.max_total_body_bytes = kMaxTotalBodyBytes;
  auto server = http::Server::create(std::move(options), respond_to_error);
  for (Route& route : routes) server->route(route.method, route.path, std::move(route.handler));
  if (api_keys && !api_keys->empty())
    server->set_gate([api_keys, metrics_without_key](const http::Request& request) -> std::optional<http::Response> {
      if (!needs_key(request.path, metrics_without_key)) return std::nullopt;
      if (is_one_of(*api_keys, api::api_key_of(request.header("authorization")))) return std::nullopt;
      return error_response(api::invalid_api_key());
    });
  return server;
}

std::optional<api::ApiError> refuse_administration(const Administration& administration, const http::Request& request) {
  // A browser sends this header with every request of a page that could change something here.
  for (const auto& [name, value] : request.headers)
    if (name == "origin" && std::find(administration.own_origins.begin(), administration.own_origins.end(), value) ==
                                administration.own_origins.end())
      return api::from_status(403, "Pages from elsewhere may not change the state of this server (header `Origin`)");
  if (administration.api_keys.empty() && administration.cluster_secret.empty()) {
    if (is_loopback(host_of_peer(request.peer))) return std::nullopt;
    return api::from_status(403,
                            "Only this machine may change the state of this server: it has neither an API key nor a "
                            "cluster secret (--api-key, --cluster-secret-file) to know others by");
  }
  const std::string_view given = api::api_key_of(request.header("authorization"));
  const bool knows_key = is_one_of(administration.api_keys, given);
  const bool knows_secret =
      !administration.cluster_secret.empty() && api::equal_constant_time(administration.cluster_secret, given);
  if (knows_key || knows_secret) return std::nullopt;
  api::ApiError error = api::invalid_api_key();
  error.message =
      "Changing the state of this server needs an API key or the cluster secret: send the header "
      "`Authorization: Bearer KEY`";
  return error;
}

http::Handler for_administrators(const Administration& administration, http::Handler handler) {
  return [&administration, handler = std::move(handler)](http::Exchange& exchange) -> Task<void> {
    if (const auto error = refuse_administration(administration, exchange.request())) {
      http::Response response = error_response(*error);
      co_await exchange.respond(std::move(response));
      co_return;
    }
    co_await handler(exchange);
  };
}

bool is_loopback(std::string_view host) {
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  if (host.starts_with("::ffff:")) host.remove_prefix(7);
  if (host == "localhost" || host == "::1") return true;
  const std::string text(host);
  int parts[4], end = 0;
  if (std::sscanf(text.c_str(), "%3d.%3d.%3d.%3d%n", &parts[0], &parts[1], &parts[2], &parts[3], &end) != 4)
    return false;
  return size_t(end) == host.size() && parts[0] == 127 &&
         std::all_of(parts, parts + 4, [](int part) { return part >= 0 && part < 256; });
}

void add_eas_prefix(std::vector<Route>& routes) {
  auto served = std::make_shared<const std::vector<Route>>(routes);
  const http::Handler handler = [served](http::Exchange& exchange) -> Task<void> {
    co_await serve_under_prefix(*served, exchange);
  };
  for (const char* method : {"GET", "POST"}) routes.push_back({method, std::string(kEasPrefix) + "*", handler});
}

std::string url_host(const std::string& host) {
  if (host == "0.0.0.0") return "127.0.0.1";
  if (host == "::") return "[::1]";
  return host.find(':') == std::string::npos || host.starts_with('[') ? host : "[" + host + "]";
}

std::string service_url(bool tls, const std::string& host, uint16_t port) {
  return fmt::format("{}://{}:{}", tls ? "https" : "http", url_host(host), port);
}

std::vector<std::string> origins_of(const std::string& host, uint16_t port) {
  std::vector<std::string> origins;
  for (const std::string& name :
       {url_host(host), std::string("localhost"), std::string("127.0.0.1"), std::string("[::1]")})
    origins.push_back(fmt::format("http://{}:{}", name, port));
  return origins;
}

ServicePorts::ServicePorts(const ApiOptions& options, http::ServerOptions data, std::vector<Route> data_routes,
                           std::vector<Route> ops_routes)
    : options_(options) {
  data.host = options.host;
  data.port = uint16_t(options.port);
  data.ssl_certfile = options.ssl_certfile;
  data.ssl_keyfile = options.ssl_keyfile;
  data_ = make_server(std::move(data), std::move(data_routes), &options.api_keys, options.metrics_without_key);
  if (!options.ops_port) return;
  http::ServerOptions ops{.host = options.ops_host, .port = uint16_t(*options.ops_port), .name = "ops", .is_ops = true};
  ops_ = make_server(std::move(ops), std::move(ops_routes));
}

Administration ServicePorts::administration(std::string cluster_secret) const {
  return {options_.api_keys, std::move(cluster_secret),
          ops_ ? origins_of(options_.ops_host, ops_->port()) : std::vector<std::string>()};
}

std::string ServicePorts::url() const {
  return service_url(!options_.ssl_certfile.empty(), options_.host, data_->port());
}

std::optional<std::string> ServicePorts::ops_url() const {
  if (!ops_) return std::nullopt;
  return service_url(false, options_.ops_host, ops_->port());
}

void ServicePorts::start() {
  data_->start();
  if (ops_) ops_->start();
}

void ServicePorts::stop(std::chrono::milliseconds grace) {
  data_->stop(grace);
  if (ops_) ops_->stop(std::chrono::milliseconds(0));
}

}  // namespace moectl
