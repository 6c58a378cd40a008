// Grouped-query attention on the GPU, portable and Hopper kernels, against its definition in kernels/ops.h computed in
// f64.
#include <numeric>

#include "tests/kernels_cuda/attention_data.h"

namespace moectl::test {
namespace {

using GqaAttentionGpuTest = GpuTest;

constexpr int64_t kPage = 64;

struct Shape {
  int64_t heads, kv_heads, dim;
  int window = 0, chunk = 0;
  bool sinks = false;
  float temperature_floor = 0, temperature_scale = 0;
};

// Several sequences over scattered pages, several rows of each; positions that no row sees, and all unused pages, are
// NaN.
struct Attention {
  Shape shape;
  DType dtype;
  float scale;
  int64_t max_pages = 1, num_pages = 3;
  std::vector<int32_t> positions, seq_idx, page_table;
  std::vector<float> q, cache, sinks;

  // run: rows of each sequence, up to its last position; 0: the last, the one before, and one in the middle.
  Attention(const Shape& s, DType dtype, const std::vector<int32_t>& last_positions, int run = 0)
      : shape(s), dtype(dtype), scale(1.0f / std::sqrt(float(s.dim) / 3)) {
    Random random(uint64_t(s.heads * 1000 + s.dim + s.window));
    const int64_t seqs = int64_t(last_positions.size());
    for (int32_t p : last_positions) {
      max_pages = std::max<int64_t>(max_pages, p / kPage + 1);
      num_pages += p / kPage + 1;
    }
    std::vector<int32_t> pages(static_cast<size_t>(num_pages));
    std::iota(pages.begin(), pages.end(), 0);
    random.shuffle(pages);
    cache.assign(size_t(num_pages * s.kv_heads * 2 * kPage * s.dim), NAN);
    page_table.assign(size_t(seqs * max_pages), -1);
    for (int64_t seq = 0; seq < seqs; ++seq) {
      const int32_t last = last_positions[size_t(seq)];
      for (int64_t p = 0; p <= last / kPage; ++p) {
        page_table[size_t(seq * max_pages + p)] = pages.back();
        pages.pop_back();
      }
      std::vector<int32_t> rows = {last, last - 1, last / 2};
      if (run > 0) rows.clear();
      for (int32_t p = std::max(0, last - run + 1); run > 0 && p <= last; ++p) rows.push_back(p);
      for (int32_t p : rows) {
        positions.push_back(p);  // -1 now and then: a padding row
        seq_idx.push_back(int32_t(seq));
        for (int64_t i = first_visible(p); i <= p; ++i)
          for (int64_t h = 0; h < s.kv_heads; ++h)
            if (std::isnan(*key(seq, i, h)))
              for (int64_t c = 0; c < s.dim; ++c) {
                key(seq, i, h)[c] = random.uniform(-1.0f, 1.0f);
                value(seq, i, h)[c] = random.uniform(-1.0f, 1.0f);
              }
      }
    }
    q = random.floats(tokens() * s.heads * s.dim, 2.0f);
    if (s.sinks) sinks = random.floats(s.heads, 3.0f);
  }
  int64_t tokens() const { return int64_t(positions.size()); }
  float* key(int64_t seq, int64_t position, int64_t head) {
    const int64_t page = page_table[size_t(seq * max_pages + position / kPage)];
    return cache.data() + ((page * shape.kv_heads + head) * 2 * kPage + position % kPage) * shape.dim;
  }
  float* value(int64_t seq, int64_t position, int64_t head) { return key(seq, position, head) + kPage * shape.dim; }
  int64_t first_visible(int64_t position) const {
    if (position < 0) return 0;
    if (shape.window) return std::max<int64_t>(0, position - shape.window + 1);
    return shape.chunk ? position - position % shape.chunk : 0;
  }

