// Dispatch moves rows and combine adds them in a fixed order, so every comparison is exact: for any number of ranks,
// any placement and any bound of the receive buffers a token's result is the one that it has alone. The test's
// parameter: whether ranks address each other's memory, or tokens travel by collectives.
#include "core/comm/expert_dispatch.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/comm/ranks.h"
#include "tests/harness/compare.h"
#include "tests/harness/generate.h"

namespace moectl::test {
namespace {

constexpr int64_t kHidden = 11;
constexpr int kMaxTokens = 20;

struct Case {
  int size, num_experts, top_k;
  std::vector<int64_t> tokens;            // of each rank, cyclic; rotated from step to step
  int64_t bound = 0;                      // max_received_rows
  std::optional<int> num_redundant = {};  // not given: what divisibility needs
  int only_expert = -1;                   // in each token's first slot
};

class ExpertDispatchTest : public testing::TestWithParam<bool> {
 protected:
  static void expect_exact(const Case& c);
  static void expect_exact(const Case& c, bool deterministic);
  static std::vector<std::vector<float>> computed(int size, const std::vector<int64_t>& tokens, int64_t bound);
};
INSTANTIATE_TEST_SUITE_P(PeersAddressable, ExpertDispatchTest, testing::Bool());

std::string describe(const Case& c) {
  return fmt::format("{} ranks, {} experts, top-{}, at most {} rows, {} redundant", c.size, c.num_experts, c.top_k,
                     c.bound, c.num_redundant.value_or(-1));
}

// The tokens of one rank, in buffers for any number of them.
struct Tokens {
  std::vector<float> x, shared, weight;
  std::vector<int32_t> idx;

  Tokens() : x(kMaxTokens * kHidden), shared(kMaxTokens * kHidden) {}

  // Distinct experts per token; the last slot of every seventh token is empty.
  void fill(const Case& c, Random& random) {
    const int64_t choices = int64_t{kMaxTokens} * c.top_k;
    idx.resize(size_t(choices));
    weight.resize(size_t(choices));
    std::ranges::copy(random.floats(int64_t(x.size())), x.begin());
    std::ranges::copy(random.floats(int64_t(shared.size())), shared.begin());
    std::ranges::copy(random.floats(choices), weight.begin());
    std::vector<int32_t> experts(static_cast<size_t>(c.num_experts));
    for (int32_t e = 0; e < c.num_experts; ++e) experts[size_t(e)] = e;
    for (int t = 0; t < kMaxTokens; ++t) {
      random.shuffle(experts);
      if (c.only_expert >= 0) std::swap(experts[0], *std::ranges::find(experts, c.only_expert));
      std::copy_n(experts.begin(), c.top_k, idx.begin() + t * c.top_k);
      if (t % 7 == 6) idx[size_t((t + 1) * c.top_k - 1)] = -1;
    }
  }
};

float expert_of(int32_t expert, float x) {
  return x * float(expert + 1) + 0.25f;
}

// What combine() must give: in slot order, then the shared expert. A product has the same bits whether the expert or
// combine() multiplies by the weight.
std::vector<float> reference(const Case& c, const Tokens& in, int64_t tokens) {
  std::vector<float> out;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = t * kHidden; i < (t + 1) * kHidden; ++i) {
      float sum = 0.0f;
      for (int64_t j = t * c.top_k; j < (t + 1) * c.top_k; ++j) {
        if (in.idx[size_t(j)] < 0) continue;
        sum = sum + in.weight[size_t(j)] * expert_of(in.idx[size_t(j)], in.x[size_t(i)]);
      }
      out.push_back(sum + in.shared[size_t(i)]);
    }
  return out;
}

// The same where each rank adds its experts' results first, in slot order, and the ranks' sums are added in rank order.
std::vector<float> reference_by_rank(const Case& c, const ExpertPlacement& placement, const Tokens& in, int64_t tokens,
                                     int source) {
  std::vector<float> out;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = t * kHidden; i < (t + 1) * kHidden; ++i) {
      std::vector<float> sums(static_cast<size_t>(c.size));
      for (int64_t j = t * c.top_k; j < (t + 1) * c.top_k; ++j) {
        const int32_t e = in.idx[size_t(j)];
        if (e < 0) continue;
        const int32_t first = placement.replica_begin[size_t(e)], num = placement.replica_begin[size_t(e) + 1] - first;
        float& sum = sums[size_t(placement.rank[size_t(first + (source + t) % num)])];
        sum = sum + in.weight[size_t(j)] * expert_of(e, in.x[size_t(i)]);
      }
      float sum = sums[0];
      for (size_t r = 1; r < sums.size(); ++r) sum = sum + sums[r];
      out.push_back(sum + in.shared[size_t(i)]);
    }
  return out;
}

