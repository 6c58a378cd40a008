#include "core/http/client_message.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "core/http/client_error.h"
#include "core/http/request_validator.h"

namespace moectl::http {
namespace {

constexpr size_t kMaxUrlBytes = 8 << 10;
constexpr size_t kMaxFields = 256;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::string lower(std::string_view s) {
  std::string out(s);
  std::transform(out.begin(), out.end(), out.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
  return out;
}

[[noreturn]] void bad_url(std::string_view text, std::string_view why) {
  throw Error(Code::kInvalidArgument, fmt::format("`{}` is not a URL that can be called: {}; expected "
                                                  "http://HOST:PORT/PATH",
                                                  text.substr(0, 200), why));
}

[[noreturn]] void bad_head(std::string_view why) {
  throw ClientError(ClientFailure::kNotHttp, fmt::format("the answer is not HTTP: {}", why));
}

bool is_host_char(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '.' || c == '_';
}

void parse_status_line(std::string_view line, ReceivedHead& head, bool& minor_zero) {
  if (line.size() < 12 || !line.starts_with("HTTP/1.") || !is_digit(line[7]) || line[8] != ' ' ||
      !std::all_of(line.begin() + 9, line.begin() + 12, is_digit) || (line.size() > 12 && line[12] != ' '))
    bad_head("its first line is not like `HTTP/1.1 200 OK`");
  minor_zero = line[7] == '0';
  head.status = (line[9] - '0') * 100 + (line[10] - '0') * 10 + (line[11] - '0');
  if (head.status < 100 || head.status > 599) bad_head(fmt::format("{} is no status", head.status));
}

bool has_option(std::string_view list, std::string_view option) {
  for (std::string_view rest = list; !rest.empty();) {
    const size_t comma = std::min(rest.find(','), rest.size());
    std::string_view item = rest.substr(0, comma);
    while (!item.empty() && (item.front() == ' ' || item.front() == '\t')) item.remove_prefix(1);
    while (!item.empty() && (item.back() == ' ' || item.back() == '\t')) item.remove_suffix(1);
    if (lower(item) == option) return true;
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return false;
}

void find_body_end(ReceivedHead& head, std::string_view request_method) {
  bool chunked = false, has_length = false;
  for (const auto& [name, value] : head.headers) {
    if (name == "transfer-encoding") {
      if (chunked || lower(value) != "chunked") bad_head("its Transfer-Encoding is not exactly `chunked`");
      chunked = true;
    } else if (name == "content-length") {
      // 18 digits always fit in 64 bits.
      if (has_length || value.empty() || value.size() > 18 || !std::all_of(value.begin(), value.end(), is_digit))
        bad_head("its Content-Length is not one decimal number");
      has_length = true;
      std::from_chars(value.data(), value.data() + value.size(), head.content_length);
    }
  }
  if (chunked && has_length) bad_head("it has both Content-Length and Transfer-Encoding");
  if (request_method == "HEAD" || head.status < 200 || head.status == 204 || head.status == 304) {
    head.body = BodyEnd::kNone;
  } else if (chunked) {
    head.body = BodyEnd::kChunked;
  } else if (has_length) {
    head.body = head.content_length ? BodyEnd::kLength : BodyEnd::kNone;
  } else {
    head.body = BodyEnd::kClose;
    head.keep_alive = false;
  }
}

}  // namespace

Url parse_url(std::string_view text) {
  if (text.size() > kMaxUrlBytes) bad_url(text, fmt::format("it is longer than {} bytes", kMaxUrlBytes));
  for (char c : text)
    if (c < 0x21 || c > 0x7e) bad_url(text, "it contains a character that must be percent-encoded");
  Url url;
  std::string_view rest = text;
  const std::string scheme = lower(rest.substr(0, rest.find(':')));
  url.tls = scheme == "https";
  if (!url.tls && scheme != "http") bad_url(text, "it starts with neither http:// nor https://");
  rest.remove_prefix(scheme.size());
  if (!rest.starts_with("://")) bad_url(text, "it starts with neither http:// nor https://");
  rest.remove_prefix(3);
  rest = rest.substr(0, rest.find('#'));

  std::string_view authority = rest.substr(0, std::min(rest.find_first_of("/?"), rest.size()));
  rest.remove_prefix(authority.size());
  if (authority.find('@') != std::string_view::npos)
    bad_url(text, "a user or password in it is not sent; use a header");
  std::string_view port;
  if (authority.starts_with("[")) {
    const size_t close = authority.find(']');
    if (close == std::string_view::npos) bad_url(text, "the address has `[` without `]`");
    url.host = authority.substr(1, close - 1);
    port = authority.substr(close + 1);
    if (!std::all_of(url.host.begin(), url.host.end(), [](char c) { return is_host_char(c) || c == ':' || c == '%'; }))
      bad_url(text, "what stands in brackets is no IPv6 address");
  } else {
    const size_t colon = std::min(authority.find(':'), authority.size());
    url.host = authority.substr(0, colon);
    port = authority.substr(colon);
    if (!std::all_of(url.host.begin(), url.host.end(), is_host_char)) bad_url(text, "the host is no name or address");
  }
  if (url.host.empty()) bad_url(text, "it names no host");
  url.port = url.tls ? 443 : 80;
  if (!port.empty() && port != ":") {
    unsigned number = 0;
    const char* end = port.data() + port.size();
    auto [last, ec] = std::from_chars(port.data() + 1, end, number);
    if (port[0] != ':' || ec != std::errc{} || last != end || number < 1 || number > 65535)
      bad_url(text, "the port is not a number from 1 to 65535");
    url.port = uint16_t(number);
  }
  url.authority = authority.starts_with("[") ? fmt::format("[{}]", url.host) : url.host;
  if (url.port != (url.tls ? 443 : 80)) url.authority += fmt::format(":{}", url.port);
  if (!rest.empty()) url.target = rest.front() == '?' ? fmt::format("/{}", rest) : std::string(rest);
  return url;
}

std::string format_request_head(std::string_view method, const Url& url, const Headers& headers, size_t body_bytes) {
  static constexpr std::array<std::string_view, 4> kOwn = {"host", "content-length", "connection", "transfer-encoding"};
  if (!is_token(method) || method.size() > 32)
    throw Error(Code::kInvalidArgument, fmt::format("`{}` is not an HTTP method", method.substr(0, 64)));
  std::string out = fmt::format("{} {} HTTP/1.1\r\nHost: {}\r\n", method, url.target, url.authority);
  std::string name, value;
  for (const auto& [raw_name, raw_value] : headers) {
    // A name with a colon, or a value with a line break, would be parsed as something else than was meant.
    if (!is_token(raw_name) || parse_field(fmt::format("{}:{}", raw_name, raw_value), name, value))
      throw Error(Code::kInvalidArgument, fmt::format("the header `{}` cannot be sent: its name must be a token and "
                                                      "its value one line without control characters",
                                                      raw_name.substr(0, 64)));
    if (std::find(kOwn.begin(), kOwn.end(), name) != kOwn.end())
      throw Error(Code::kInvalidArgument, fmt::format("the header `{}` is set by the HTTP client itself", name));
    out.append(raw_name).append(": ").append(value).append("\r\n");
  }
  if (body_bytes > 0 || method == "POST" || method == "PUT" || method == "PATCH")
    out += fmt::format("Content-Length: {}\r\n", body_bytes);
  return out.append("\r\n");
}

ReceivedHead parse_response_head(std::string_view block, std::string_view request_method) {
  ReceivedHead head;
  bool minor_zero = false;
  for (bool first = true;; first = false) {
    const size_t end = block.find('\n');
    if (end == std::string_view::npos || end == 0) bad_head("its head has no end");
    const std::string_view line = block.substr(0, end - 1);
    block.remove_prefix(end + 1);
    if (first) {
      parse_status_line(line, head, minor_zero);
      continue;
    }
    if (line.empty()) break;
    if (head.headers.size() == kMaxFields) bad_head(fmt::format("it has more than {} header fields", kMaxFields));
    auto& [name, value] = head.headers.emplace_back();
    if (const auto refusal = parse_field(line, name, value)) bad_head(refusal->message);
  }
  bool close = minor_zero;
  for (const auto& [name, value] : head.headers) {
    if (name != "connection") continue;
    if (has_option(value, "close")) close = true;
    if (minor_zero && has_option(value, "keep-alive")) close = false;
  }
  head.keep_alive = !close;
  find_body_end(head, request_method);
  return head;
}

}  // namespace moectl::http
