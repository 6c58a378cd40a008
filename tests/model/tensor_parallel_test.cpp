// TensorParallel: the shares of a group's tokens, and the collectives over them, against plain sums in rank order.
#include "core/model/tensor_parallel.h"

#include <gtest/gtest.h>

#include "core/base/error.h"
#include "tests/comm/ranks.h"
#include "tests/harness/compare.h"
#include "tests/harness/generate.h"

namespace moectl::test {
namespace {

LocalDims dims_of(int tp_size, int tp_rank, bool splits_experts = false) {
  return {.tp_size = tp_size, .tp_rank = tp_rank, .splits_experts = splits_experts};
}

TEST(TensorParallel, SharesTileTheTokens) {
  for (int size : {2, 3, 4, 8})
    on_ranks(size, [&](Communicator& group) {
      const TensorParallel tp(&group, dims_of(size, group.rank()));
      EXPECT_TRUE(tp.shares_tokens());
      EXPECT_EQ(tp.is_first(), group.rank() == 0);
      for (int64_t n : {0, 1, 2, 3, 7, 8, 9, 64, 100}) {
        const TensorParallel::Share share = tp.share(n);
        EXPECT_LE(share.num, TensorParallel::max_share(n, dims_of(size, 0)));
        EXPECT_LE(share.begin + share.num, n);
        int64_t next = 0;  // the shares follow each other
        for (int r = 0; r < size; ++r) {
          const int64_t begin = group.all_gather_host(share.begin)[size_t(r)],
                        num = group.all_gather_host(share.num)[size_t(r)];
          EXPECT_EQ(begin, next);
          next += num;
        }
        EXPECT_EQ(next, n);
      }
    });
}

TEST(TensorParallel, ARankAloneAndSplitExpertsTakeAllTokens) {
  TensorParallel alone(nullptr, {});
  EXPECT_EQ(alone.share(9).num, 9);
  EXPECT_TRUE(alone.is_first());
  EXPECT_FALSE(alone.shares_tokens());
  std::vector<float> values = {1, 2, 3};
  const View<float> rows(values.data(), {3, 1});
  alone.all_reduce(rows, {});
  alone.reduce_scatter_shares(rows, {});
  alone.all_gather_shares(rows, {});
  EXPECT_EQ(values, (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(TensorParallel::padded_rows(9, {}), 9);
  EXPECT_EQ(TensorParallel::padded_rows(9, dims_of(4, 1)), 12);
  EXPECT_EQ(TensorParallel::max_share(9, dims_of(4, 1)), 3);
  EXPECT_EQ(TensorParallel::max_share(9, dims_of(4, 1, true)), 9);
  on_ranks(2, [&](Communicator& group) {
    const TensorParallel tp(&group, dims_of(2, group.rank(), true));
    EXPECT_FALSE(tp.shares_tokens());
    EXPECT_EQ(tp.share(9).begin, 0);
    EXPECT_EQ(tp.share(9).num, 9);
  });
}

TEST(TensorParallel, AGroupThatIsNotTheShardsIsRefused) {
  EXPECT_THROW(TensorParallel(nullptr, dims_of(2, 0)), Error);
  on_ranks(2, [&](Communicator& group) {
    EXPECT_THROW(TensorParallel(&group, dims_of(2, 1 - group.rank())), Error);
    EXPECT_THROW(TensorParallel(&group, dims_of(4, group.rank())), Error);
  });
}

constexpr int64_t kMaxTokens = 10, kSize = 7;

std::vector<float> rows_of_rank(int rank) {
  return Random(uint64_t(rank + 1)).floats(TensorParallel::padded_rows(kMaxTokens, dims_of(4, 0)) * kSize);
}

// The sum in rank order, as every rank must have it.
std::vector<float> sum_of(int size, int64_t num_values) {
  std::vector<float> sum = rows_of_rank(0);
  for (int r = 1; r < size; ++r) {
    const std::vector<float> rows = rows_of_rank(r);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = sum[i] + rows[i];
  }
  sum.resize(size_t(num_values));
  return sum;
}

TEST(TensorParallel, SumsAreInRankOrderOnEveryRank) {
  for (int size : {2, 3, 4})
    on_ranks(size, [&](Communicator& group) {
      TensorParallel tp(&group, dims_of(size, group.rank()));
      std::vector<float> buffer = rows_of_rank(group.rank());
      tp.register_buffer(View<float>(buffer.data(), {int64_t(buffer.size())}));
      for (int64_t n : {0, 1, 2, 5, 10}) {
        std::ranges::copy(rows_of_rank(group.rank()), buffer.begin());
        const View<float> rows(buffer.data(), {n, kSize});
        tp.all_reduce(rows, {});
        EXPECT_TRUE(same_bits(std::span(buffer).first(size_t(rows.size())), sum_of(size, rows.size())))
            << n << " tokens, " << size << " ranks";
        group.barrier({});
      }
    });
}

TEST(TensorParallel, SharesAreSummedAndGathered) {
  for (int size : {2, 3, 4})
    on_ranks(size, [&](Communicator& group) {
      TensorParallel tp(&group, dims_of(size, group.rank()));
      std::vector<float> buffer = rows_of_rank(group.rank());
      tp.register_buffer(View<float>(buffer.data(), {int64_t(buffer.size())}));
      for (int64_t n : {0, 1, 2, 3, 5, 9, 10}) {
        std::ranges::copy(rows_of_rank(group.rank()), buffer.begin());
        const View<float> rows(buffer.data(), {n, kSize});
        const std::vector<float> expected = sum_of(size, rows.size());
        const TensorParallel::Share share = tp.share(n);
        tp.reduce_scatter_shares(rows, {});
        const auto of_share = [&](auto& values) {
          return std::span<const float>(values).subspan(size_t(share.begin * kSize), size_t(share.num * kSize));
        };
        EXPECT_TRUE(same_bits(of_share(buffer), of_share(expected))) << n << " tokens, rank " << group.rank();
        tp.all_gather_shares(rows, {});
        EXPECT_TRUE(same_bits(std::span(buffer).first(size_t(rows.size())), expected)) << n << " tokens";
        group.barrier({});
      }
    });
}

}  // namespace
}  // namespace moectl::test
