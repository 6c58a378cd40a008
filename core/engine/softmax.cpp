#include "core/engine/softmax.h"

#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>

namespace moectl {
namespace {

constexpr size_t kLanes = 16;

double tree(double (&lane)[kLanes]) {
  for (size_t width = kLanes / 2; width > 0; width /= 2)
    for (size_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

}  // namespace

RowStats row_stats(std::span<const float> x) {
  float lane[kLanes];
  uint32_t bad[kLanes] = {};
  for (float& m : lane) m = -std::numeric_limits<float>::infinity();
  const size_t whole = x.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes)
    for (size_t j = 0; j < kLanes; ++j) {
      const float v = x[i + j];
      lane[j] = v > lane[j] ? v : lane[j];
      bad[j] |= !(v <= FLT_MAX);  // true for NaN and +inf
    }
  for (size_t i = whole; i < x.size(); ++i) {
    lane[0] = x[i] > lane[0] ? x[i] : lane[0];
    bad[0] |= !(x[i] <= FLT_MAX);
  }
  RowStats stats{.max = lane[0]};
  for (size_t j = 0; j < kLanes; ++j) {
    stats.max = lane[j] > stats.max ? lane[j] : stats.max;
    stats.valid = stats.valid && !bad[j];
  }
  if (!stats.valid || stats.max == -std::numeric_limits<float>::infinity()) return stats;
  size_t i = 0;
  while (x[i] != stats.max) ++i;
  stats.argmax = int32_t(i);
  return stats;
}

// Cephes' expf: e^x = 2^n * e^r with |r| <= ln2 / 2 and a polynomial for e^r. Written without calls and branches so
// that loops over it become vector code.
float exp_nonpositive(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float n = (clamped * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // rounds to nearest: 1.5 * 2^23
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  const float power = std::bit_cast<float>(uint32_t(int32_t(n) + 127) << 23);
  return x < -87.0f ? 0.0f : p * power;
}

void softmax_weights(std::span<const float> x, float max, float scale, std::span<float> out) {
  for (size_t i = 0; i < x.size(); ++i) out[i] = exp_nonpositive((x[i] - max) * scale);
}

double lane_sum(std::span<const float> x) {
  double lane[kLanes] = {};
  const size_t whole = x.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes)
    for (size_t j = 0; j < kLanes; ++j) lane[j] += double(x[i + j]);
  for (size_t i = whole; i < x.size(); ++i) lane[i - whole] += double(x[i]);
  return tree(lane);
}

double log_sum_exp(std::span<const float> x, float max) {
  double lane[kLanes] = {};
  const size_t whole = x.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes)
    for (size_t j = 0; j < kLanes; ++j) lane[j] += double(exp_nonpositive(x[i + j] - max));
  for (size_t i = whole; i < x.size(); ++i) lane[i - whole] += double(exp_nonpositive(x[i] - max));
  return double(max) + std::log(tree(lane));
}

}  // namespace moectl
