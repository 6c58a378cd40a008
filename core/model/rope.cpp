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

// Wave lengths above the original context are interpolated, short ones kept, and those between blended.
float llama3_frequency(float f, const RopeConfig& rope) {
  const float length = float(rope.original_max_position), wave = float(2 * std::numbers::pi) / f;
  if (wave < length / rope.high_freq_factor) return f;
  if (wave > length / rope.low_freq_factor) return f / rope.factor;
  if (rope.high_freq_factor <= rope.low_freq_factor) return f;  // a step (Llama 4 Scout): nothing lies between
  const float smooth = (length / wave - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * f / rope.factor + smooth * f;
}

}  // namespace

std::vector<float> rope_inv_freq(const RopeConfig& rope) {
  const int half = rope.dim / 2;
  std::vector<float> inv_freq(static_cast<size_t>(half));
  for (int i = 0; i < half; ++i)
    inv_freq[size_t(i)] = 1.0f / float(std::pow(double(rope.theta), double(2 * i) / rope.dim));
  switch (rope.scaling) {
    case RopeScaling::kNone:
      return inv_freq;
    case RopeScaling::kLinear:
      for (float& f : inv_freq) f /= rope.factor;
      return inv_freq;
    case RopeScaling::kLlama3:
      for (float& f : inv_freq) f = llama3_frequency(f, rope);
      return inv_freq;
    case RopeScaling::kYarn:
      break;
  }
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
