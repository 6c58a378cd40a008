#include "router/context.h"

#include "core/http/client_message.h"

namespace moectl::router {

http::Response error_response(const api::ApiError& error) {
  http::Response response;
  response.status = error.status;
  response.body = api::error_body(error);
  if (error.retry_after_seconds > 0)
    response.headers.emplace_back("Retry-After", fmt::format("{}", error.retry_after_seconds));
  return response;
}

std::string worker_url(std::string_view text) {
  const std::string full =
      text.find("://") == std::string_view::npos ? fmt::format("http://{}", text) : std::string(text);
  const http::Url url = http::parse_url(full);
  if (url.target != "/")
    throw Error(Code::kInvalidArgument,
                fmt::format("`{}`: a worker is given without a path, as http://HOST:PORT", text));
  return fmt::format("{}://{}", url.tls ? "https" : "http", url.authority);
}

}  // namespace moectl::router
