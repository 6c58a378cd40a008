// The four operations of latent attention, each against its definition in kernels/ops.h.
#include <numeric>

#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(MlaTest);

constexpr int64_t kPage = 64;

std::vector<Bounded> rotated(const float* x, const float* cos_sin, int64_t dim) {
  std::vector<Bounded> out;
  for (int64_t i = 0; i < dim / 2; ++i) {
    DotReference first, second;
    const double cos = cos_sin[i], sin = cos_sin[dim / 2 + i];
    first.add(double(x[2 * i]), cos);
    first.add(double(x[2 * i + 1]), -sin);
    second.add(double(x[2 * i + 1]), cos);
    second.add(double(x[2 * i]), sin);
    out.push_back(first.result());
    out.push_back(second.result());
  }
  return out;
}

std::vector<Matrix> head_matrices(DType dtype, int64_t heads, int64_t n, int64_t k) {
  std::vector<Matrix> all;
  for (int64_t h = 0; h < heads; ++h) all.push_back(random_matrix(dtype, n, k, uint64_t(h + 1)));
  return all;
}
std::vector<MatrixSpec> specs_of(const std::vector<Matrix>& matrices) {
  std::vector<MatrixSpec> specs;
  for (const Matrix& m : matrices) specs.push_back(m.whole());
  return specs;
}

TEST_P(MlaTest, Query) {
  for (DType dtype : weight_dtypes())
    for (auto [tokens, heads, nope, rope, rank] :
         {std::array<int64_t, 5>{1, 1, 3, 2, 5}, {5, 3, 24, 8, 40}, {13, 2, 128, 64, 130}}) {
      SCOPED_TRACE(fmt::format("{}: {} tokens, rank {}", dtype_name(dtype), tokens, rank));
      const auto matrices = head_matrices(dtype, heads, rank, nope);
      const auto specs = specs_of(matrices);
      const auto q = Random(1).floats(tokens * heads * (nope + rope)), cos_sin = Random(2).floats(tokens * rope);
      auto run = [&, heads = heads, nope = nope, rope = rope, rank = rank](Ops& o, int64_t begin, int64_t end) {
        const int64_t n = end - begin;
        std::vector<float> out(size_t(n * heads * (rank + rope)), NAN);
        o.mla_query({View<const float>(q.data() + begin * heads * (nope + rope), {n, heads, nope + rope}),
                     o.pack(specs), View<const float>(cos_sin.data() + begin * rope, {n, rope}),
                     View<float>(out.data(), {n, heads, rank + rope})},
                    {});
        return out;
      };
      std::vector<Bounded> expected;
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t h = 0; h < heads; ++h) {
          const float* x = q.data() + (t * heads + h) * (nope + rope);
          for (int64_t i = 0; i < rank; ++i) {
            DotReference dot;
            for (int64_t k = 0; k < nope; ++k) dot.add(double(x[k]), weight_value(specs[size_t(h)], i, k));
            expected.push_back(dot.result());
          }
          for (Bounded b : rotated(x + nope, cos_sin.data() + t * rope, rope)) expected.push_back(b);
        }
      const auto all = run(ops(), 0, tokens);
      ASSERT_TRUE(close(all, expected, {tokens, heads, rank + rope}));
      for (int64_t t = 0; t < tokens; ++t)
        ASSERT_TRUE(same_bits(run(ops(), t, t + 1), row_of(all, t, heads * (rank + rope))));
      expect_same_with_threads([&, tokens = tokens](Ops& o) { return run(o, 0, tokens); });
    }
}

