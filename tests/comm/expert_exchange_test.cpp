// The exchange moves rows and computes nothing, so every comparison is exact: each (token, slot) gets back the row that
// its expert made of its token, and each rank receives its rows in the promised order.
#include "core/comm/expert_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/comm/ranks.h"
#include "tests/harness/generate.h"

namespace moectl::test {
namespace {

struct Batch {
  std::vector<float> x;             // [num_tokens, hidden]
  std::vector<int32_t> expert_idx;  // [num_tokens, top_k], distinct in a row
};

constexpr int64_t kHidden = 11;
constexpr int kMaxTokens = 20;

// x holds (source rank, token) in its first places, so that a receiver can tell where a row comes from.
Batch batch_of(int rank, int64_t tokens, int top_k, int num_experts, int only_expert, Random& random) {
  Batch b;
  std::vector<int32_t> experts(static_cast<size_t>(num_experts));
  for (int32_t e = 0; e < num_experts; ++e) experts[size_t(e)] = e;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto row = random.floats(kHidden);
    b.x.insert(b.x.end(), row.begin(), row.end());
    b.x[size_t(t * kHidden)] = float(rank);
    b.x[size_t(t * kHidden + 1)] = float(t);
    random.shuffle(experts);
    if (only_expert >= 0) std::swap(experts[0], *std::find(experts.begin(), experts.end(), only_expert));
    b.expert_idx.insert(b.expert_idx.end(), experts.begin(), experts.begin() + top_k);
  }
  return b;
}

// The weight of a choice says whose it is.
float weight_of(float rank, float token, int64_t expert) {
  return rank + 10.0f * token + 1000.0f * float(expert);
}

float expert_of(int32_t expert, float x) {
  return x * float(expert + 1) + 0.25f;
}

struct Case {
  int size, num_experts, top_k, only_expert;
  std::vector<int64_t> tokens;  // of each rank, cyclic
};

void round_trips(const Case& c) {
  on_ranks(c.size, [&](Communicator& comm) {
    auto ops = make_ops({.num_threads = 1, .spin = false});
    ExpertExchange exchange(comm, *ops, c.num_experts, c.top_k, int(kHidden), kMaxTokens);
    ASSERT_EQ(exchange.num_local_experts(), c.num_experts / c.size);
    ASSERT_EQ(exchange.expert_begin(), c.num_experts / c.size * comm.rank());
    Random random(uint64_t(comm.rank() + 1));
    for (int step = 0; step < 6; ++step) {
      const int64_t tokens = c.tokens[size_t(comm.rank() + step) % c.tokens.size()];
      const Batch b = batch_of(comm.rank(), tokens, c.top_k, c.num_experts, c.only_expert, random);
      const float none = 0;
      const int32_t no_idx = 0;
      const bool weighted = step % 2 == 1;
      std::vector<float> weights;
      for (size_t i = 0; i < b.expert_idx.size(); ++i)
        weights.push_back(weight_of(float(comm.rank()), float(i / size_t(c.top_k)), b.expert_idx[i]));
      const View<const float> weight(tokens ? weights.data() : &none, {tokens, c.top_k});
      const auto received =
          exchange.dispatch(View<const float>(tokens ? b.x.data() : &none, {tokens, kHidden}),
                            View<const int32_t>(tokens ? b.expert_idx.data() : &no_idx, {tokens, c.top_k}),
                            weighted ? weight : View<const float>());
      ASSERT_EQ(bool(received.scale), weighted);
      ASSERT_EQ(received.expert_offsets.dim(0), exchange.num_local_experts() + 1);
      ASSERT_EQ(received.expert_offsets(0), 0);
      for (int64_t e = 0; e < exchange.num_local_experts(); ++e) {
        ASSERT_LE(received.expert_offsets(e), received.expert_offsets(e + 1));
        std::pair<float, float> last = {-1, -1};
        for (int64_t row = received.expert_offsets(e); row < received.expert_offsets(e + 1); ++row) {
          const std::pair<float, float> source = {received.x(row, 0), received.x(row, 1)};
          ASSERT_LT(last, source) << "rows of an expert are sorted by source rank and token";
          last = source;
          if (weighted) {
            ASSERT_EQ(received.scale(row), weight_of(source.first, source.second, exchange.expert_begin() + e));
          }
          for (int64_t i = 0; i < kHidden; ++i)
            received.out(row, i) = expert_of(int32_t(exchange.expert_begin() + e), received.x(row, i));
        }
      }
      const auto rows = exchange.collect();
      ASSERT_EQ(rows.dim(0), tokens);
      for (int64_t t = 0; t < tokens; ++t)
        for (int j = 0; j < c.top_k; ++j)
          for (int64_t i = 0; i < kHidden; ++i)
            ASSERT_EQ(rows(t, j)[i], expert_of(b.expert_idx[size_t(t * c.top_k + j)], b.x[size_t(t * kHidden + i)]))
                << "rank " << comm.rank() << ", step " << step << ", token " << t << ", slot " << j;
    }
    comm.barrier();  // peers read this rank's rows until they are done
  });
}

TEST(ExpertExchange, RandomRoutings) {
  for (int size : {1, 2, 4, 8})
    for (int top_k : {1, 2, 5, 8}) round_trips({size, 16, top_k, -1, {5, 1, 20, 7}});
}

TEST(ExpertExchange, EmptyRanks) {
  for (int size : {1, 2, 4, 8}) {
    round_trips({size, 8, 2, -1, {3, 0, 0, 9, 0}});
    round_trips({size, 8, 2, -1, {0}});  // nobody has anything
  }
}

// As many rows as one rank can get: every token of every rank chooses all experts, or one expert for all.
TEST(ExpertExchange, AllTokensToOneExpert) {
  for (int size : {1, 2, 4, 8}) {
    for (int expert : {0, 7}) round_trips({size, 8, 1, expert, {kMaxTokens}});
    round_trips({size, 8, 8, -1, {kMaxTokens}});
    round_trips({size, size, 1, size - 1, {kMaxTokens, 0}});  // one expert a rank
  }
}

TEST(ExpertExchange, RefusesWhatHasNoRoom) {
  on_ranks(1, [](Communicator& comm) {
    auto ops = make_ops({});
    ExpertExchange exchange(comm, *ops, 4, 2, 3, 2);
    const std::vector<float> x(9);
    const std::vector<int32_t> idx(6);
    EXPECT_THROW(exchange.dispatch(View<const float>(x.data(), {3, 3}), View<const int32_t>(idx.data(), {3, 2})),
                 Error);
  });
  on_ranks(2, [](Communicator& comm) {
    auto ops = make_ops({});
    EXPECT_THROW(ExpertExchange(comm, *ops, 7, 2, 4, 2), Error);  // 7 experts over 2 ranks
  });
}

}  // namespace
}  // namespace moectl::test
