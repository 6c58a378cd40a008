#include "core/base/sampling_ranges.h"

#include <fmt/core.h>

#include <cmath>

namespace moectl {

bool NumberRange::holds(double value) const {
  const bool in_range = (exclusive_min ? value > min : value >= min) && value <= max;
  return in_range && (value == 0.0 || std::isnormal(float(value)));
}

std::string NumberRange::text() const {
  return exclusive_min ? fmt::format("a number over {} and at most {}", min, max)
                       : fmt::format("a number from {} to {}", min, max);
}

}  // namespace moectl
