// Rows to their experts and back: rows, offsets and copies are exact.
#include "kernels/expert_all_to_all.h"
#include "tests/harness/placement.h"
#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(MoePermuteTest);

struct Source {
  int64_t tokens = 0;
  std::vector<float> x, weight;
  std::vector<int32_t> idx, row_of;
};

struct Group {
  int64_t num_experts, top_k, size;
  std::vector<Source> sources;

  // Distinct experts per token; every fifth token of a rank is padding without experts.
  Group(int64_t num_experts, int64_t top_k, int64_t size, std::vector<int64_t> tokens, uint64_t seed)
      : num_experts(num_experts), top_k(top_k), size(size) {
    Random random(seed);
    for (int64_t n : tokens) {
      Source s{n, random.floats(n * size), random.floats(n * top_k), {}, std::vector<int32_t>(size_t(n * top_k), -7)};
      for (int64_t t = 0; t < n; ++t) {
        std::vector<int32_t> experts(static_cast<size_t>(num_experts));
        for (int64_t e = 0; e < num_experts; ++e) experts[size_t(e)] = int32_t(e);
        random.shuffle(experts);
        for (int64_t j = 0; j < top_k; ++j) s.idx.push_back(t % 5 == 4 ? -1 : experts[size_t(j)]);
      }
      sources.push_back(std::move(s));
    }
  }
};

// Tokens [begin, end) of each source, `packed` or in place; placement null: every expert is the caller's.
struct Part {
  int64_t begin = 0, end = int64_t{1} << 30;
  bool packed = false;
};

// Rows [begin, begin + n) of x [any, size] as they travel (packed_row_bytes).
std::vector<float> packed_rows(const std::vector<float>& x, int64_t size, int64_t begin, int64_t n) {
  const int64_t stride = packed_row_bytes(DType::kF32, size) / int64_t(sizeof(float));
  std::vector<float> packed(size_t(n * stride), NAN);
  for (int64_t i = 0; i < n; ++i) std::copy_n(x.begin() + (begin + i) * size, size, packed.begin() + i * stride);
  return packed;
}

void expect_sorted(Ops& ops, Group g, const RandomPlacement* placement, int64_t rank, bool with_scale, Part part = {}) {
  const int64_t size = g.size, num_local = placement ? placement->num_local : g.num_experts;
  struct Choice {
    int64_t source, index;  // in Source::idx
  };
  std::vector<std::vector<Choice>> expected(static_cast<size_t>(num_local));
  std::vector<MoeSource> sources;
  std::vector<std::vector<float>> packed(g.sources.size());
  int64_t room = 1;
  for (size_t r = 0; r < g.sources.size(); ++r) {
    Source& s = g.sources[r];
    const int64_t begin = std::min(part.begin, s.tokens), n = std::min(part.end, s.tokens) - begin;
    for (int64_t i = begin * g.top_k; i < (begin + n) * g.top_k; ++i) {
      const int32_t expert = s.idx[size_t(i)];
      if (expert < 0) continue;
      const size_t p = placement ? placement->physical(expert, int64_t(r), i / g.top_k) : 0;
      if (placement && placement->rank[p] != rank) continue;
      expected[size_t(placement ? placement->local[p] : expert)].push_back({int64_t(r), i});
    }
    room += n * std::min(g.top_k, num_local);
    MoeSource source;
    source.packed = part.packed && int64_t(r) != rank;
    packed[r] = packed_rows(s.x, size, begin, n);
    source.x = source.packed ? View<const float>(packed[r].data(), {n, size})
                             : View<const float>(s.x.data(), {s.tokens, size});
    source.expert_idx = View<const int32_t>(s.idx.data() + begin * g.top_k, {n, g.top_k});
    if (with_scale) source.expert_weight = View<const float>(s.weight.data() + begin * g.top_k, {n, g.top_k});
    source.row_of = View<int32_t>(s.row_of.data() + begin * g.top_k, {n * g.top_k});
    source.token_begin = begin;
    sources.push_back(source);
  }
  std::vector<int32_t> offsets(size_t(num_local + 1), -1);
  std::vector<float> x(size_t(room * size), NAN), scale(size_t(room), NAN);
  MoePermuteArgs args = {.sources = sources,
                         .rank = rank,
                         .expert_offsets = View<int32_t>(offsets.data(), {num_local + 1}),
                         .x = View<float>(x.data(), {room, size})};
  if (placement) args.placement = placement->view();
  if (with_scale) args.scale = View<float>(scale.data(), {room});
  ops.moe_permute(args, {});
  int32_t row = 0;
  for (int64_t e = 0; e < num_local; ++e) {
    ASSERT_EQ(offsets[size_t(e)], row) << "expert " << e;
    for (const Choice& c : expected[size_t(e)]) {
      const Source& s = g.sources[size_t(c.source)];
      ASSERT_EQ(s.row_of[size_t(c.index)], row) << "rank " << c.source << ", choice " << c.index;
      ASSERT_TRUE(same_bits(row_of(x, row, size), row_of(s.x, c.index / g.top_k, size)));
      if (with_scale) {
        ASSERT_EQ(scale[size_t(row)], s.weight[size_t(c.index)]);
      }
      ++row;
    }
  }
  ASSERT_EQ(offsets.back(), row);
}

