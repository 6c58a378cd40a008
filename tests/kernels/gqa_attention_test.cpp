// Grouped-query attention and its cache against their definitions in kernels/ops.h: windows, chunks, sinks.
#include <numeric>

#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(GqaTest);

constexpr int64_t kPage = 64;

TEST_P(GqaTest, CacheWrite) {
  constexpr int64_t kHeads = 3, kDim = 20, kPages = 4;
  const std::vector<int64_t> slots = {0, 63, 64, 255, 130};
  const int64_t tokens = int64_t(slots.size());
  const auto k = Random(1).floats(tokens * kHeads * kDim), v = Random(2).floats(tokens * kHeads * kDim);
  std::vector<float> cache(size_t(kPages * kHeads * 2 * kPage * kDim), -7.0f);
  GqaCacheWriteArgs a;
  a.k = View<const float>(k.data(), {tokens, kHeads, kDim});
  a.v = View<const float>(v.data(), {tokens, kHeads, kDim});
  a.slots = View<const int64_t>(slots.data(), {tokens});
  a.page_size = kPage;
  a.cache = View<float>(cache.data(), {kPages, kHeads, 2 * kPage, kDim});
  ops().gqa_cache_write(a, {});
  std::vector<float> expected(cache.size(), -7.0f);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < kHeads; ++h)
      for (int64_t i = 0; i < kDim; ++i) {
        const int64_t page = slots[size_t(t)] / kPage, offset = slots[size_t(t)] % kPage;
        const int64_t key = (((page * kHeads + h) * 2 * kPage) + offset) * kDim + i;
        expected[size_t(key)] = k[size_t((t * kHeads + h) * kDim + i)];
        expected[size_t(key + kPage * kDim)] = v[size_t((t * kHeads + h) * kDim + i)];
      }
  EXPECT_TRUE(same_bits(cache, expected));
  const int64_t padding = -1;
  a.slots = View<const int64_t>(&padding, {1});
  a.k = a.k.first(1);
  const auto before = cache;
  ops().gqa_cache_write(a, {});
  EXPECT_TRUE(same_bits(cache, before)) << "a padding row is not written";
  for (int64_t bad : {int64_t{-2}, kPages * kPage}) {
    if (!refuses_bad_indexes()) break;
    a.slots = View<const int64_t>(&bad, {1});
    a.k = a.k.first(1);
    EXPECT_THROW(ops().gqa_cache_write(a, {}), Error);
  }
}

struct Shape {
  int64_t heads, kv_heads, dim;
  int window = 0, chunk = 0;
  bool sinks = false;
};

// Several sequences over scattered pages; pages that belong to nobody and places behind a position hold NaN.
struct Attention {
  Shape shape;
  float scale;
  std::vector<int32_t> positions, seq_idx, page_table;
  int64_t max_pages = 1, num_pages;
  std::vector<float> q, cache, sinks;

