// The request head, validated byte by byte and parsed in one pass (RFC 9110, RFC 9112). It is the only parser:
// Boost.Beast is not behind it, because two parsers that read one request differently are what smuggling is made of,
// and once every byte has been judged here nothing is left for a second one to do. Pure functions over bytes; they know
// no socket and throw nothing on bad input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/http/message.h"

namespace moectl::http {

// Why a request is not served. The connection is closed after the answer: its framing cannot be trusted any more.
struct Refusal {
  int status = 400;
  std::string message;
};

struct RequestHead {
  std::string method;
  std::string path, query;  // as in Request
  int minor_version = 1;    // HTTP/1.x
  Headers headers;
  bool keep_alive = true;
  bool expect_continue = false;
  bool chunked = false;
  uint64_t content_length = 0;  // 0 when absent or chunked
};

struct HeadLimits {
  size_t max_head_bytes = 32 << 10;  // request line, fields and the blank line
  size_t max_target_bytes = 8 << 10;
  size_t max_fields = 128;
};

// Finds the end of the head in a growing buffer, and refuses at once what can never become one (bare LF, control bytes,
// too long), so that such a client does not have to run into the timeout.
class HeadScanner {
 public:
  explicit HeadScanner(size_t max_head_bytes) : max_head_bytes_(max_head_bytes) {}
  // `buffer` starts with the head's first byte and only grows between calls. Returns the length of the head with its
  // blank line, 0 when more bytes are needed or refusal() is set. One empty line before the request line belongs to the
  // head (RFC 9112, section 2.2: some clients send one after a body).
  size_t scan(std::string_view buffer);
  const std::optional<Refusal>& refusal() const { return refusal_; }

 private:
  size_t max_head_bytes_;
  size_t pos_ = 0, line_start_ = 0;
  std::optional<Refusal> refusal_;
};

// `block` is a head as found by HeadScanner. Returns nullopt and fills `head`, or says why not.
std::optional<Refusal> parse_head(std::string_view block, const HeadLimits& limits, RequestHead& head);

// One field line without its CRLF; shared with trailers. The name comes out in lower case.
std::optional<Refusal> parse_field(std::string_view line, std::string& name, std::string& value);

bool is_token(std::string_view s);
bool is_sane_request_id(std::string_view s);

}  // namespace moectl::http