// Computes a round's rows, after checking that there are no more than promised. (Their order:
// tests/kernels/moe_permute_test.cpp.)
void compute(const ExpertDispatch::Received& rows, const std::vector<int32_t>& logical, int64_t max_rows, bool scaled) {
  const View<float> x = rows.x.f32();
  ASSERT_LE(x.dim(0), max_rows);
  ASSERT_EQ(bool(rows.scale), scaled);
  ASSERT_EQ(rows.expert_offsets.dim(0), int64_t(logical.size()) + 1);
  ASSERT_EQ(rows.expert_offsets(0), 0);
  ASSERT_LE(rows.expert_offsets(int64_t(logical.size())), x.dim(0));
  for (size_t e = 0; e < logical.size(); ++e)
    for (int64_t row = rows.expert_offsets(int64_t(e)); row < rows.expert_offsets(int64_t(e) + 1); ++row)
      for (int64_t i = 0; i < kHidden; ++i)
        rows.out.f32()(row, i) = expert_of(logical[e], x(row, i)) * (scaled ? rows.scale(row) : 1.0f);
}

void ExpertDispatchTest::expect_exact(const Case& c) {
  expect_exact(c, true);
  if (!GetParam()) expect_exact(c, false);
}

void ExpertDispatchTest::expect_exact(const Case& c, bool deterministic) {
  SCOPED_TRACE(describe(c));
  const ExpertPlacement placement = make_placement(c.num_experts, c.size, c.num_redundant);
  const ExpertDispatchConfig config = {.top_k = c.top_k,
                                       .hidden_size = int(kHidden),
                                       .deterministic = deterministic,
                                       .peers_addressable = GetParam(),
                                       .max_tokens = kMaxTokens,
                                       .max_received_rows = c.bound};
  on_ranks(c.size, [&](Communicator& comm) {
    auto ops = make_ops({.num_threads = 1, .spin = false});
    const auto dispatch = make_expert_dispatch(comm, *ops, placement, config);
    const std::vector<int32_t> logical = placement.logical_experts(comm.rank());
    const auto table = dispatch->logical_experts();
    if (placement.is_identity())
      ASSERT_FALSE(table);
    else
      ASSERT_EQ(std::vector<int32_t>(table.data, table.data + table.size()), logical);
    Random random(uint64_t(comm.rank() + 1));
    Tokens in;
    std::vector<float> out(kMaxTokens * kHidden);
    for (int step = 0; step < 4; ++step) {
      const int64_t n = c.tokens[size_t(comm.rank() + step) % c.tokens.size()];
      dispatch->begin_step(n);
      for (int layer = 0; layer < 3; ++layer) {
        in.fill(c, random);
        const bool scaled = layer == 1;
        const View<const float> weight(in.weight.data(), {n, c.top_k});
        ExpertDispatch::Tokens tokens = {.x = View<const float>(in.x.data(), {n, kHidden}),
                                         .expert_idx = View<const int32_t>(in.idx.data(), {n, c.top_k}),
                                         .expert_weight = weight,
                                         .scale_rows = scaled};
        MoeCombineArgs combine = {.shared = View<const float>(in.shared.data(), {n, kHidden}),
                                  .out = View<float>(out.data(), {n, kHidden})};
        if (!scaled) combine.expert_weight = weight;
        std::ranges::fill(out, NAN);
        for (int round = 0; round < dispatch->num_rounds(); ++round) {
          compute(dispatch->dispatch(tokens, round), logical, ExpertDispatch::max_rows(placement, config), scaled);
          dispatch->combine(combine, round);
        }
        const std::vector<float> expected =
            deterministic || c.size == 1 ? reference(c, in, n) : reference_by_rank(c, placement, in, n, comm.rank());
        ASSERT_TRUE(same_bits(std::vector<float>(out.begin(), out.begin() + n * kHidden), expected))
            << "rank " << comm.rank() << ", step " << step << ", layer " << layer;
      }
    }
    comm.barrier({});  // peers read this rank's buffers until they are done
  });
}

