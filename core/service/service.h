// What the HTTP services of all roles have in common: answers with OpenAI error objects, the check of API keys, limits
// on bodies, paths under the PAI EAS prefix. It knows neither engine nor router. Any thread, but make_server.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/errors.h"
#include "core/http/server.h"

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
// path, known or not, needs one of them; they must outlive the server. Binds at once and throws what
// http::Server::create throws.
std::unique_ptr<http::Server> make_server(http::ServerOptions options, std::vector<Route> routes,
                                          const std::vector<std::string>* api_keys = nullptr);

// PAI EAS puts /api/predict/<service> before every path; what follows is served as if it stood alone. Adds that to the
// routes there are. Their handlers see the whole path.
void add_eas_prefix(std::vector<Route>& routes);

// "http://host:port", with an address that this machine can reach for a wildcard.
std::string service_url(bool tls, const std::string& host, uint16_t port);
// The host's part of it: IPv6 in brackets.
std::string url_host(const std::string& host);

}  // namespace moectl
