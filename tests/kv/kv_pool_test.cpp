// The pool of a TP group: what a writer writes reaches every rank that has to have it, and nothing else.
#include "core/kv/kv_pool.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace moectl {
namespace {

constexpr int kLayers = 2, kPages = 3;
constexpr int64_t kPageBytes = 8;

// One rank's memory, all zeros.
struct RankMemory {
  explicit RankMemory(bool token_rows) {
    pool = {
        .num_layers = kLayers, .num_pages = kPages, .page_size = 4, .page_bytes = kPageBytes, .token_rows = token_rows};
    for (auto& layer : layers) pool.layers.push_back(layer.data());
  }
  std::vector<std::vector<std::byte>> layers{kLayers, std::vector<std::byte>(kPages* kPageBytes)};
  KvPool pool;
};

std::vector<std::byte> bytes(std::initializer_list<int> values) {
  std::vector<std::byte> all;
  for (int v : values) all.push_back(std::byte(v));
  return all;
}

// Layer `layer` with `data` at `at`, zeros elsewhere.
std::vector<std::byte> layer_with(const std::vector<std::byte>& data, size_t at) {
  std::vector<std::byte> all(kPages * kPageBytes);
  std::ranges::copy(data, all.begin() + long(at));
  return all;
}

TEST(PoolOfGroup, CompressedKvIsWrittenToEveryRank) {
  std::vector<RankMemory> ranks;
  for (int r = 0; r < 3; ++r) ranks.emplace_back(true);
  const KvPool group = pool_of_group({ranks[0].pool, ranks[1].pool, ranks[2].pool});
  EXPECT_EQ(group.num_layers, kLayers);
  EXPECT_EQ(group.page_bytes, kPageBytes);
  const auto data = bytes({1, 2, 3});
  group.write(1, 2, 4, data.data(), 3);
  for (const RankMemory& rank : ranks) {
    EXPECT_EQ(rank.layers[0], layer_with({}, 0));
    EXPECT_EQ(rank.layers[1], layer_with(data, 2 * kPageBytes + 4));
  }
  EXPECT_EQ(group.page(1, 2), ranks[0].layers[1].data() + 2 * kPageBytes);
}

TEST(PoolOfGroup, HeadsOfEachRankAreLayersOfTheirOwn) {
  std::vector<RankMemory> ranks;
  for (int r = 0; r < 2; ++r) ranks.emplace_back(false);
  const KvPool group = pool_of_group({ranks[0].pool, ranks[1].pool});
  EXPECT_EQ(group.num_layers, 2 * kLayers);
  ASSERT_EQ(group.layers.size(), size_t(2 * kLayers));
  EXPECT_TRUE(group.copies.empty());
  const auto data = bytes({7, 8});
  group.write(kLayers + 1, 0, 0, data.data(), 2);
  EXPECT_EQ(ranks[1].layers[1], layer_with(data, 0));
  EXPECT_EQ(ranks[1].layers[0], layer_with({}, 0));
  for (const auto& layer : ranks[0].layers) EXPECT_EQ(layer, layer_with({}, 0));
}

TEST(PoolOfGroup, RanksOfOtherShapesAreRefused) {
  RankMemory one(true), other(true);
  EXPECT_THROW(pool_of_group(std::vector<KvPool>()), Error);
  EXPECT_NO_THROW(pool_of_group({one.pool, other.pool}));
  other.pool.num_pages = 2;
  EXPECT_THROW(pool_of_group({one.pool, other.pool}), Error);
  other.pool.num_pages = kPages;
  other.pool.token_rows = false;
  EXPECT_THROW(pool_of_group({one.pool, other.pool}), Error);
}

}  // namespace
}  // namespace moectl
