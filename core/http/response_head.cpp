#include "core/http/response_head.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <string>

#include "core/base/log.h"
#include "core/http/request_validator.h"

namespace moectl::http {
namespace {

// IMF-fixdate (RFC 9110, section 5.6.7), made once a second a thread. Not strftime: it would follow the locale.
std::string_view date_now() {
  thread_local std::time_t cached_second = 0;
  thread_local std::string cached;
  std::time_t now = std::time(nullptr);
  if (now != cached_second || cached.empty()) {
    static constexpr std::array<std::string_view, 7> kDays = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static constexpr std::array<std::string_view, 12> kMonths = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                                 "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    std::tm t{};
    gmtime_r(&now, &t);
    cached = fmt::format("{}, {:02} {} {:04} {:02}:{:02}:{:02} GMT", kDays[size_t(t.tm_wday) % 7], t.tm_mday,
                         kMonths[size_t(t.tm_mon) % 12], t.tm_year + 1900, t.tm_hour, t.tm_min, t.tm_sec);
    cached_second = now;
  }
  return cached;
}

bool is_servers_own(std::string_view lower_name) {
  static constexpr std::array<std::string_view, 5> kOwn = {"content-length", "transfer-encoding", "connection", "date",
                                                           "x-request-id"};
  return std::find(kOwn.begin(), kOwn.end(), lower_name) != kOwn.end();
}

}  // namespace

std::string_view reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 301:
      return "Moved Permanently";
    case 302:
      return "Found";
    case 304:
      return "Not Modified";
    case 307:
      return "Temporary Redirect";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 414:
      return "URI Too Long";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
  }
  return "Unassigned";
}

std::string format_response_head(const ResponseHead& head, const Headers& extra) {
  std::string out;
  out.reserve(256);
  auto field = [&](std::string_view name, std::string_view value) {
    out.append(name).append(": ").append(value).append("\r\n");
  };
  out.append("HTTP/1.1 ")
      .append(std::to_string(head.status))
      .append(" ")
      .append(reason_phrase(head.status))
      .append("\r\n");
  field("Date", date_now());
  if (head.framing == BodyFraming::kContentLength) field("Content-Length", std::to_string(head.content_length));
  if (head.framing == BodyFraming::kChunked) field("Transfer-Encoding", "chunked");
  if (!head.request_id.empty()) field("X-Request-Id", head.request_id);
  if (!head.keep_alive) field("Connection", "close");
  if (head.keep_alive && head.minor_version == 0) field("Connection", "keep-alive");
  std::string name, value;
  if (head.framing != BodyFraming::kNone && !head.content_type.empty() &&
      !parse_field("content-type:" + std::string(head.content_type), name, value))
    field("Content-Type", value);
  for (const auto& [raw_name, raw_value] : extra) {
    auto refusal = parse_field(raw_name + ":" + raw_value, name, value);
    if (refusal || !is_token(raw_name) || is_servers_own(name)) {
      log::warn("http: a handler's response header was dropped: {}",
                refusal ? refusal->message : "`" + name + "` is the server's own");
      continue;
    }
    field(raw_name, value);
  }
  return out.append("\r\n");
}

}  // namespace moectl::http
