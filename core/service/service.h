// What the HTTP services of all roles have in common: answers with OpenAI error objects, who may ask for what, limits
// on bodies, paths under the PAI EAS prefix. It knows neither engine nor router. Any thread, but make_server.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/errors.h"
#include "core/http/server.h"
#include "core/service/api_options.h"

namespace moectl {

struct Route {
  std::string method, path;  // http::Server::route
  http::Handler handler;
};

http::Response error_response(const api::ApiError& error);
// Whether a request's Content-Type says JSON: "application/json" or "application/anything+json", with or without
// parameters; none is taken for JSON.
bool is_json_type(std::string_view content_type);
api::ApiError unsupported_type();  // 415
http::Response json_response(std::string body);

// A server of these routes that answers every failure with an error object and bounds bodies. With `api_keys`, every
// path, known or not, needs one of them, but /health, /liveness and /readiness, because probes know no key, and
// /metrics with `metrics_without_key`; the keys must outlive the server. Binds at once and throws what
// http::Server::create throws.
std::unique_ptr<http::Server> make_server(http::ServerOptions options, std::vector<Route> routes,
                                          const std::vector<std::string>* api_keys = nullptr,
                                          bool metrics_without_key = false);

// Who may change the state of a server: drain, undrain, flush_cache.
struct Administration {
  std::vector<std::string> api_keys;
  std::string cluster_secret;
  // Where a browser would have loaded a page of this server from: "http://127.0.0.1:9080". Set before it serves.
  std::vector<std::string> own_origins;
};

// Why this request may not; nullopt: it may. It must carry an API key or the cluster secret as `Authorization: Bearer`.
// Where the server has neither, it must come from this machine. A page that a browser loaded from elsewhere may not.
std::optional<api::ApiError> refuse_administration(const Administration& administration, const http::Request& request);
// A handler that runs only when the request may.
http::Handler for_administrators(const Administration& administration, http::Handler handler);
// The origins of a server that listens on this address.
std::vector<std::string> origins_of(const std::string& host, uint16_t port);

// Whether only this machine can reach a server that listens on this address.
bool is_loopback(std::string_view host);

// PAI EAS puts /api/predict/<service> before every path; what follows is served as if it stood alone. Adds that to the
// routes there are. Their handlers see the whole path.
void add_eas_prefix(std::vector<Route>& routes);

// "http://host:port", with an address that this machine can reach for a wildcard.
std::string service_url(bool tls, const std::string& host, uint16_t port);
// The host's part of it: IPv6 in brackets.
std::string url_host(const std::string& host);

// The ports of one serving process: the data port and, when the options name one, the operations port.
class ServicePorts {
 public:
  // Binds. `data`: the data port's name in logs and its descriptors per connection; the address is that of `options`,
  // which must outlive this. Throws what make_server throws.
  ServicePorts(const ApiOptions& options, http::ServerOptions data, std::vector<Route> data_routes,
               std::vector<Route> ops_routes);
  Administration administration(std::string cluster_secret) const;
  std::string url() const;                     // of the data port: "http://127.0.0.1:8000"
  std::optional<std::string> ops_url() const;  // nullopt: there is none
  uint16_t port() const { return data_->port(); }
  void start();
  // Closes both; what is open on the data port after `grace` is cut. Handlers that outlive the cut go with this object.
  void stop(std::chrono::milliseconds grace);

 private:
  const ApiOptions& options_;
  std::unique_ptr<http::Server> data_, ops_;
};

}  // namespace moectl
