// Request and Response as handlers see them. Plain data; knows no socket, so that parsers and tests need not compile
// Asio.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moectl::http {

using Headers = std::vector<std::pair<std::string, std::string>>;  // names in lower case, in order of arrival

struct Request {
  std::string method;  // "GET"
  std::string path;    // percent-decoded, valid UTF-8 without control characters, without the query
  std::string query;   // after '?', raw
  Headers headers;
  std::string body;
  std::string id;    // X-Request-Id when it is sane (<= 128 of [A-Za-z0-9._-]), else a fresh one
  std::string peer;  // "127.0.0.1:51234", for logs only
  std::string_view header(std::string_view lower_case_name) const;  // first value, or empty
};

struct Response {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  Headers headers;  // extra ones; Content-Length, Date, X-Request-Id and Connection are the server's
};

}  // namespace moectl::http
