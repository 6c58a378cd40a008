// Comparison of float results with a reference: places of infinities and NaN, error against a derived tolerance,
// cosine; and bit-for-bit comparison. Knows neither operations nor backends.
//
// Tolerances are derived, never tuned. u = unit roundoff of the format in which sums are kept (f32: 2^-24). A sum of K
// products a[i] * b[i], each step rounded once or twice, differs from the exact sum by at most about (K + 1) u M, M =
// sum of |a[i] b[i]| (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1). Rounding errors of random
// data do not conspire: |error| <= 6 sqrt(K + 1) u M fails with a probability below 4e-8 an element (Higham & Mary, "A
// New Approach to Probabilistic Rounding Error Analysis", 2019, lambda = 6). dot_tolerance() is the smaller of the two;
// 2 u |result| pays for the store and one operation after the sum. Products are bounded in the f64 reference itself:
// Bounded carries a value and how far an f32 computation may be from it, and operators propagate it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "core/base/dtype.h"

namespace moectl::test {

constexpr double unit_roundoff(DType t) {
  switch (t) {
    case DType::kF32:
      return 0x1p-24;
    case DType::kF16:
      return 0x1p-11;
    case DType::kBF16:
      return 0x1p-8;
    case DType::kF8E4M3:
      return 0x1p-4;
    default:
      return 0.0;
  }
}

// `magnitude`: sum of |a[i] b[i]|; never above the product of the norms of a and b.
inline double dot_tolerance(int64_t k, double magnitude, DType accumulator = DType::kF32) {
  const double terms = double(k) + 1.0;
  return std::min(terms, 6.0 * std::sqrt(terms)) * unit_roundoff(accumulator) * magnitude;
}

// A reference value and the largest error an f32 computation of it may have. First order: products of errors are
// dropped.
struct Bounded {
  double value = 0.0, error = 0.0;
};
inline Bounded rounded(double value, double error) {
  return {value, error + 2 * unit_roundoff(DType::kF32) * std::abs(value)};
}
inline Bounded operator+(Bounded a, Bounded b) {
  return rounded(a.value + b.value, a.error + b.error);
}
inline Bounded operator*(Bounded a, Bounded b) {
  return rounded(a.value * b.value, std::abs(a.value) * b.error + std::abs(b.value) * a.error);
}

// Dot product under construction: add the terms, then take the result.
class DotReference {
 public:
  void add(Bounded a, double b) {
    sum_ += a.value * b;
    magnitude_ += std::abs(a.value * b);
    carried_ += a.error * std::abs(b);
    ++k_;
  }
  void add(double a, double b) { add(Bounded{a, 0.0}, b); }
  Bounded result() const { return rounded(sum_, carried_ + dot_tolerance(k_, magnitude_)); }

 private:
  double sum_ = 0.0, magnitude_ = 0.0, carried_ = 0.0;
  int64_t k_ = 0;
};

inline std::string place_name(size_t flat, std::span<const int64_t> shape) {
  std::string name = "[";
  for (size_t d = 0; d < shape.size(); ++d) {
    int64_t below = 1;
    for (size_t e = d + 1; e < shape.size(); ++e) below *= shape[e];
    name += (d ? ", " : "") + std::to_string(int64_t(flat) / below % shape[d]);
  }
  return name + "]";
}

// expected[i] may be off by its own error. `shape` is for messages: the first differing places are printed with their
// indexes.
inline testing::AssertionResult close(std::span<const float> actual, std::span<const Bounded> expected,
                                      std::vector<int64_t> shape = {}) {
  if (actual.size() != expected.size())
    return testing::AssertionFailure() << actual.size() << " values, expected " << expected.size();
  if (shape.empty()) shape = {int64_t(actual.size())};
  constexpr int kShown = 5;
  int num_bad = 0;
  std::string places;
  double dot = 0, norm_a = 0, norm_e = 0, worst = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double a = actual[i], e = expected[i].value, error = std::abs(a - e);
    // Neither an infinity nor a NaN is close to anything but its like.
    const bool good =
        std::isfinite(e) && std::isfinite(a) ? error <= expected[i].error : (std::isnan(a) && std::isnan(e)) || a == e;
    if (std::isfinite(e) && std::isfinite(a)) {
      dot += a * e;
      norm_a += a * a;
      norm_e += e * e;
      worst = std::max(worst, error);
    }
    if (good) continue;
    if (++num_bad > kShown) continue;
    places += "  at " + place_name(i, shape) + ": " + testing::PrintToString(a) + ", expected " +
              testing::PrintToString(e) + ", error " + testing::PrintToString(error) + ", tolerance " +
              testing::PrintToString(expected[i].error) + "\n";
  }
  const double cosine = norm_a > 0 && norm_e > 0 ? dot / std::sqrt(norm_a * norm_e) : 1.0;
  if (num_bad == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << num_bad << " of " << actual.size() << " values differ (largest error " << worst
                                     << ", cosine " << cosine << "):\n"
                                     << places;
}

inline testing::AssertionResult same_bits(std::span<const float> actual, std::span<const float> expected,
                                          std::vector<int64_t> shape = {}) {
  if (actual.size() != expected.size())
    return testing::AssertionFailure() << actual.size() << " values, expected " << expected.size();
  if (shape.empty()) shape = {int64_t(actual.size())};
  for (size_t i = 0; i < actual.size(); ++i)
    if (std::memcmp(&actual[i], &expected[i], sizeof(float)) != 0)
      return testing::AssertionFailure() << "bits differ first at " << place_name(i, shape) << ": " << actual[i]
                                         << ", expected " << expected[i];
  return testing::AssertionSuccess();
}

}  // namespace moectl::test
