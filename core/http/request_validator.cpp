#include "core/http/request_validator.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>

namespace moectl::http {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_alpha(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool is_control(char c) {
  return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
}
bool is_one_of(char c, std::string_view set) {
  return set.find(c) != std::string_view::npos;
}
bool is_token_char(char c) {
  return is_digit(c) || is_alpha(c) || (c != 0 && is_one_of(c, "!#$%&'*+-.^_`|~"));
}
char lower(char c) {
  return c >= 'A' && c <= 'Z' ? char(c + 32) : c;
}

bool equals_ignoring_case(std::string_view a, std::string_view b) {
  return a.size() == b.size() &&
         std::equal(a.begin(), a.end(), b.begin(), [](char x, char y) { return lower(x) == lower(y); });
}

std::string_view trim_blanks(std::string_view s) {
  while (!s.empty() && is_one_of(s.front(), " \t")) s.remove_prefix(1);
  while (!s.empty() && is_one_of(s.back(), " \t")) s.remove_suffix(1);
  return s;
}

Refusal bad(std::string message) {
  return {400, std::move(message)};
}

int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  c = lower(c);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// Overlong forms, surrogates and code points over U+10FFFF are invalid (RFC 3629).
bool is_valid_utf8(std::string_view s) {
  for (size_t i = 0; i < s.size();) {
    auto byte = [&](size_t k) { return i + k < s.size() ? static_cast<unsigned char>(s[i + k]) : 0u; };
    unsigned b = byte(0);
    size_t len = b < 0x80 ? 1 : b >= 0xc2 && b <= 0xdf ? 2 : (b & 0xf0) == 0xe0 ? 3 : b >= 0xf0 && b <= 0xf4 ? 4 : 0;
    if (len == 0) return false;
    for (size_t k = 1; k < len; ++k)
      if ((byte(k) & 0xc0) != 0x80) return false;
    if ((b == 0xe0 && byte(1) < 0xa0) || (b == 0xed && byte(1) > 0x9f)) return false;
    if ((b == 0xf0 && byte(1) < 0x90) || (b == 0xf4 && byte(1) > 0x8f)) return false;
    i += len;
  }
  return true;
}

std::optional<Refusal> decode_path(std::string_view raw, std::string& path) {
  for (size_t i = 0; i < raw.size(); ++i) {
    if (raw[i] != '%') {
      path += raw[i];
      continue;
    }
    int high = i + 2 < raw.size() ? hex_value(raw[i + 1]) : -1, low = i + 2 < raw.size() ? hex_value(raw[i + 2]) : -1;
    if (high < 0 || low < 0) return bad("a `%` in the request path is not followed by two hexadecimal digits");
    path += char(high * 16 + low);
    i += 2;
  }
  if (std::any_of(path.begin(), path.end(), is_control)) return bad("the request path contains a control character");
  if (!is_valid_utf8(path)) return bad("the request path is not valid UTF-8 after percent-decoding");
  return std::nullopt;
}

// origin-form, absolute-form of http(s), and `*` for OPTIONS. `authority` is set for the absolute form.
std::optional<Refusal> parse_target(std::string_view target, RequestHead& head, std::string& authority) {
  for (char c : target)
    if (c < 0x21 || c > 0x7e || c == '#')
      return bad("the request target contains a character that must be percent-encoded");
  if (target == "*" && head.method == "OPTIONS") {
    head.path.push_back('*');
    return std::nullopt;
  }
  for (std::string_view scheme : {"http://", "https://"}) {
    if (!equals_ignoring_case(target.substr(0, scheme.size()), scheme)) continue;
    target.remove_prefix(scheme.size());
    size_t end = std::min(target.find_first_of("/?"), target.size());
    authority = target.substr(0, end);
    if (authority.empty()) return bad("the request target has no host");
    target.remove_prefix(end);
    if (target.empty()) target = "/";
    if (target.front() == '?') {
      head.path.push_back('/');
      head.query = target.substr(1);
      return std::nullopt;
    }
    break;
  }
  if (target.empty() || target.front() != '/') return bad("the request target is not a path: it must start with `/`");
  size_t mark = std::min(target.find('?'), target.size());
  if (mark < target.size()) head.query = target.substr(mark + 1);
  return decode_path(target.substr(0, mark), head.path);
}

std::optional<Refusal> parse_request_line(std::string_view line, const HeadLimits& limits, RequestHead& head,
                                          std::string& authority) {
  size_t first = line.find(' '), last = line.rfind(' ');
  if (first == std::string_view::npos || first == last || line.find(' ', first + 1) != last)
    return bad("the request line is not `METHOD TARGET HTTP/1.1` with single spaces");
  std::string_view method = line.substr(0, first), target = line.substr(first + 1, last - first - 1);
  std::string_view version = line.substr(last + 1);
  if (!is_token(method) || method.size() > 32) return bad("the request method is not a token of at most 32 characters");
  if (version.size() != 8 || version.substr(0, 5) != "HTTP/" || !is_digit(version[5]) || version[6] != '.' ||
      !is_digit(version[7]))
    return bad("the request line does not end in an HTTP version such as `HTTP/1.1`");
  if (version != "HTTP/1.1" && version != "HTTP/1.0")
    return Refusal{505, "this server speaks HTTP/1.1 and HTTP/1.0 only"};
  if (target.size() > limits.max_target_bytes)
    return Refusal{414, fmt::format("the request target is {} bytes long; at most {} are accepted", target.size(),
                                    limits.max_target_bytes)};
  head.method = method;
  head.minor_version = version[7] - '0';
  return parse_target(target, head, authority);
}

std::optional<Refusal> check_host(const RequestHead& head, const std::string& authority) {
  int count = 0;
  for (const auto& [name, value] : head.headers) {
    if (name != "host") continue;
    if (++count > 1) return bad("the request has more than one Host field");
    for (char c : value)
      if (!is_digit(c) && !is_alpha(c) && !is_one_of(c, "-._~:[]%!$&'()*+;="))
        return bad("the Host field is not a host name or address with an optional port");
    if (!authority.empty() && !equals_ignoring_case(value, authority))
      return bad("the Host field differs from the host in the request target");
  }
  if (count == 0 && head.minor_version == 1) return bad("the request has no Host field, which HTTP/1.1 requires");
  return std::nullopt;
}

std::optional<Refusal> check_framing(RequestHead& head) {
  int lengths = 0, codings = 0;
  std::string_view length, coding;
  for (const auto& [name, value] : head.headers) {
    if (name == "content-length") ++lengths, length = value;
    if (name == "transfer-encoding") ++codings, coding = value;
  }
  if (lengths && codings) return bad("the request has both Content-Length and Transfer-Encoding");
  if (lengths > 1) return bad("the request has more than one Content-Length field");
  if (codings > 1) return bad("the request has more than one Transfer-Encoding field");
  if (codings) {
    if (head.minor_version == 0) return bad("Transfer-Encoding is not defined in HTTP/1.0");
    if (!equals_ignoring_case(coding, "chunked")) {
      if (is_token(coding)) return Refusal{501, "the only transfer coding understood is `chunked`"};
      return bad("the Transfer-Encoding field must be exactly `chunked`");
    }
    head.chunked = true;
  }
  if (lengths) {
    // 18 digits always fit in 64 bits.
    if (length.empty() || length.size() > 18 || !std::all_of(length.begin(), length.end(), is_digit))
      return bad("the Content-Length field must be one decimal number of at most 18 digits");
    std::from_chars(length.data(), length.data() + length.size(), head.content_length);
  }
  return std::nullopt;
}

// Bodies are read as they come: a compressed one would be refused as malformed, which says nothing about the cause.
std::optional<Refusal> check_content_coding(const RequestHead& head) {
  for (const auto& [name, value] : head.headers)
    if (name == "content-encoding" && !value.empty() && !equals_ignoring_case(value, "identity"))
      return Refusal{415, fmt::format("the Content-Encoding `{}` is not supported; send the body without it",
                                      value.substr(0, 64))};
  return std::nullopt;
}

std::optional<Refusal> check_expectations(RequestHead& head) {
  bool close = false, keep = false;
  for (const auto& [name, value] : head.headers) {
    if (name == "expect" && head.minor_version == 1) {
      if (!equals_ignoring_case(value, "100-continue"))
        return Refusal{417, "the only expectation understood is `100-continue`"};
      head.expect_continue = true;
    }
    if (name != "connection") continue;
    for (std::string_view rest = value; !rest.empty();) {
      size_t comma = std::min(rest.find(','), rest.size());
      std::string_view option = trim_blanks(rest.substr(0, comma));
      close |= equals_ignoring_case(option, "close");
      keep |= equals_ignoring_case(option, "keep-alive");
      rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
  }
  head.keep_alive = !close && (keep || head.minor_version == 1);
  return std::nullopt;
}

}  // namespace

bool is_token(std::string_view s) {
  return !s.empty() && std::all_of(s.begin(), s.end(), is_token_char);
}

bool is_sane_request_id(std::string_view s) {
  return !s.empty() && s.size() <= 128 &&
         std::all_of(s.begin(), s.end(), [](char c) { return is_digit(c) || is_alpha(c) || is_one_of(c, "._-"); });
}

size_t HeadScanner::scan(std::string_view buffer) {
  if (refusal_) return 0;
  for (size_t end = std::min(buffer.size(), max_head_bytes_); pos_ < end; ++pos_) {
    char c = buffer[pos_];
    if (c == '\n') {
      if (pos_ == 0 || buffer[pos_ - 1] != '\r') {
        refusal_ = bad("a line of the request head ends in LF without CR");
        return 0;
      }
      if (pos_ - 1 == line_start_ && pos_ != 1) return pos_ + 1;
      line_start_ = pos_ + 1;
    } else if (pos_ > 0 && buffer[pos_ - 1] == '\r') {
      refusal_ = bad("the request head contains CR without LF");
      return 0;
    } else if (is_control(c) && c != '\r' && c != '\t') {
      refusal_ = bad("the request head contains a control character; is the client speaking TLS to a plain port?");
      return 0;
    }
  }
  if (buffer.size() >= max_head_bytes_)
    refusal_ = Refusal{431, fmt::format("the request head is longer than {} bytes", max_head_bytes_)};
  return 0;
}

std::optional<Refusal> parse_field(std::string_view line, std::string& name, std::string& value) {
  if (line.empty() || is_one_of(line.front(), " \t"))
    return bad("a header line starts with a blank (folded lines are obsolete)");
  size_t colon = line.find(':');
  if (colon == std::string_view::npos) return bad("a header line has no colon");
  std::string_view raw = line.substr(0, colon);
  if (!is_token(raw)) return bad("a header name is not a token (no blank may stand before the colon)");
  name.assign(raw);
  std::transform(name.begin(), name.end(), name.begin(), lower);
  value.assign(trim_blanks(line.substr(colon + 1)));
  if (std::any_of(value.begin(), value.end(), [](char c) { return is_control(c) && c != '\t'; }))
    return bad(fmt::format("the value of header `{}` contains a control character", name));
  return std::nullopt;
}

std::optional<Refusal> parse_head(std::string_view block, const HeadLimits& limits, RequestHead& head) {
  head = {};
  if (block.size() > limits.max_head_bytes)
    return Refusal{431, fmt::format("the request head is longer than {} bytes", limits.max_head_bytes)};
  if (block.starts_with("\r\n")) block.remove_prefix(2);
  std::string authority;
  for (bool first = true;; first = false) {
    size_t end = block.find('\n');
    if (end == std::string_view::npos || end == 0 || block[end - 1] != '\r')
      return bad("a line of the request head does not end in CRLF");
    std::string_view line = block.substr(0, end - 1);
    block.remove_prefix(end + 1);
    if (first) {
      if (std::any_of(line.begin(), line.end(), is_control))
        return bad("the request line contains a control character");
      if (auto refusal = parse_request_line(line, limits, head, authority)) return refusal;
      continue;
    }
    if (line.empty()) break;
    if (head.headers.size() == limits.max_fields)
      return Refusal{431, fmt::format("the request has more than {} header fields", limits.max_fields)};
    auto& [name, value] = head.headers.emplace_back();
    if (auto refusal = parse_field(line, name, value)) return refusal;
  }
  if (!block.empty()) return bad("bytes follow the blank line of the request head");
  if (auto refusal = check_host(head, authority)) return refusal;
  if (auto refusal = check_framing(head)) return refusal;
  if (auto refusal = check_content_coding(head)) return refusal;
  return check_expectations(head);
}

}  // namespace moectl::http