  Attention(Shape s, const std::vector<int32_t>& last_positions, float q_scale = 1.0f)
      : shape(s), scale(1.0f / std::sqrt(float(s.dim))) {
    Random random(uint64_t(s.heads * 1000 + s.dim + s.window));
    const int64_t seqs = int64_t(last_positions.size());
    for (int32_t p : last_positions) max_pages = std::max(max_pages, p / kPage + 1);
    num_pages = seqs * max_pages + 3;
    std::vector<int32_t> pages(static_cast<size_t>(num_pages));
    std::iota(pages.begin(), pages.end(), 0);
    random.shuffle(pages);
    cache.assign(size_t(num_pages * s.kv_heads * 2 * kPage * s.dim), NAN);
    page_table.assign(size_t(seqs * max_pages), -1);
    for (int64_t seq = 0; seq < seqs; ++seq) {
      for (int64_t p = 0; p <= last_positions[size_t(seq)] / kPage; ++p) {
        page_table[size_t(seq * max_pages + p)] = pages.back();
        pages.pop_back();
      }
      for (int32_t p = 0; p <= last_positions[size_t(seq)]; ++p)
        for (int64_t h = 0; h < s.kv_heads; ++h)
          for (int64_t i = 0; i < s.dim; ++i) {
            key(seq, p, h)[i] = random.uniform(-1.0f, 1.0f);
            value(seq, p, h)[i] = random.uniform(-1.0f, 1.0f);
          }
      for (int32_t p : {0, last_positions[size_t(seq)] / 2, last_positions[size_t(seq)]}) {
        positions.push_back(p);
        seq_idx.push_back(int32_t(seq));
      }
    }
    q = random.floats(int64_t(positions.size()) * s.heads * s.dim, q_scale);
    if (s.sinks) sinks = random.floats(s.heads, 2.0f);
  }
  float* key(int64_t seq, int64_t position, int64_t head) {
    const int64_t page = page_table[size_t(seq * max_pages + position / kPage)];
    return cache.data() + ((page * shape.kv_heads + head) * 2 * kPage + position % kPage) * shape.dim;
  }
  float* value(int64_t seq, int64_t position, int64_t head) { return key(seq, position, head) + kPage * shape.dim; }
  int64_t first_visible(int64_t position) const {
    if (shape.window) return std::max<int64_t>(0, position - shape.window + 1);
    return shape.chunk ? position - position % shape.chunk : 0;
  }
  std::vector<float> run(Ops& ops, int64_t begin, int64_t end) const {
    const int64_t n = end - begin, row = shape.heads * shape.dim;
    std::vector<float> out(size_t(n * row), NAN);
    GqaAttentionArgs a;
    a.q = View<const float>(q.data() + begin * row, {n, shape.heads, shape.dim});
    a.cache = View<const float>(cache.data(), {num_pages, shape.kv_heads, 2 * kPage, shape.dim});
    a.page_table = View<const int32_t>(page_table.data(), {int64_t(page_table.size()) / max_pages, max_pages});
    a.seq_idx = View<const int32_t>(seq_idx.data() + begin, {n});
    a.positions = View<const int32_t>(positions.data() + begin, {n});
    if (shape.sinks) a.sinks = View<const float>(sinks.data(), {shape.heads});
    a.page_size = kPage;
    a.window = shape.window;
    a.chunk = shape.chunk;
    a.scale = scale;
    a.out = View<float>(out.data(), {n, shape.heads, shape.dim});
    ops.gqa_attention(a, {});
    return out;
  }
  // The bounds are those of tests/kernels/mla_attention_test.cpp; a sink is one more weight of value 0.
  std::vector<Bounded> reference() {
    std::vector<Bounded> out;
    for (size_t t = 0; t < positions.size(); ++t)
      for (int64_t h = 0; h < shape.heads; ++h) {
        const float* x = q.data() + (int64_t(t) * shape.heads + h) * shape.dim;
        const int64_t kv = h * shape.kv_heads / shape.heads, first = first_visible(positions[t]), last = positions[t];
        std::vector<double> score;
        double max = shape.sinks ? double(sinks[size_t(h)]) : -INFINITY, error = 0, sum = 0;
        for (int64_t p = first; p <= last; ++p) {
          DotReference dot;
          for (int64_t i = 0; i < shape.dim; ++i) dot.add(double(x[i]), double(key(seq_idx[t], p, kv)[i]));
          const Bounded s = dot.result();
          score.push_back(s.value * double(scale));
          max = std::max(max, score.back());
          error = std::max(error, s.error * double(scale) + 2 * unit_roundoff(DType::kF32) * std::abs(score.back()));
        }
        if (shape.sinks) sum = std::exp(double(sinks[size_t(h)]) - max);
        for (double& s : score) sum += s = std::exp(s - max);
        const double pages = double((last - first + kPage) / kPage + 1);
        for (int64_t i = 0; i < shape.dim; ++i) {
          double result = 0, magnitude = 0, largest = 0;
          for (int64_t p = first; p <= last; ++p) {
            const double v = value(seq_idx[t], p, kv)[i], w = score[size_t(p - first)] / sum;
            result += w * v;
            magnitude += std::abs(w * v);
            largest = std::max(largest, std::abs(v));
          }
          const double weights = 4 * error + (2 + pages) * 4e-7;
          out.push_back(rounded(result, weights * largest + dot_tolerance(last - first + 1, magnitude) +
                                            dot_tolerance(last - first + 1, std::abs(result))));
        }
      }
    return out;
  }
};

