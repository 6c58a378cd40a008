// OperandCache knows addresses only, so its tests need no GPU.
#include "kernels/cuda/runtime/operand_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

namespace moectl::test {
namespace {

using cuda::OperandCache;
using Kind = OperandCache::Kind;

constexpr int64_t kPlace = 256, kRows = 2, kK = 64;

class OperandCacheTest : public testing::Test {
 protected:
  OperandCacheTest() : memory_(size_t(kPlace * OperandCache::kNumPlaces[OperandCache::kTokens])), x_(8 * kRows * kK) {
    cache_.set_memory(OperandCache::kTokens, memory_.data(), kPlace);
  }
  const float* x(int64_t i) const { return x_.data() + i * kRows * kK; }
  OperandCache::Copy get(int64_t i, Kind kind = Kind::kBf16) {
    return cache_.get(OperandCache::kTokens, x(i), kRows, kK, kind, kPlace);
  }

  OperandCache cache_;
  std::vector<std::byte> memory_;
  std::vector<float> x_;
};

TEST_F(OperandCacheTest, ACopyIsMadeOnceUntilItsRowsAreWritten) {
  const auto first = get(0), other = get(0, Kind::kFp8);
  EXPECT_TRUE(first.missing);
  EXPECT_TRUE(other.missing);
  EXPECT_NE(first.memory, other.memory);
  EXPECT_FALSE(get(0).missing);
  EXPECT_EQ(get(0).memory, first.memory);
  cache_.forget(x(0) + kRows * kK - 1, sizeof(float));  // the last number
  EXPECT_TRUE(get(0).missing);
  EXPECT_TRUE(get(0, Kind::kFp8).missing);
  cache_.forget(x(1), 4);  // the neighbour's first
  EXPECT_FALSE(get(0).missing);
  EXPECT_TRUE(cache_.get(OperandCache::kTokens, x(0), 1, kK, Kind::kBf16, kPlace).missing) << "other rows";
  cache_.clear();
  EXPECT_TRUE(get(0).missing);
}

TEST_F(OperandCacheTest, ExpertsHavePlacesOfTheirOwn) {
  std::vector<std::byte> memory(size_t(kPlace * OperandCache::kNumPlaces[OperandCache::kExperts]));
  cache_.set_memory(OperandCache::kExperts, memory.data(), kPlace);
  get(0);
  for (int64_t i = 1; i < 8; ++i) cache_.get(OperandCache::kExperts, x(i), kRows, kK, Kind::kFp8, kPlace);
  EXPECT_FALSE(get(0).missing);
}

TEST_F(OperandCacheTest, WhoWritesRowsLearnsWhatProductsAskFor) {
  EXPECT_FALSE(cache_.is_wanted(OperandCache::kTokens, kK, Kind::kBf16));
  void* const made = cache_.put(OperandCache::kTokens, x(0), kRows, kK, Kind::kBf16, kPlace);
  EXPECT_FALSE(cache_.is_wanted(OperandCache::kTokens, kK, Kind::kBf16)) << "to make a copy is not to ask for it";
  EXPECT_FALSE(get(0).missing);
  EXPECT_EQ(get(0).memory, made);
  EXPECT_TRUE(cache_.is_wanted(OperandCache::kTokens, kK, Kind::kBf16));
  EXPECT_FALSE(cache_.is_wanted(OperandCache::kTokens, kK, Kind::kFp8));
  EXPECT_FALSE(cache_.is_wanted(OperandCache::kTokens, 2 * kK, Kind::kBf16));
  EXPECT_FALSE(cache_.is_wanted(OperandCache::kExperts, kK, Kind::kBf16));
}

TEST_F(OperandCacheTest, WhatDoesNotFitHasNoCopy) {
  EXPECT_EQ(cache_.get(OperandCache::kTokens, x(0), kRows, kK, Kind::kBf16, kPlace + 1).memory, nullptr);
  EXPECT_EQ(cache_.put(OperandCache::kExperts, x(0), kRows, kK, Kind::kBf16, 1), nullptr) << "a pool without memory";
}

TEST_F(OperandCacheTest, ACopyOfTheSideIsNotTheMainOnesBeforeTheyMeet) {
  const auto common = get(0);
  cache_.set_side(true);
  EXPECT_FALSE(get(0).missing) << "made before they parted";
  const auto side = get(1);
  EXPECT_FALSE(get(1).missing);
  cache_.set_side(false);
  const auto main = get(1);
  EXPECT_TRUE(main.missing);
  EXPECT_NE(main.memory, side.memory);
  EXPECT_EQ(get(0).memory, common.memory);
  cache_.set_side(true);
  const auto late = get(2);
  cache_.set_side(false);
  cache_.meet();
  EXPECT_FALSE(get(2).missing);
  EXPECT_EQ(get(2).memory, late.memory);
}

// Two copies that both read, and two that each side makes: all at different places, from any state before.
TEST_F(OperandCacheTest, NeitherSideOverwritesWhatTheOtherReads) {
  for (int64_t used = 0; used < OperandCache::kNumPlaces[OperandCache::kTokens]; ++used) {
    cache_.clear();
    get(7);
    std::vector<void*> places = {get(0).memory, get(0, Kind::kFp8).memory};
    cache_.set_side(true);
    places.push_back(get(1).memory);
    places.push_back(get(2).memory);
    cache_.set_side(false);
    places.push_back(get(3).memory);
    places.push_back(get(4).memory);
    cache_.meet();
    EXPECT_EQ(std::set<void*>(places.begin(), places.end()).size(), places.size());
  }
}

}  // namespace
}  // namespace moectl::test