TEST_P(MlaTest, Output) {
  for (DType dtype : weight_dtypes()) {
    constexpr int64_t kTokens = 15, kHeads = 3, kRank = 140, kV = 33;
    const auto matrices = head_matrices(dtype, kHeads, kV, kRank);
    const auto specs = specs_of(matrices);
    const auto latent = Random(3).floats(kTokens * kHeads * kRank);
    auto run = [&](Ops& o, int64_t begin, int64_t end) {
      std::vector<float> out(size_t((end - begin) * kHeads * kV), NAN);
      o.mla_output({View<const float>(latent.data() + begin * kHeads * kRank, {end - begin, kHeads, kRank}),
                    o.pack(specs), View<float>(out.data(), {end - begin, kHeads, kV})},
                   {});
      return out;
    };
    std::vector<Bounded> expected;
    for (int64_t t = 0; t < kTokens; ++t)
      for (int64_t h = 0; h < kHeads; ++h)
        for (int64_t i = 0; i < kV; ++i) {
          DotReference dot;
          for (int64_t k = 0; k < kRank; ++k)
            dot.add(double(latent[size_t((t * kHeads + h) * kRank + k)]), weight_value(specs[size_t(h)], i, k));
          expected.push_back(dot.result());
        }
    const auto all = run(ops(), 0, kTokens);
    ASSERT_TRUE(close(all, expected, {kTokens, kHeads, kV}));
    for (int64_t t = 0; t < kTokens; ++t) ASSERT_TRUE(same_bits(run(ops(), t, t + 1), row_of(all, t, kHeads * kV)));
    expect_same_with_threads([&](Ops& o) { return run(o, 0, kTokens); });
  }
}

TEST_P(MlaTest, CacheWrite) {
  constexpr int64_t kRank = 35, kRope = 6, kWidth = kRank + kRope, kPages = 4;
  const std::vector<int64_t> slots = {0, 63, 64, 255, 130};
  const int64_t tokens = int64_t(slots.size());
  const auto kv = Random(4).floats(tokens * kWidth), weight = Random(5).floats(kRank),
             cos_sin = Random(6).floats(tokens * kRope);
  std::vector<float> cache(size_t(kPages * kPage * kWidth), -7.0f);
  MlaCacheWriteArgs a;
  a.kv = View<const float>(kv.data(), {tokens, kWidth});
  a.norm_weight = View<const float>(weight.data(), {kRank});
  a.cos_sin = View<const float>(cos_sin.data(), {tokens, kRope});
  a.slots = View<const int64_t>(slots.data(), {tokens});
  a.cache = View<float>(cache.data(), {kPages, kPage, kWidth});
  ops().mla_cache_write(a, {});
  for (int64_t t = 0; t < tokens; ++t) {
    double squares = 0;
    for (int64_t i = 0; i < kRank; ++i) squares += std::pow(double(kv[size_t(t * kWidth + i)]), 2);
    std::vector<Bounded> expected;
    for (int64_t i = 0; i < kRank; ++i) {
      const double v =
          double(kv[size_t(t * kWidth + i)]) / std::sqrt(squares / kRank + double(a.eps)) * double(weight[size_t(i)]);
      expected.push_back({v, std::abs(v) * (dot_tolerance(kRank, 1.0) / 2 + 5 * unit_roundoff(DType::kF32))});
    }
    for (Bounded b : rotated(kv.data() + t * kWidth + kRank, cos_sin.data() + t * kRope, kRope)) expected.push_back(b);
    EXPECT_TRUE(close(row_of(cache, slots[size_t(t)], kWidth), expected)) << "slot " << slots[size_t(t)];
  }
  for (int64_t slot = 0; slot < kPages * kPage; ++slot)
    if (std::find(slots.begin(), slots.end(), slot) == slots.end()) {
      ASSERT_EQ(row_of(cache, slot, kWidth), std::vector<float>(kWidth, -7.0f)) << "slot " << slot << " was touched";
    }
  const int64_t padding = -1;
  a.slots = View<const int64_t>(&padding, {1});
  a.kv = a.kv.first(1);
  const auto before = cache;
  ops().mla_cache_write(a, {});
  EXPECT_TRUE(same_bits(cache, before)) << "a padding row is not written";
  for (int64_t bad : {int64_t{-2}, kPages * kPage}) {
    if (!refuses_bad_indexes()) break;
    a.slots = View<const int64_t>(&bad, {1});
    a.kv = a.kv.first(1);
    EXPECT_THROW(ops().mla_cache_write(a, {}), Error);
  }
}

// Several sequences over scattered pages; every page that belongs to nobody, and every place behind a position, holds
// NaN.
struct Attention {
  int64_t heads, rank, rope, width;
  float scale;
  std::vector<int32_t> positions, seq_idx, page_table;
  int64_t max_pages, num_pages;
  std::vector<float> q, cache;