  std::vector<float> run(int64_t begin, int64_t end, bool deterministic, bool portable) {
    const int64_t n = end - begin, row = shape.heads * shape.dim;
    DeviceCache device_cache(cache, dtype);
    DeviceArray<float> dq(std::vector<float>(q.begin() + begin * row, q.begin() + end * row)), ds(sinks), out(n * row);
    DeviceArray<int32_t> table(page_table);
    DeviceArray<int32_t> seqs(std::vector<int32_t>(seq_idx.begin() + begin, seq_idx.begin() + end));
    DeviceArray<int32_t> at(std::vector<int32_t>(positions.begin() + begin, positions.begin() + end));
    DeviceScratch scratch(n, shape.heads, shape.dim, deterministic);
    scratch.scratch.portable = portable;
    GqaAttentionArgs a;
    a.q = View<const float>(dq.data(), {n, shape.heads, shape.dim});
    a.cache = device_cache.view({num_pages, shape.kv_heads, 2 * kPage, shape.dim});
    a.page_table = View<const int32_t>(table.data(), {int64_t(page_table.size()) / max_pages, max_pages});
    a.seq_idx = View<const int32_t>(seqs.data(), {n});
    a.positions = View<const int32_t>(at.data(), {n});
    if (shape.sinks) a.sinks = View<const float>(ds.data(), {shape.heads});
    a.page_size = kPage;
    a.window = shape.window;
    a.chunk = shape.chunk;
    a.scale = scale;
    a.temperature_floor = shape.temperature_floor;
    a.temperature_scale = shape.temperature_scale;
    a.out = View<float>(out.data(), {n, shape.heads, shape.dim});
    cuda::gqa_attention(a, scratch.scratch, {});
    auto result = out.host();
    EXPECT_TRUE(scratch.counters_are_zero());
    return result;
  }
  // u: the roundoff of the dtype to which the kernel rounds queries and weights.
  std::vector<Bounded> reference(double u) {
    std::vector<Bounded> out;
    std::vector<double> weight, spread, values;
    for (size_t t = 0; t < positions.size(); ++t)
      for (int64_t h = 0; h < shape.heads; ++h) {
        const float* x = q.data() + (int64_t(t) * shape.heads + h) * shape.dim;
        const int64_t kv = h * shape.kv_heads / shape.heads, last = positions[t], first = first_visible(last);
        double factor = double(scale);
        if (shape.temperature_floor > 0)
          factor *= std::log1p(std::floor(double(last + 1) / double(shape.temperature_floor))) *
                        double(shape.temperature_scale) +
                    1.0;
        weight.clear();
        spread.clear();
        double max = shape.sinks ? double(sinks[size_t(h)]) : -INFINITY, error = 0;
        for (int64_t p = first; p <= last; ++p) {
          double dot = 0, squares = 0;
          for (int64_t i = 0; i < shape.dim; ++i) {
            const double term = double(x[i]) * double(key(seq_idx[t], p, kv)[i]);
            dot += term;
            squares += term * term;
          }
          weight.push_back(dot * factor);
          spread.push_back(std::sqrt(squares) * factor);
          max = std::max(max, weight.back());
          error = std::max(error, dot_tolerance(shape.dim, std::sqrt(squares * double(shape.dim))) * factor +
                                      4 * unit_roundoff(DType::kF32) * std::abs(weight.back()));
        }
        double sum = shape.sinks ? std::exp(double(sinks[size_t(h)]) - max) : 0.0;
        for (double& w : weight) sum += w = std::exp(w - max);
        for (double& w : weight) w /= sum;
        for (int64_t i = 0; i < shape.dim; ++i) {
          values.clear();
          for (int64_t p = first; p <= last; ++p) values.push_back(double(value(seq_idx[t], p, kv)[i]));
          out.push_back(last < 0 ? Bounded{} : attention_output(weight, error, spread, values, u));
        }
      }
    return out;
  }
};

void check(const Shape& s, DType dtype, bool portable, int run = 0) {
  SCOPED_TRACE(fmt::format("{}: {} heads on {} of {}, window {}, chunk {}, sinks {}", dtype_name(dtype), s.heads,
                           s.kv_heads, s.dim, s.window, s.chunk, s.sinks));
  Attention a(s, dtype, {0, 1, 62, 63, 64, 65, 127, 128, 200, run ? 300 : 1000}, run);
  std::vector<float> once = a.run(0, a.tokens(), true, portable);  // rounds a's cache to the dtype
  const auto expected = a.reference(portable ? 0 : unit_roundoff(DType::kBF16));
  for (bool deterministic : {false, true}) {
    const auto out = a.run(0, a.tokens(), deterministic, portable);
    ASSERT_TRUE(close(out, expected, {a.tokens(), s.heads, s.dim})) << "deterministic " << deterministic;
    ASSERT_TRUE(same_bits(a.run(0, a.tokens(), deterministic, portable), out)) << "again";
  }
  for (int64_t t = 0; t < a.tokens(); t += run ? 50 : 5)
    ASSERT_TRUE(same_bits(a.run(t, t + 1, true, portable), row_of(once, t, s.heads * s.dim)))
        << "row " << t << " alone";
}

TEST_F(GqaAttentionGpuTest, Portable) {
  for (DType dtype : {DType::kF32, DType::kBF16})
    for (const Shape& s : std::vector<Shape>{{1, 1, 16},
                                             {4, 4, 5},
                                             {6, 2, 40, 0, 0, true},
                                             {4, 2, 96, 16, 0, true},
                                             {2, 1, 256, 100},
                                             {4, 2, 32, 0, 100, false, 50.0f, 0.5f}})
      check(s, dtype, true);
}

TEST_F(GqaAttentionGpuTest, Hopper) {
  if (!takes_hopper_kernels()) GTEST_SKIP() << "no Hopper";
  for (const Shape& s : std::vector<Shape>{{8, 1, 64},
                                           {16, 2, 64, 128, 0, true},
                                           {32, 4, 128},
                                           {12, 1, 128, 0, 0, true},
                                           {16, 1, 128, 1},
                                           {4, 4, 128, 70},
                                           {10, 2, 128, 0, 100, false, 50.0f, 0.5f},
                                           {8, 2, 256},
                                           {3, 1, 256, 300, 0, true}})
    check(s, DType::kBF16, false);
}

// Prompt rows: tiles within one sequence, and tiles across sequences.
TEST_F(GqaAttentionGpuTest, HopperPrefill) {
  if (!takes_hopper_kernels()) GTEST_SKIP() << "no Hopper";
  for (const Shape& s : std::vector<Shape>{{16, 2, 64, 128, 0, true},
                                           {8, 1, 128},
                                           {12, 1, 128, 0, 0, true},
                                           {1, 1, 128},
                                           {8, 2, 128, 0, 100, false, 50.0f, 0.5f},
                                           {8, 1, 128, 1},
                                           {8, 1, 256, 70}})
    check(s, DType::kBF16, false, 100);
}

TEST_F(GqaAttentionGpuTest, WrongShapesAreRefused) {
  float* none = nullptr;
  GqaAttentionArgs a;
  a.q = View<const float>(none, {1, 3, 16});
  a.cache = KvView(none, DType::kF32, {4, 2, 2 * kPage, 16});
  a.page_size = kPage;
  EXPECT_THROW(cuda::gqa_attention(a, {}, {}), Error);
}

}  // namespace
}  // namespace moectl::test