TEST(All2AllBackendNames, ParseAndPrint) {
  for (const All2AllBackend backend :
       {All2AllBackend::kAuto, All2AllBackend::kNaive, All2AllBackend::kLowLatency, All2AllBackend::kHighThroughput})
    EXPECT_EQ(parse_all2all_backend(all2all_backend_name(backend)), backend);
  EXPECT_EQ(all2all_backend_name(All2AllBackend::kLowLatency), "low_latency");
  try {
    parse_all2all_backend("deepep");
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kBadConfig);
    EXPECT_STREQ(e.what(), "--all2all-backend deepep: expected one of auto, naive, low_latency, high_throughput");
  }
}

TEST_P(ExpertDispatchTest, RandomRoutings) {
  for (int size : {1, 2, 4, 8})
    for (int top_k : {1, 2, 5, 8}) expect_exact({size, 16, top_k, {5, 1, 20, 7}});
}

// Numbers of ranks that do not divide the experts, more ranks than experts, more replicas than padding needs.
TEST_P(ExpertDispatchTest, RedundantExperts) {
  for (int size : {3, 5, 7}) {
    for (int top_k : {1, 4, 8}) expect_exact({size, 16, top_k, {5, 1, 20, 7}});
    expect_exact({size, 2, 2, {3, 11}});
  }
  expect_exact({2, 8, 3, {9, 14}, 0, 4});
  expect_exact({4, 8, 3, {9, 14}, 0, 24});  // every rank holds every expert
  expect_exact({2, 8, 3, {9, 14}, 0, 12});  // some twice
  expect_exact({1, 8, 3, {9, 14}, 0, 5});
}

// From one token of each source per round to all of them.
TEST_P(ExpertDispatchTest, AnyBound) {
  for (int size : {1, 2, 3, 4, 5, 7, 8})
    for (int64_t bound : {1, 7, 40, 64, 100, 1000, 1'000'000}) {
      expect_exact({size, 16, 3, {5, 1, 20, 0, 7}, bound});
      expect_exact({size, 8, 8, {kMaxTokens, 3}, bound, make_placement(8, size).num_physical - 8 + size});
    }
}

TEST_P(ExpertDispatchTest, EmptyRanks) {
  for (int size : {1, 2, 3, 4, 8})
    for (int64_t bound : {0, 10}) {
      expect_exact({size, 8, 2, {3, 0, 0, 9, 0}, bound});
      expect_exact({size, 8, 2, {0}, bound});  // no rank has a token
    }
}

// As many rows as one rank can get: every token of every rank chooses all experts, or one expert for all.
TEST_P(ExpertDispatchTest, AllTokensToOneExpert) {
  for (int size : {1, 2, 4, 8})
    for (int64_t bound : {0, 10}) {
      for (int expert : {0, 7}) expect_exact({size, 8, 1, {kMaxTokens}, bound, {}, expert});
      expect_exact({size, 8, 8, {kMaxTokens}, bound});
      expect_exact({size, size, 1, {kMaxTokens, 0}, bound, {}, size - 1});  // one expert per rank
    }
}

