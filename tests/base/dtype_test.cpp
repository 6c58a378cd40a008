// The widening functions against the formats' definitions, for every bit pattern.
#include "core/base/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace moectl::test {
namespace {

// sign, `exponent_bits` of exponent with the usual bias, `mantissa_bits`; subnormals; no infinities or NaN.
double value_of(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const int exponent = int(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
  const double fraction = std::ldexp(double(mantissa), -mantissa_bits);
  const double value = exponent ? std::ldexp(1.0 + fraction, exponent - bias) : std::ldexp(fraction, 1 - bias);
  return bits >> (exponent_bits + mantissa_bits) ? -value : value;
}

void expect_same(double actual, double expected, uint32_t bits) {
  ASSERT_EQ(actual, expected) << "bits " << bits;
  ASSERT_EQ(std::signbit(actual), std::signbit(expected)) << "bits " << bits;
}

TEST(DType, EveryF8) {
  for (uint32_t b = 0; b < 256; ++b) {
    if ((b & 0x7f) == 0x7f)
      EXPECT_TRUE(std::isnan(f8_e4m3_to_f32(uint8_t(b))));
    else
      expect_same(f8_e4m3_to_f32(uint8_t(b)), value_of(b, 4, 3), b);
  }
  EXPECT_EQ(f8_e4m3_to_f32(0x7e), 448.0f);
  EXPECT_EQ(f8_e4m3_to_f32(0x01), 0x1p-9f);
}

TEST(DType, EveryF16) {
  for (uint32_t b = 0; b < 65536; ++b) {
    const float f = f16_to_f32(uint16_t(b));
    if ((b & 0x7c00) != 0x7c00)
      expect_same(f, value_of(b, 5, 10), b);
    else if (b & 0x3ff)
      ASSERT_TRUE(std::isnan(f)) << b;
    else
      ASSERT_EQ(f, b & 0x8000 ? -INFINITY : INFINITY);
  }
}

TEST(DType, EveryBf16ThereAndBack) {
  for (uint32_t b = 0; b < 65536; ++b) {
    const float f = bf16_to_f32(uint16_t(b));
    if ((b & 0x7f80) != 0x7f80)
      expect_same(f, value_of(b, 8, 7), b);
    else if (b & 0x7f)
      ASSERT_TRUE(std::isnan(f)) << b;
    else
      ASSERT_EQ(f, b & 0x8000 ? -INFINITY : INFINITY);
    if (std::isnan(f))
      ASSERT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(f)))) << b;
    else
      ASSERT_EQ(f32_to_bf16(f), b);
  }
}

TEST(DType, Bf16RoundsToNearestTiesToEven) {
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);             // a tie, down to even
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-7f + 0x1p-8f), 0x3f82);   // a tie, up to even
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);  // above the tie
  EXPECT_EQ(f32_to_bf16(0x1.fffffep127f), 0x7f80);            // overflows to infinity
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001u)))));
  std::mt19937 rng(1);
  for (int i = 0; i < 100000; ++i) {
    const float f = std::bit_cast<float>(uint32_t(rng()));
    if (!std::isfinite(f) || std::abs(f) > 0x1.fcp127f) continue;
    const uint16_t b = f32_to_bf16(f);
    const double error = std::abs(double(bf16_to_f32(b)) - f);
    for (int step : {-1, 1}) {
      const double other = bf16_to_f32(uint16_t(b + step));
      if (std::isfinite(other)) {
        ASSERT_LE(error, std::abs(other - double(f))) << f;
      }
    }
  }
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(dtype_bytes(DType::kF8E4M3), 1);
  EXPECT_EQ(dtype_bytes(DType::kBF16), 2);
  EXPECT_EQ(dtype_bytes(DType::kI64), 8);
  EXPECT_EQ(dtype_name(DType::kF8E4M3), "f8_e4m3");
}

}  // namespace
}  // namespace moectl::test
