// What a client writes and reads, as pure functions: URLs, the request head, the response head. They know no socket.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/http/message.h"

namespace moectl::http {

struct Url {
  bool tls = false;
  std::string host;       // without the brackets of an IPv6 address
  std::string authority;  // for the Host field: with brackets, and the port unless it is the scheme's own
  uint16_t port = 80;
  std::string target = "/";  // path and query
};
// Throws Error{kInvalidArgument}: another scheme, user:password@, characters that must be percent-encoded.
Url parse_url(std::string_view text);

// Throws Error{kInvalidArgument} for a method or field that cannot be sent, and for the client's own fields.
std::string format_request_head(std::string_view method, const Url& url, const Headers& headers, size_t body_bytes);

enum class BodyEnd { kNone, kLength, kChunked, kClose };  // how the end of a body is found

struct ReceivedHead {
  int status = 0;
  Headers headers;  // names in lower case
  BodyEnd body = BodyEnd::kNone;
  uint64_t content_length = 0;  // of kLength
  bool keep_alive = false;
};
// `block` is a head as HeadScanner found it. Throws ClientError{kNotHttp} saying what is not HTTP in it.
ReceivedHead parse_response_head(std::string_view block, std::string_view request_method);

}  // namespace moectl::http
