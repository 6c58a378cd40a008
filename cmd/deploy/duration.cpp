#include "cmd/deploy/duration.h"

#include <charconv>
#include <cstdint>

#include "core/base/error.h"

namespace moectl {

std::chrono::seconds parse_duration(std::string_view text, std::string_view origin) {
  const std::string whole(text);
  int64_t total = 0;
  bool good = !text.empty();
  while (good && !text.empty()) {
    int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    good = error == std::errc{} && number >= 0 && number <= 100'000'000;
    if (!good) break;
    text.remove_prefix(size_t(end - text.data()));
    int64_t unit = 1;
    if (!text.empty()) {
      const size_t at = std::string_view("smhd").find(text[0]);
      good = at != std::string_view::npos;
      unit = good ? (const int64_t[]){1, 60, 3600, 86400}[at] : 0;
      text.remove_prefix(1);
    }
    total += number * unit;
  }
  if (!good) throw Error(Code::kUsage, fmt::format("{}: '{}' is not a time such as 90s, 5m or 1h30m", origin, whole));
  return std::chrono::seconds(total);
}

}  // namespace moectl
