// Where experts are: properties that hold for every placement, and the ones that published deployments use.
#include "core/parallel/expert_placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace moectl::test {
namespace {

// Every physical expert has a slot of its own, every logical expert at least one, ranks equally many; the number of
// replicas differs by one at most, the first experts having more.
void expect_placement(int num_experts, int num_ranks, std::optional<int> num_redundant) {
  SCOPED_TRACE(fmt::format("{} experts, {} ranks, {} redundant", num_experts, num_ranks, num_redundant.value_or(-1)));
  const ExpertPlacement p = make_placement(num_experts, num_ranks, num_redundant);
  ASSERT_EQ(p.num_experts, num_experts);
  ASSERT_EQ(p.num_ranks, num_ranks);
  ASSERT_EQ(p.num_physical % num_ranks, 0);
  if (num_redundant)
    ASSERT_EQ(p.num_physical, num_experts + *num_redundant);
  else
    ASSERT_LT(p.num_physical - num_experts, num_ranks) << "more than divisibility needs";
  ASSERT_EQ(int(p.replica_begin.size()), num_experts + 1);
  ASSERT_EQ(p.replica_begin.front(), 0);
  ASSERT_EQ(p.replica_begin.back(), p.num_physical);
  ASSERT_EQ(int(p.rank.size()), p.num_physical);
  ASSERT_EQ(int(p.local.size()), p.num_physical);

  std::set<std::pair<int, int>> slots;
  std::vector<std::vector<int32_t>> logical(static_cast<size_t>(num_ranks));
  for (int r = 0; r < num_ranks; ++r) logical[size_t(r)] = p.logical_experts(r);
  for (int e = 0; e < num_experts; ++e) {
    const int replicas = p.replica_begin[size_t(e) + 1] - p.replica_begin[size_t(e)];
    ASSERT_EQ(replicas, p.num_physical / num_experts + (e < p.num_physical % num_experts ? 1 : 0)) << "expert " << e;
    std::set<int> ranks;
    for (int i = p.replica_begin[size_t(e)]; i < p.replica_begin[size_t(e) + 1]; ++i) {
      const int rank = p.rank[size_t(i)], local = p.local[size_t(i)];
      ASSERT_TRUE(rank >= 0 && rank < num_ranks && local >= 0 && local < p.num_local());
      ASSERT_TRUE(slots.insert({rank, local}).second) << "two experts in one slot";
      ASSERT_EQ(logical[size_t(rank)][size_t(local)], e);
      ranks.insert(rank);
    }
    if (p.num_local() <= num_experts) {
      ASSERT_EQ(int(ranks.size()), replicas) << "replicas of expert " << e << " share a rank";
    }
  }
}

TEST(ExpertPlacement, Properties) {
  for (int num_experts : {1, 2, 5, 8, 64, 160, 256})
    for (int num_ranks : {1, 2, 3, 4, 5, 7, 8, 16, 72, 144, 320}) {
      expect_placement(num_experts, num_ranks, {});
      const int padding = make_placement(num_experts, num_ranks).num_physical - num_experts;
      for (int more = 0; more < 3; ++more) expect_placement(num_experts, num_ranks, padding + more * num_ranks);
    }
}

// Without redundant experts rank r holds experts [r, r + 1) * num_experts / num_ranks.
TEST(ExpertPlacement, EvenDivision) {
  for (int num_ranks : {1, 2, 4, 8}) {
    const ExpertPlacement p = make_placement(64, num_ranks);
    EXPECT_EQ(p.num_physical, 64);
    EXPECT_EQ(p.is_identity(), num_ranks == 1);
    for (int e = 0; e < 64; ++e) {
      EXPECT_EQ(p.replica_begin[size_t(e)], e);
      EXPECT_EQ(p.rank[size_t(e)], e / p.num_local());
      EXPECT_EQ(p.local[size_t(e)], e % p.num_local());
    }
  }
}

TEST(ExpertPlacement, PaddedToDivide) {
  const ExpertPlacement r1 = make_placement(256, 72);
  EXPECT_EQ(r1.num_physical, 288);
  EXPECT_EQ(r1.num_local(), 4);
  EXPECT_EQ(r1.logical_experts(0), (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(r1.logical_experts(63), (std::vector<int32_t>{252, 253, 254, 255}));
  EXPECT_EQ(r1.logical_experts(71), (std::vector<int32_t>{28, 29, 30, 31}));
  const ExpertPlacement three = make_placement(8, 3);
  EXPECT_EQ(three.logical_experts(2), (std::vector<int32_t>{6, 7, 0}));
  EXPECT_EQ(make_placement(256, 144, 32).num_local(), 2);
}

TEST(ExpertPlacement, RefusesWhatDoesNotDivide) {
  const auto message = [](int num_experts, int num_ranks, std::optional<int> num_redundant) {
    try {
      make_placement(num_experts, num_ranks, num_redundant);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kBadConfig);
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(message(256, 72, 0),
            "256 experts and 0 redundant experts do not divide evenly over 72 ranks; give 32 redundant experts");
  EXPECT_EQ(
      message(256, 72, 100),
      "256 experts and 100 redundant experts do not divide evenly over 72 ranks; give 32 or 104 redundant experts");
  EXPECT_EQ(message(8, 3, 3),
            "8 experts and 3 redundant experts do not divide evenly over 3 ranks; give 1 or 4 "
            "redundant experts");
  EXPECT_EQ(message(8, 2, -1), "the number of redundant experts must be 0 or more, not -1");
  EXPECT_EQ(message(0, 2, {}), "0 experts over 2 ranks: both must be at least 1");
  EXPECT_EQ(message(4, 0, {}), "4 experts over 0 ranks: both must be at least 1");
}

TEST(ExpertPlacement, Tables) {
  const auto ops = make_ops({});
  const auto values = [](View<const int32_t> v) { return std::vector<int32_t>(v.data, v.data + v.size()); };
  const ExpertPlacement alone = make_placement(8, 1);
  EXPECT_EQ(placement_bytes(alone), 0);
  const PlacementTables none = upload_placement(alone, 0, ops->device());
  EXPECT_FALSE(none.view.rank || none.view.local || none.view.replica_begin || none.logical_experts);
  for (const ExpertPlacement& p : {make_placement(8, 3), make_placement(8, 4), make_placement(8, 1, 2)})
    for (int rank = 0; rank < p.num_ranks; ++rank) {
      const PlacementTables tables = upload_placement(p, rank, ops->device());
      EXPECT_EQ(values(tables.view.replica_begin), p.replica_begin);
      EXPECT_EQ(values(tables.view.rank), p.rank);
      EXPECT_EQ(values(tables.view.local), p.local);
      EXPECT_EQ(values(tables.logical_experts), p.logical_experts(rank));
    }
}

}  // namespace
}  // namespace moectl::test
