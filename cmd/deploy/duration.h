// A length of time as a user writes it.
#pragma once

#include <chrono>
#include <string_view>

namespace moectl {

// "5m", "90s", "1h30m", "2d"; a bare number is seconds. Throws Error{kUsage} that names `origin`.
std::chrono::seconds parse_duration(std::string_view text, std::string_view origin);

}  // namespace moectl
