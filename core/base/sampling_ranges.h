// The ranges of the sampling parameters: the one table for request fields and for the defaults in
// generation_config.json. Within them no finite row of logits can overflow. Pure, any thread.
#pragma once

#include <string>

namespace moectl {

struct NumberRange {
  double min = 0, max = 0;
  bool exclusive_min = false;

  // In the range, and 0 or a normal number as float too: the sampler computes with floats, where 1e-40 is subnormal and
  // 1e-50 is 0.
  bool holds(double value) const;
  std::string text() const;  // "a number from 0 to 2"
};

inline constexpr NumberRange kTemperatureRange{0, 2};
inline constexpr NumberRange kTopPRange{0, 1, true};
inline constexpr NumberRange kMinPRange{0, 1};
inline constexpr NumberRange kPresencePenaltyRange{-2, 2};
inline constexpr NumberRange kFrequencyPenaltyRange{-2, 2};
inline constexpr NumberRange kRepetitionPenaltyRange{0.01, 100};
inline constexpr NumberRange kLogitBiasRange{-100, 100};

}  // namespace moectl
