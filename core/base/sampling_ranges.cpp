#include "core/base/sampling_ranges.h"

#include <fmt/core.h>

#include <cmath>

namespace moectl {

bool NumberRange::holds(double value) const {
  const bool in_range = (exclusive_min ? value > min : value >= min) && value <= max;
  return in_range && (value == 0.0 || std::isnormal(float(value)));
}

std::string NumberRange::text() const {
  return fmt::format("a number {} {} and at most {}", exclusive_min ? "over" : "from", min, max);
}

}  // namespace moectl
