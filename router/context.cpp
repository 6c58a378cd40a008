#include "router/context.h"

#include "core/http/client_message.h"

namespace moectl::router {

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