// moe_experts over weights that all ranks share, as on the CPU: the batch entry of a local expert is its logical
// expert. Results of all tokens, by rank.
std::vector<std::vector<float>> ExpertDispatchTest::computed(int size, const std::vector<int64_t>& tokens,
                                                             int64_t bound) {
  constexpr int kExperts = 6, kTopK = 3, kIntermediate = 19;
  const auto shared_ops = make_ops({});
  const auto pack = [&](int64_t n, int64_t k, uint64_t seed) {
    std::vector<Matrix> matrices;
    std::vector<MatrixSpec> specs;
    for (uint64_t e = 0; e < kExperts; ++e) matrices.push_back(random_matrix(DType::kBF16, n, k, seed + e));
    for (const Matrix& m : matrices) specs.push_back(m.whole());
    return shared_ops->pack(specs);
  };
  const Weight gate = pack(kIntermediate, kHidden, 100), up = pack(kIntermediate, kHidden, 200),
               down = pack(kHidden, kIntermediate, 300);
  const ExpertPlacement placement = make_placement(kExperts, size);
  const ExpertDispatchConfig config = {.top_k = kTopK,
                                       .hidden_size = int(kHidden),
                                       .peers_addressable = GetParam(),
                                       .max_tokens = 2 * kMaxTokens,
                                       .max_received_rows = bound};
  std::vector<std::vector<float>> results(static_cast<size_t>(size));
  on_ranks(size, [&](Communicator& comm) {
    auto ops = make_ops({.num_threads = 1, .spin = false});
    const auto dispatch = make_expert_dispatch(comm, *ops, placement, config);
    int64_t first = 0;  // of all ranks' tokens
    for (int r = 0; r < comm.rank(); ++r) first += tokens[size_t(r)];
    const int64_t n = tokens[size_t(comm.rank())], capacity = 2 * kMaxTokens;
    std::vector<float> x(size_t(capacity * kHidden)), weight(size_t(capacity * kTopK)),
        hidden(size_t(ExpertDispatch::max_rows(placement, config) * kIntermediate));
    std::vector<int32_t> idx(size_t(capacity * kTopK));
    for (int64_t t = 0; t < n; ++t) {
      Random random(uint64_t(first + t + 1));
      std::ranges::copy(random.floats(kHidden), x.begin() + t * kHidden);
      std::ranges::copy(random.floats(kTopK), weight.begin() + t * kTopK);
      std::vector<int32_t> experts = {0, 1, 2, 3, 4, 5};
      random.shuffle(experts);
      std::copy_n(experts.begin(), kTopK, idx.begin() + t * kTopK);
    }
    std::vector<float>& out = results[size_t(comm.rank())];
    out.resize(size_t(n * kHidden));
    dispatch->begin_step(n);
    const ExpertDispatch::Tokens in = {.x = View<const float>(x.data(), {n, kHidden}),
                                       .expert_idx = View<const int32_t>(idx.data(), {n, kTopK}),
                                       .expert_weight = View<const float>(weight.data(), {n, kTopK})};
    for (int round = 0; round < dispatch->num_rounds(); ++round) {
      const auto rows = dispatch->dispatch(in, round);
      ops->moe_experts({.x = rows.x,
                        .expert_offsets = rows.expert_offsets,
                        .w_gate = gate,
                        .w_up = up,
                        .w_down = down,
                        .weight_idx = dispatch->logical_experts(),
                        .hidden = View<float>(hidden.data(), {rows.x.dim(0), kIntermediate}),
                        .out = rows.out},
                       {});
      dispatch->combine(
          {.expert_weight = View<const float>(weight.data(), {n, kTopK}), .out = View<float>(out.data(), {n, kHidden})},
          round);
    }
    comm.barrier({});
  });
  return results;
}

TEST_P(ExpertDispatchTest, EqualBitsForEveryNumberOfRanksAndEveryBound) {
  constexpr int64_t kTokens = 36;
  const std::vector<float> alone = computed(1, {kTokens}, 0)[0];
  const std::vector<std::vector<int64_t>> splits = {
      {36}, {30, 6}, {0, 17, 19}, {9, 9, 9, 9}, {1, 2, 3, 0, 30}, {5, 5, 5, 5, 5, 5, 6}, {0, 36, 0, 0, 0, 0, 0, 0}};
  for (const auto& tokens : splits)
    for (int64_t bound : {0, 1, 37, 90}) {
      std::vector<float> all;
      for (const auto& part : computed(int(tokens.size()), tokens, bound))
        all.insert(all.end(), part.begin(), part.end());
      ASSERT_TRUE(same_bits(all, alone)) << tokens.size() << " ranks, at most " << bound << " rows";
    }
}

TEST(ExpertDispatch, BuffersAreBounded) {
  const auto ops = make_ops({});
  const auto rows = [](int experts, int ranks, const ExpertDispatchConfig& c) {
    return ExpertDispatch::max_rows(make_placement(experts, ranks), c);
  };
  // 72 ranks of 2,048 tokens with 4 local experts: 589,824 rows of 28 KB, and as many results, if all came at once.
  const ExpertDispatchConfig r1 = {.top_k = 8, .hidden_size = 7168, .max_tokens = 2048};
  EXPECT_EQ(rows(256, 72, r1), 65 * 72 * 4);
  const int64_t num_bytes = ExpertDispatch::num_bytes(make_placement(256, 72), r1, ops->capabilities());
  EXPECT_GE(num_bytes, rows(256, 72, r1) * 2 * 7168 * 4);
  EXPECT_LE(num_bytes, kDefaultReceiveBytes + (int64_t{32} << 20));
  // One round for a rank alone with any number of tokens, and for few ranks.
  EXPECT_EQ(rows(256, 1, {.top_k = 8, .hidden_size = 7168, .max_tokens = 8192}), 8192 * 8);
  EXPECT_EQ(rows(256, 4, {.top_k = 8, .hidden_size = 7168, .max_tokens = 512}), 4 * 512 * 8);
  EXPECT_EQ(rows(64, 8, {.top_k = 6, .hidden_size = 2048, .max_tokens = 512}), 8 * 512 * 6);
  // At least one token of each source.
  EXPECT_EQ(rows(8, 4, {.top_k = 2, .hidden_size = 8, .max_tokens = 5, .max_received_rows = 1}), 4 * 2);
  EXPECT_EQ(rows(8, 4, {.top_k = 2, .hidden_size = 8, .max_tokens = 5, .max_received_rows = 31}), 3 * 4 * 2);
  EXPECT_EQ(rows(8, 1, {.top_k = 2, .hidden_size = 8, .max_tokens = 5, .max_received_rows = 7}), 3 * 2);
}