TEST_P(MoePermuteTest, SortedByExpertThenRankThenToken) {
  for (int64_t size : {1, 7, 64, 130})
    for (bool with_scale : {false, true}) {
      const auto expect_alone = [&](const Group& g) { expect_sorted(ops(), g, nullptr, 0, with_scale); };
      expect_alone(Group(1, 1, size, {3}, 1));
      expect_alone(Group(8, 2, size, {5}, 2));
      expect_alone(Group(8, 8, size, {1}, 3));
      expect_alone(Group(300, 2, size, {90}, 6));  // most experts have no row
      expect_alone(Group(2000, 3, size, {100}, 8));
    }
}

TEST_P(MoePermuteTest, RanksWithReplicas) {
  for (int64_t size : {7, 64})
    for (bool with_scale : {false, true})
      for (int64_t max_replicas : {1, 2, 4}) {
        const auto expect_ranks = [&](const Group& g) {
          const int64_t ranks = int64_t(g.sources.size());
          const RandomPlacement placement(g.num_experts, ranks, max_replicas, uint64_t(size));
          for (int64_t rank = 0; rank < ranks; ++rank) expect_sorted(ops(), g, &placement, rank, with_scale);
        };
        expect_ranks(Group(64, 6, size, {70, 0, 300, 1}, 4));
        expect_ranks(Group(64, 6, size, {0, 0}, 5));              // no rank has a token
        expect_ranks(Group(256, 8, size, {200, 150, 20}, 7));     // about 3,000 choices
        expect_ranks(Group(100, 8, size, {300, 280, 1, 40}, 9));  // about 5,000
        expect_ranks(Group(5, 2, size, {3, 9, 2, 4, 4, 1, 0, 2}, 10));
      }
}

// A round takes the same tokens from every rank; replicas are chosen by a token's index in its batch.
TEST_P(MoePermuteTest, PartsOfBatches) {
  const Group g(20, 4, 33, {70, 11, 40}, 11);
  const RandomPlacement placement(20, 3, 3, 1);
  for (const Part part : {Part{0, 1}, Part{7, 20}, Part{10, 11}, Part{39, 70}, Part{70, 80}}) {
    for (int64_t rank = 0; rank < 3; ++rank) expect_sorted(ops(), g, &placement, rank, true, part);
    expect_sorted(ops(), g, nullptr, 0, true, part);
  }
}

// The caller's tokens in place, its peers' as they travel; rows of 33 and 7 floats are padded.
TEST_P(MoePermuteTest, PackedTokensOfPeers) {
  for (int64_t size : {7, 33, 64}) {
    const Group g(20, 4, size, {70, 11, 0, 40}, 12);
    const RandomPlacement placement(20, 4, 3, 2);
    for (const auto& [begin, end] : {std::pair(0, 70), std::pair(7, 20), std::pair(39, 70)})
      for (int64_t rank = 0; rank < 4; ++rank)
        expect_sorted(ops(), g, &placement, rank, true, {.begin = begin, .end = end, .packed = true});
  }
}

void expect_located(Ops& ops, const RandomPlacement* placement, int64_t rank, int64_t token_begin) {
  constexpr int64_t kTokens = 70, kTopK = 3, kExperts = 20, kSize = 6;
  const size_t num_ranks = placement ? 5 : 1;
  Random random(7);
  std::vector<int32_t> idx;
  std::vector<std::vector<int32_t>> row_of(num_ranks);
  std::vector<std::vector<float>> out(num_ranks, std::vector<float>(size_t(kTokens * kTopK * kSize)));
  for (int64_t i = 0; i < kTokens * kTopK; ++i) {
    idx.push_back(i % 11 == 3 ? -1 : int32_t(random.below(kExperts)));
    for (auto& rows : row_of) rows.push_back(int32_t(random.below(kTokens * kTopK)));
  }
  std::vector<MoeResults> results;
  for (size_t r = 0; r < num_ranks; ++r) results.push_back({out[r].data(), row_of[r].data()});
  std::vector<const void*> rows(idx.size(), out[0].data());
  MoeLocateArgs args = {.expert_idx = View<const int32_t>(idx.data(), {kTokens, kTopK}),
                        .results = results,
                        .rank = rank,
                        .token_begin = token_begin,
                        .row_bytes = kSize * int64_t(sizeof(float)),
                        .expert_rows = View<const void*>(rows.data(), {kTokens, kTopK})};
  if (placement) args.placement = placement->view();
  ops.moe_locate(args, {});
  for (size_t i = 0; i < idx.size(); ++i) {
    if (idx[i] < 0) {
      EXPECT_EQ(rows[i], nullptr);
      continue;
    }
    const size_t from =
        placement ? size_t(placement->rank[placement->physical(idx[i], rank, token_begin + int64_t(i) / kTopK)]) : 0;
    EXPECT_EQ(rows[i], out[from].data() + row_of[from][i] * kSize) << i;
  }
}

TEST_P(MoePermuteTest, Locate) {
  expect_located(ops(), nullptr, 0, 0);
  for (int64_t max_replicas : {1, 3}) {
    const RandomPlacement placement(20, 5, max_replicas, 3);
    for (int64_t rank : {0, 2, 4})
      for (int64_t token_begin : {0, 13}) expect_located(ops(), &placement, rank, token_begin);
  }
}

}  // namespace
}  // namespace moectl::test