  Attention(int64_t heads, int64_t rank, int64_t rope, std::vector<int32_t> last_positions, float q_scale = 1.0f)
      : heads(heads), rank(rank), rope(rope), width(rank + rope), scale(1.0f / std::sqrt(float(width))) {
    Random random(uint64_t(heads * 1000 + width));
    const int64_t seqs = int64_t(last_positions.size());
    max_pages = 1;
    for (int32_t p : last_positions) max_pages = std::max(max_pages, p / kPage + 1);
    num_pages = seqs * max_pages + 3;
    std::vector<int32_t> pages(static_cast<size_t>(num_pages));
    std::iota(pages.begin(), pages.end(), 0);
    random.shuffle(pages);
    cache.assign(size_t(num_pages * kPage * width), NAN);
    page_table.assign(size_t(seqs * max_pages), -1);
    for (int64_t s = 0; s < seqs; ++s) {
      for (int64_t p = 0; p <= last_positions[size_t(s)] / kPage; ++p) {
        page_table[size_t(s * max_pages + p)] = pages.back();
        pages.pop_back();
      }
      for (int32_t p = 0; p <= last_positions[size_t(s)]; ++p)
        for (int64_t i = 0; i < width; ++i) key(s, p)[i] = random.uniform(-1.0f, 1.0f);
      for (int32_t p : {0, last_positions[size_t(s)] / 2, last_positions[size_t(s)]}) {  // prefill rows and the last
        positions.push_back(p);
        seq_idx.push_back(int32_t(s));
      }
    }
    q = random.floats(int64_t(positions.size()) * heads * width, q_scale);
  }
  float* key(int64_t seq, int64_t position) {
    return cache.data() + (page_table[size_t(seq * max_pages + position / kPage)] * kPage + position % kPage) * width;
  }
  std::vector<float> run(Ops& ops, int64_t begin, int64_t end) const {
    const int64_t n = end - begin;
    std::vector<float> out(size_t(n * heads * rank), NAN);
    MlaAttentionArgs a;
    a.q = View<const float>(q.data() + begin * heads * width, {n, heads, width});
    a.cache = View<const float>(cache.data(), {num_pages, kPage, width});
    a.page_table = View<const int32_t>(page_table.data(), {int64_t(page_table.size()) / max_pages, max_pages});
    a.seq_idx = View<const int32_t>(seq_idx.data() + begin, {n});
    a.positions = View<const int32_t>(positions.data() + begin, {n});
    a.kv_lora_rank = int(rank);
    a.scale = scale;
    a.out = View<float>(out.data(), {n, heads, rank});
    ops.mla_attention(a, {});
    return out;
  }
  // An error d of a score changes its weight by a factor of at most e^|d|, so an output that is an average of values v
  // by at most 2 d max|v|; the weighted sums then err like dot products of non-negative weights.
  std::vector<Bounded> reference() {
    std::vector<Bounded> out;
    for (size_t t = 0; t < positions.size(); ++t)
      for (int64_t h = 0; h < heads; ++h) {
        const float* x = q.data() + (int64_t(t) * heads + h) * width;
        const int64_t length = positions[t] + 1;
        std::vector<double> score;
        double max = -INFINITY, error = 0, sum = 0;
        for (int64_t p = 0; p < length; ++p) {
          DotReference dot;
          for (int64_t i = 0; i < width; ++i) dot.add(double(x[i]), double(key(seq_idx[t], p)[i]));
          const Bounded s = dot.result();
          score.push_back(s.value * double(scale));
          max = std::max(max, score.back());
          error = std::max(error, s.error * double(scale) + 2 * unit_roundoff(DType::kF32) * std::abs(score.back()));
        }
        for (double& s : score) sum += s = std::exp(s - max);
        const double pages = double((length + kPage - 1) / kPage);
        for (int64_t i = 0; i < rank; ++i) {
          double value = 0, magnitude = 0, largest = 0;
          for (int64_t p = 0; p < length; ++p) {
            const double v = key(seq_idx[t], p)[i], w = score[size_t(p)] / sum;
            value += w * v;
            magnitude += std::abs(w * v);
            largest = std::max(largest, std::abs(v));
          }
          // 2e-7 and the rounding of s - max: the exponential, again for each page whose maximum rescales the earlier
          // ones.
          const double weights = 4 * error + (2 + pages) * 4e-7;
          out.push_back(rounded(
              value, weights * largest + dot_tolerance(length, magnitude) + dot_tolerance(length, std::abs(value))));
        }
      }
    return out;
  }
};

