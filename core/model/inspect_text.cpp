#include "core/model/inspect_text.h"

namespace moectl {

std::string thousands(int64_t n) {
  std::string digits = std::to_string(n), out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

std::string bytes_text(int64_t n) {
  if (n < 1000) return fmt::format("{} B", n);
  double x = double(n);
  const char* unit = "";
  for (const char* u : {"kB", "MB", "GB", "TB"}) {
    if (x < 1000) break;
    x /= 1000;
    unit = u;
  }
  return fmt::format("{:.{}f} {}", x, x < 10 ? 2 : 1, unit);
}

std::string plural(int64_t n, const char* one, const char* many) {
  return fmt::format("{} {}", thousands(n), n == 1 ? one : many);
}

std::string escaped_ascii(std::string_view s) {
  std::string out;
  for (unsigned char ch : s) out += ch >= 0x20 && ch < 0x7f ? std::string(1, char(ch)) : fmt::format("\\x{:02x}", ch);
  return out;
}

}  // namespace moectl
