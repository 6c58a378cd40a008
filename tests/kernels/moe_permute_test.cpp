// Rows to their experts and back: places, offsets and copies are exact.
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

  // Distinct experts a token; every fifth token of a rank is padding and chooses nobody.
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

void expect_sorted(Ops& ops, Group g, int64_t expert_begin, int64_t num_local, bool with_scale) {
  const int64_t size = g.size;
  struct Choice {
    int64_t source, index;
  };
  std::vector<std::vector<Choice>> expected(static_cast<size_t>(num_local));
  int64_t room = 0;
  for (size_t r = 0; r < g.sources.size(); ++r) {
    room += g.sources[r].tokens * std::min(g.top_k, num_local);
    for (int64_t i = 0; i < int64_t(g.sources[r].idx.size()); ++i) {
      const int64_t e = g.sources[r].idx[size_t(i)] - expert_begin;
      if (g.sources[r].idx[size_t(i)] >= 0 && e >= 0 && e < num_local) expected[size_t(e)].push_back({int64_t(r), i});
    }
  }
  room = std::max<int64_t>(room, 1);
  std::vector<MoeSource> sources;
  for (Source& s : g.sources)
    sources.push_back({View<const float>(s.x.data(), {s.tokens, size}),
                       View<const int32_t>(s.idx.data(), {s.tokens, g.top_k}),
                       with_scale ? View<const float>(s.weight.data(), {s.tokens, g.top_k}) : View<const float>(),
                       View<int32_t>(s.row_of.data(), {s.tokens * g.top_k})});
  std::vector<int32_t> offsets(size_t(num_local + 1), -1);
  std::vector<float> x(size_t(room * size), NAN), scale(size_t(room), NAN);
  ops.moe_permute({sources, expert_begin, View<int32_t>(offsets.data(), {num_local + 1}),
                   View<float>(x.data(), {room, size}), with_scale ? View<float>(scale.data(), {room}) : View<float>()},
                  {});
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
      expect_sorted(ops(), Group(1, 1, size, {3}, 1), 0, 1, with_scale);
      expect_sorted(ops(), Group(8, 2, size, {5}, 2), 0, 8, with_scale);
      expect_sorted(ops(), Group(8, 8, size, {1}, 3), 0, 8, with_scale);
      expect_sorted(ops(), Group(64, 6, size, {70, 0, 300, 1}, 4), 16, 16, with_scale);  // one rank of four
      expect_sorted(ops(), Group(64, 6, size, {0, 0}, 5), 32, 32, with_scale);           // nobody has a token
      expect_sorted(ops(), Group(300, 2, size, {90}, 6), 0, 300, with_scale);            // most experts have no row
      expect_sorted(ops(), Group(256, 8, size, {200, 150}, 7), 0, 128, with_scale);      // two thousand choices
      expect_sorted(ops(), Group(2000, 3, size, {100}, 8), 0, 2000, with_scale);
    }
}

TEST_P(MoePermuteTest, Locate) {
  constexpr int64_t kTokens = 70, kTopK = 3, kLocal = 4, kRanks = 5, kSize = 6;
  Random random(7);
  std::vector<int32_t> idx;
  std::vector<std::vector<int32_t>> row_of(kRanks);
  std::vector<std::vector<float>> out(kRanks, std::vector<float>(size_t(kTokens * kTopK * kSize)));
  for (int64_t i = 0; i < kTokens * kTopK; ++i) {
    idx.push_back(i % 11 == 3 ? -1 : int32_t(random.below(kLocal * kRanks)));
    for (auto& rows : row_of) rows.push_back(int32_t(random.below(kTokens * kTopK)));
  }
  std::vector<MoeOwner> owners;
  for (size_t r = 0; r < kRanks; ++r) owners.push_back({out[r].data(), row_of[r].data()});
  std::vector<const float*> rows(idx.size(), out[0].data());
  ops().moe_locate({View<const int32_t>(idx.data(), {kTokens, kTopK}), owners, kLocal, kSize,
                    View<const float*>(rows.data(), {kTokens, kTopK})},
                   {});
  for (size_t i = 0; i < idx.size(); ++i) {
    if (idx[i] < 0) {
      EXPECT_EQ(rows[i], nullptr);
      continue;
    }
    const size_t owner = size_t(idx[i] / kLocal);
    EXPECT_EQ(rows[i], out[owner].data() + row_of[owner][i] * kSize) << i;
  }
}

}  // namespace
}  // namespace moectl::test