TEST_P(MlaTest, Attention) {
  for (auto [heads, rank, rope] :
       {std::array<int64_t, 3>{1, 16, 0}, {2, 5, 2}, {3, 40, 6}, {1, 130, 10}, {2, 512, 64}}) {
    SCOPED_TRACE(fmt::format("{} heads, rank {}, rope {}", heads, rank, rope));
    Attention a(heads, rank, rope, attention_positions());
    const auto out = a.run(ops(), 0, int64_t(a.positions.size()));
    ASSERT_TRUE(close(out, a.reference(), {int64_t(a.positions.size()), heads, rank}));
  }
}

TEST_P(MlaTest, AttentionToOneKeyIsItsValue) {
  Attention a(2, 24, 4, {0});
  const auto out = a.run(ops(), 0, 1);
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i = 0; i < 24; ++i) EXPECT_EQ(out[size_t(h * 24 + i)], a.key(0, 0)[i]);
}

TEST_P(MlaTest, AttentionOfExtremeScores) {
  Attention a(2, 40, 8, {0, 63, 64, 200}, 4e4f);  // scores of some +-1e4
  const auto out = a.run(ops(), 0, int64_t(a.positions.size()));
  float largest = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT_TRUE(std::isfinite(out[i])) << i;
    largest = std::max(largest, std::abs(out[i]));
  }
  EXPECT_LE(largest, 1.0f + 1e-5f);  // an average of values in [-1, 1]
  EXPECT_TRUE(close(out, a.reference(), {int64_t(a.positions.size()), 2, 40}));
}

// A weight that underflows is not a weight: the best key's value comes out alone.
TEST_P(MlaTest, AttentionPicksTheBestOfFarScores) {
  for (float sign : {1.0f, -1.0f}) {
    Attention a(1, 16, 2, {200});
    a.scale = 1.0f;
    std::fill(a.q.begin(), a.q.end(), 0.0f);
    for (size_t t = 0; t < a.positions.size(); ++t) a.q[t * 18 + 16] = 1e4f * sign;
    for (int32_t p = 0; p <= 200; ++p) a.key(0, p)[16] = p == 70 ? sign : -sign;
    const auto out = row_of(a.run(ops(), 0, 3), 2, 16);
    for (int64_t i = 0; i < 16; ++i) EXPECT_NEAR(out[size_t(i)], a.key(0, 70)[i], 1e-30) << i;
  }
}

TEST_P(MlaTest, AttentionCompanyAndThreads) {
  for (auto [heads, rank, rope] : {std::array<int64_t, 3>{5, 40, 6}, {3, 128, 16}}) {
    Attention a(heads, rank, rope, attention_positions());
    const int64_t tokens = int64_t(a.positions.size());
    const auto all = a.run(ops(), 0, tokens);
    for (int64_t t = 0; t < tokens; ++t) {
      ASSERT_TRUE(same_bits(a.run(ops(), t, t + 1), row_of(all, t, heads * rank))) << "token " << t;
      expect_same_with_threads([&](Ops& o) { return a.run(o, t, t + 1); });
    }
    expect_same_with_threads([&](Ops& o) { return a.run(o, 0, tokens); });
  }
}

TEST_P(MlaTest, AttentionRefusesPagesThatDoNotExist) {
  if (!refuses_bad_indexes()) GTEST_SKIP() << "page tables are on the device";
  Attention a(1, 16, 2, {70});
  a.page_table[1] = int32_t(a.num_pages);
  EXPECT_THROW(a.run(ops(), 2, 3), Error);
  a.page_table[1] = -1;
  EXPECT_THROW(a.run(ops(), 2, 3), Error);
}

}  // namespace
}  // namespace moectl::test
