#include "core/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moectl {
namespace {

// Index of the pair that turns `rotations` times within the original context.
double correction_dim(double rotations, const RopeConfig& rope) {
  return rope.dim * std::log(rope.original_max_position / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(double(rope.theta)));
}

}  // namespace

std::vector<float> rope_inv_freq(const RopeConfig& rope) {
  const int half = rope.dim / 2;
  std::vector<float> inv_freq(static_cast<size_t>(half));
  for (int i = 0; i < half; ++i)
    inv_freq[size_t(i)] = 1.0f / float(std::pow(double(rope.theta), double(2 * i) / rope.dim));
  if (rope.factor <= 1.0f) return inv_freq;

  double low = correction_dim(rope.beta_fast, rope), high = correction_dim(rope.beta_slow, rope);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, double(rope.dim - 1));
  if (low == high) high += 0.001;
  for (int i = 0; i < half; ++i) {
    // Fast pairs (ramp 0) keep their frequency, slow ones (ramp 1) are interpolated.
    float ramp = float(std::clamp((i - low) / (high - low), 0.0, 1.0));
    float extrapolated = inv_freq[size_t(i)], interpolated = extrapolated / rope.factor;
    inv_freq[size_t(i)] = interpolated * ramp + extrapolated * (1.0f - ramp);
  }
  return inv_freq;
}

}  // namespace moectl