// By collectives: the tokens of all ranks, and two buffers of results, of every choice or of every token.
TEST(ExpertDispatch, BuffersOfCollectivesAreBounded) {
  const auto ops = make_ops({});
  const auto more = [&](int ranks, bool deterministic) {
    ExpertDispatchConfig c = {.top_k = 8, .hidden_size = 7168, .deterministic = deterministic, .max_tokens = 512};
    const ExpertPlacement placement = make_placement(256, ranks);
    const int64_t naive = ExpertDispatch::num_bytes(placement, c, ops->capabilities());
    c.peers_addressable = false;
    return ExpertDispatch::num_bytes(placement, c, ops->capabilities()) - naive;
  };
  constexpr int64_t kRow = 7168 * 4, kSlack = int64_t{2} << 20;
  EXPECT_EQ(more(1, true), 0);
  EXPECT_GE(more(4, true), 4 * 512 * kRow * (1 + 2 * 8));
  EXPECT_LE(more(4, true), 4 * 512 * kRow * (1 + 2 * 8) + kSlack);
  EXPECT_GE(more(4, false), (4 * 512 + 4 * 512 + 512) * kRow);
  EXPECT_LE(more(4, false), (4 * 512 + 4 * 512 + 512) * kRow + kSlack);
}

TEST(ExpertDispatch, RefusesToStoreIntoMemoryOutOfReach) {
  const auto ops = make_ops({});
  for (const All2AllBackend backend : {All2AllBackend::kLowLatency, All2AllBackend::kHighThroughput}) {
    const ExpertDispatchConfig c = {
        .top_k = 2, .hidden_size = 3, .backend = backend, .peers_addressable = false, .max_tokens = 2};
    on_ranks(
        2, [&](Communicator& comm) { EXPECT_THROW(make_expert_dispatch(comm, *ops, make_placement(4, 2), c), Error); });
    EXPECT_THROW(ExpertDispatch::num_bytes(make_placement(4, 2), c, ops->capabilities()), Error);
  }
}

TEST_P(ExpertDispatchTest, Rounds) {
  const ExpertPlacement placement = make_placement(8, 3);
  on_ranks(3, [&](Communicator& comm) {
    auto ops = make_ops({.num_threads = 1, .spin = false});
    const auto dispatch = make_expert_dispatch(
        comm, *ops, placement,
        {.top_k = 2, .hidden_size = 4, .peers_addressable = GetParam(), .max_tokens = 10, .max_received_rows = 20});
    const auto rounds = [&](std::vector<int64_t> tokens) {
      dispatch->begin_step(tokens[size_t(comm.rank())]);
      return dispatch->num_rounds();
    };
    EXPECT_EQ(rounds({0, 0, 0}), 1);
    EXPECT_EQ(rounds({3, 1, 0}), 1);  // three tokens of each source per round
    EXPECT_EQ(rounds({3, 1, 4}), 2);
    EXPECT_EQ(rounds({10, 1, 4}), 4);
  });
}

TEST_P(ExpertDispatchTest, RefusesWhatHasNoRoom) {
  on_ranks(1, [](Communicator& comm) {
    auto ops = make_ops({});
    const ExpertDispatchConfig config = {.top_k = 2, .hidden_size = 3, .max_tokens = 2};
    const auto dispatch = make_expert_dispatch(comm, *ops, make_placement(4, 1), config);
    EXPECT_THROW(dispatch->begin_step(3), Error);
    dispatch->begin_step(2);
    const std::vector<float> x(9);
    const std::vector<int32_t> idx(6);
    EXPECT_THROW(
        dispatch->dispatch({View<const float>(x.data(), {1, 3}), View<const int32_t>(idx.data(), {1, 2}), {}}, 0),
        Error);  // not the tokens that were announced
    EXPECT_THROW(make_expert_dispatch(comm, *ops, make_placement(4, 2), config), Error);
  });
}

}  // namespace
}  // namespace moectl::test
