#include "core/http/sse.h"

#include <algorithm>

namespace moectl::http {

std::string sse_event(std::string_view data) {
  std::string out;
  out.reserve(data.size() + 8);
  for (;;) {
    size_t end = std::min(data.find_first_of("\r\n"), data.size());
    out.append("data: ").append(data.substr(0, end)).append("\n");
    if (end == data.size()) break;
    bool crlf = data[end] == '\r' && end + 1 < data.size() && data[end + 1] == '\n';
    data.remove_prefix(end + (crlf ? 2 : 1));
  }
  return out.append("\n");
}

}  // namespace moectl::http
