// The pool of a TP group: lanes are the whole model's; what a writer writes reaches every rank that has to have it, and
// nothing else.
#include "core/kv/kv_pool.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/base/error.h"

namespace moectl {
namespace {

constexpr int kPages = 3;
constexpr int64_t kPageBytes = 8;

// One rank's memory of one layer, zeros: the lanes [first, first + held) of `num_lanes`, a page of all of them
// together.
struct RankMemory {
  RankMemory(int num_lanes, int first, int held) : bytes(size_t(kPages * held * kPageBytes)) {
    pool = {.num_lanes = num_lanes,
            .num_pages = kPages,
            .page_size = 4,
            .page_bytes = kPageBytes,
            .page_stride = held * kPageBytes,
            .token_rows = num_lanes == 1};
    pool.lanes.resize(size_t(num_lanes));
    for (int i = 0; i < held; ++i) pool.lanes[size_t(first + i)] = {bytes.data() + i * kPageBytes};
  }
  // All zeros but `data` at `at`.
  bool holds(const std::vector<std::byte>& data, int64_t at) const {
    std::vector<std::byte> expected(bytes.size());
    std::ranges::copy(data, expected.begin() + at);
    return bytes == expected;
  }
  std::vector<std::byte> bytes;
  KvPool pool;
};

const std::vector<std::byte> kData = {std::byte(1), std::byte(2), std::byte(3)};

void write(const KvPool& pool, int lane, int64_t page) {
  pool.write(lane, page, kData.data(), int64_t(kData.size()));
}

TEST(PoolOfGroup, CompressedKvIsWrittenToEveryRank) {
  RankMemory ranks[] = {{1, 0, 1}, {1, 0, 1}, {1, 0, 1}};
  const KvPool group = pool_of_group({ranks[0].pool, ranks[1].pool, ranks[2].pool});
  EXPECT_EQ(group.num_lanes, 1);
  write(group, 0, 2);
  for (const RankMemory& rank : ranks) EXPECT_TRUE(rank.holds(kData, 2 * kPageBytes));
  EXPECT_EQ(group.page(0, 2), ranks[0].bytes.data() + 2 * kPageBytes);
}

TEST(PoolOfGroup, HeadsAreOnTheRankThatHasThem) {
  RankMemory low(4, 0, 2), high(4, 2, 2);
  const KvPool group = pool_of_group({low.pool, high.pool});
  EXPECT_EQ(group.num_lanes, 4);
  write(group, 3, 1);
  EXPECT_TRUE(low.holds({}, 0));
  EXPECT_TRUE(high.holds(kData, 3 * kPageBytes)) << "page 1 begins behind both heads of page 0; lane 3 is the second";
  EXPECT_EQ(group.page(1, 2), low.bytes.data() + 5 * kPageBytes);
}

TEST(PoolOfGroup, AHeadOfSeveralRanksIsOnEach) {
  RankMemory ranks[] = {{2, 0, 1}, {2, 0, 1}, {2, 1, 1}, {2, 1, 1}};
  const KvPool group = pool_of_group({ranks[0].pool, ranks[1].pool, ranks[2].pool, ranks[3].pool});
  write(group, 0, 0);
  for (int r = 0; r < 4; ++r) EXPECT_TRUE(ranks[r].holds(r < 2 ? kData : std::vector<std::byte>(), 0)) << r;
}

TEST(PoolOfGroup, RanksThatDoNotFitAreRefused) {
  RankMemory one(1, 0, 1), other(1, 0, 1), half(4, 0, 2), lower(4, 1, 2);
  EXPECT_THROW(pool_of_group(std::vector<KvPool>()), Error);
  EXPECT_NO_THROW(pool_of_group({one.pool, other.pool}));
  EXPECT_THROW(pool_of_group({half.pool, lower.pool}), Error) << "lane 3 is nowhere";
  other.pool.num_pages = 2;
  EXPECT_THROW(pool_of_group({one.pool, other.pool}), Error);
  other.pool.num_pages = kPages;
  other.pool.token_rows = false;
  EXPECT_THROW(pool_of_group({one.pool, other.pool}), Error);
}

}  // namespace
}  // namespace moectl