std::vector<Shape> shapes() {
  return {{1, 1, 16},     {4, 4, 5},        {6, 2, 40, 0, 0, true}, {8, 1, 64, 1},     {4, 2, 128, 16, 0, true},
          {4, 2, 96, 64}, {2, 1, 256, 100}, {4, 2, 32, 0, 8},       {4, 2, 32, 0, 100}};
}

TEST_P(GqaTest, Attention) {
  for (const Shape& s : shapes()) {
    SCOPED_TRACE(fmt::format("{} heads on {} of {}, window {}, chunk {}, sinks {}", s.heads, s.kv_heads, s.dim,
                             s.window, s.chunk, s.sinks));
    Attention a(s, attention_positions());
    const auto out = a.run(ops(), 0, int64_t(a.positions.size()));
    ASSERT_TRUE(close(out, a.reference(), {int64_t(a.positions.size()), s.heads, s.dim}));
  }
}

TEST_P(GqaTest, CompanyAndThreads) {
  for (const Shape& s : shapes()) {
    Attention a(s, attention_positions());
    const int64_t tokens = int64_t(a.positions.size()), row = s.heads * s.dim;
    const auto all = a.run(ops(), 0, tokens);
    for (int64_t t = 0; t < tokens; ++t) {
      ASSERT_TRUE(same_bits(a.run(ops(), t, t + 1), row_of(all, t, row))) << "token " << t;
      if (t % 7 == 2) expect_same_with_threads([&](Ops& o) { return a.run(o, t, t + 1); });
    }
    expect_same_with_threads([&](Ops& o) { return a.run(o, 0, tokens); });
  }
}

// What lies before the window takes no part, whatever it holds.
TEST_P(GqaTest, WindowHidesWhatLiesBefore) {
  Attention a({2, 1, 24, 16, 0, true}, {200});
  const auto before = a.run(ops(), 2, 3);
  for (int32_t p = 0; p <= 200 - 16; ++p)
    for (int64_t i = 0; i < 24; ++i) a.key(0, p, 0)[i] = a.value(0, p, 0)[i] = NAN;
  EXPECT_TRUE(same_bits(a.run(ops(), 2, 3), before));
}

// A sink far above every score leaves nothing for the values; one far below changes nothing.
TEST_P(GqaTest, SinksOfEitherExtreme) {
  Attention a({2, 1, 24, 0, 0, true}, {100});
  a.sinks = {1e4f, 1e4f};
  for (float v : a.run(ops(), 0, 3)) EXPECT_NEAR(v, 0.0f, 1e-30);
  a.sinks = {-1e4f, -1e4f};
  const auto low = a.run(ops(), 0, 3);
  a.shape.sinks = false;
  EXPECT_TRUE(close(low, a.reference(), {3, 2, 24}));
}

TEST_P(GqaTest, RefusesPagesThatDoNotExist) {
  if (!refuses_bad_indexes()) GTEST_SKIP() << "page tables are on the device";
  Attention a({1, 1, 16}, {70});
  a.page_table[1] = int32_t(a.num_pages);
  EXPECT_THROW(a.run(ops(), 2, 3), Error);
  a.page_table[1] = -1;
  EXPECT_THROW(a.run(ops(), 2, 3), Error);
}

}  // namespace
}  // namespace moectl::test
