// The generator against the authors' published known answers, and the ranges and spread of the numbers made from it.
#include "core/base/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <vector>

namespace moectl {
namespace {

TEST(Philox, KnownAnswers) {  // Random123's kat_vectors, "philox4x32 10"
  using Block = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32_10({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Uniform, IsTheDocumentedFunctionOfTheBlock) {
  const uint64_t seed = 0x0123456789abcdef, index = (uint64_t{7} << 32) | 5;
  const auto w = philox4x32_10({3, 0, 5, 7}, {0x89abcdef, 0x01234567});
  EXPECT_EQ(uniform_double(seed, index, 3), double((uint64_t{w[1]} << 32 | w[0]) >> 11) / 9007199254740992.0);
}

TEST(Uniform, RangeMeanAndSpread) {
  constexpr int kDraws = 200000, kBins = 64;
  std::vector<int> bins(kBins);
  double sum = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double d = uniform_double(42, uint64_t(i), 0);
    ASSERT_TRUE(d >= 0.0 && d < 1.0) << i;
    sum += d;
    ++bins[int(d * kBins)];
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 4 / std::sqrt(12.0 * kDraws));  // four standard errors; the draws are fixed
  double chi2 = 0;
  for (int n : bins) chi2 += std::pow(n - double(kDraws) / kBins, 2) / (double(kDraws) / kBins);
  EXPECT_LT(chi2, 63 + 4 * std::sqrt(2.0 * 63));
}

TEST(Uniform, SeedIndexAndDrawAllCount) {
  std::set<double> seen;
  for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, ~uint64_t{0}})
    for (uint64_t index : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32})
      for (uint32_t draw : {0u, 1u, 2u}) seen.insert(uniform_double(seed, index, draw));
  EXPECT_EQ(seen.size(), 4u * 3u * 3u);
}

}  // namespace
}  // namespace moectl
