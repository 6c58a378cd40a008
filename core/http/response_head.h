// The bytes of a response head. Pure but for the Date field. Fields that frame the message are the server's own; a
// handler's extra header that is malformed, or that would frame, is dropped and logged.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "core/http/message.h"

namespace moectl::http {

enum class BodyFraming { kContentLength, kChunked, kUntilClose, kNone };

struct ResponseHead {
  int status = 200;
  std::string_view content_type;
  BodyFraming framing = BodyFraming::kContentLength;
  size_t content_length = 0;
  bool keep_alive = true;
  int minor_version = 1;  // of the request: HTTP/1.0 must be told when the connection stays open
  std::string_view request_id;
};

std::string_view reason_phrase(int status);
std::string format_response_head(const ResponseHead& head, const Headers& extra);

}  // namespace moectl::http
