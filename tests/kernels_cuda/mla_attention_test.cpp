// Absorbed MLA on the GPU, portable and Hopper kernels, against its definition in kernels/ops.h computed in f64.
#include <numeric>

#include "tests/kernels_cuda/attention_data.h"

namespace moectl::test {
namespace {

using MlaAttentionGpuTest = GpuTest;

constexpr int64_t kPage = 64;

// Several sequences over scattered pages, several rows of each; positions after the last, and all unused pages, are
// NaN.
struct Attention {
  int64_t heads, rank, rope, width, max_pages = 1, num_pages;
  float scale;
  DType dtype;
  std::vector<int32_t> positions, seq_idx, page_table;
  std::vector<float> q, cache;

  Attention(int64_t heads, int64_t rank, int64_t rope, DType dtype, const std::vector<int32_t>& last_positions)
      : heads(heads),
        rank(rank),
        rope(rope),
        width(rank + rope),
        scale(1.0f / std::sqrt(float(width) / 3)),
        dtype(dtype) {
    Random random(uint64_t(heads * 1000 + width));
    const int64_t seqs = int64_t(last_positions.size());
    for (int32_t p : last_positions) max_pages = std::max<int64_t>(max_pages, p / kPage + 1);
    num_pages = 3;
    for (int32_t p : last_positions) num_pages += p / kPage + 1;
    std::vector<int32_t> pages(static_cast<size_t>(num_pages));
    std::iota(pages.begin(), pages.end(), 0);
    random.shuffle(pages);
    cache.assign(size_t(num_pages * kPage * width), NAN);
    page_table.assign(size_t(seqs * max_pages), -1);
    for (int64_t s = 0; s < seqs; ++s) {
      const int32_t last = last_positions[size_t(s)];
      for (int64_t p = 0; p <= last / kPage; ++p) {
        page_table[size_t(s * max_pages + p)] = pages.back();
        pages.pop_back();
      }
      for (int32_t p = 0; p <= last; ++p)
        for (int64_t i = 0; i < width; ++i) key(s, p)[i] = random.uniform(-1.0f, 1.0f);
      for (int32_t p : {last, last - 1, last / 2}) {
        positions.push_back(p);  // -1 now and then: a padding row
        seq_idx.push_back(int32_t(s));
      }
    }
    q = random.floats(int64_t(positions.size()) * heads * width, 2.0f);
  }
  float* key(int64_t seq, int64_t position) {
    return cache.data() + (page_table[size_t(seq * max_pages + position / kPage)] * kPage + position % kPage) * width;
  }
  int64_t tokens() const { return int64_t(positions.size()); }

  // bf16: the dtype of queries and outputs; else f32.
  std::vector<float> run(int64_t begin, int64_t end, bool deterministic, bool portable, bool bf16 = false) {
    const int64_t n = end - begin;
    DeviceCache device_cache(cache, dtype);
    DeviceArray<float> dq(std::vector<float>(q.begin() + begin * heads * width, q.begin() + end * heads * width));
    DeviceArray<int32_t> table(page_table);
    DeviceArray<int32_t> seqs(std::vector<int32_t>(seq_idx.begin() + begin, seq_idx.begin() + end));
    DeviceArray<int32_t> at(std::vector<int32_t>(positions.begin() + begin, positions.begin() + end));
    DeviceArray<float> out(bf16 ? 1 : n * heads * rank);
    std::vector<uint16_t> q_bits;
    for (int64_t i = begin * heads * width; bf16 && i < end * heads * width; ++i)
      q_bits.push_back(f32_to_bf16(q[size_t(i)]));
    DeviceArray<uint16_t> q_bf16(q_bits), out_bf16(bf16 ? n * heads * rank : 1);
    DeviceScratch scratch(n, heads, rank, deterministic);
    scratch.scratch.portable = portable;
    MlaAttentionArgs a;
    a.q = View<const float>(dq.data(), {n, heads, width});
    a.cache = device_cache.view({num_pages, kPage, width, 0});
    a.page_table = View<const int32_t>(table.data(), {int64_t(page_table.size()) / max_pages, max_pages});
    a.seq_idx = View<const int32_t>(seqs.data(), {n});
    a.positions = View<const int32_t>(at.data(), {n});
    a.kv_lora_rank = int(rank);
    a.scale = scale;
    a.out = View<float>(out.data(), {n, heads, rank});
    if (bf16) {
      a.q = Operand(q_bf16.data(), DType::kBF16, {n, heads, width});
      a.out = Operand(out_bf16.data(), DType::kBF16, {n, heads, rank});
    }
    cuda::mla_attention(a, scratch.scratch, {});
    auto result = out.host();
    if (bf16) {
      result.clear();
      for (uint16_t v : out_bf16.host()) result.push_back(bf16_to_f32(v));
    }
    EXPECT_TRUE(scratch.counters_are_zero());
    return result;
  }
  // u: the roundoff of the dtype to which the kernel rounds queries and weights.
  std::vector<Bounded> reference(double u) {
    std::vector<Bounded> out;
    std::vector<double> weight, spread, value;
    for (size_t t = 0; t < positions.size(); ++t)
      for (int64_t h = 0; h < heads; ++h) {
        const float* x = q.data() + (int64_t(t) * heads + h) * width;
        const int64_t length = positions[t] + 1;
        weight.clear();
        spread.clear();
        double max = -INFINITY, error = 0, sum = 0;
        for (int64_t p = 0; p < length; ++p) {
          double dot = 0, squares = 0;
          const float* k = key(seq_idx[t], p);
          for (int64_t i = 0; i < width; ++i) {
            const double term = double(x[i]) * double(k[i]);
            dot += term;
            squares += term * term;
          }
          weight.push_back(dot * double(scale));
          spread.push_back(std::sqrt(squares) * double(scale));
          max = std::max(max, weight.back());
          error = std::max(error, dot_tolerance(width, std::sqrt(squares * double(width))) * double(scale) +
                                      2 * unit_roundoff(DType::kF32) * std::abs(weight.back()));
        }
        for (double& w : weight) sum += w = std::exp(w - max);
        for (double& w : weight) w /= sum;
        for (int64_t i = 0; i < rank; ++i) {
          value.clear();
          for (int64_t p = 0; p < length; ++p) value.push_back(double(key(seq_idx[t], p)[i]));
          out.push_back(length ? attention_output(weight, error, spread, value, u) : Bounded{});
        }
      }
    return out;
  }
};

TEST_F(MlaAttentionGpuTest, Portable) {
  for (DType dtype : {DType::kF32, DType::kBF16})
    for (auto [heads, rank, rope] :
         {std::array<int64_t, 3>{1, 16, 0}, {4, 32, 8}, {3, 40, 6}, {2, 130, 10}, {2, 512, 64}}) {
      SCOPED_TRACE(fmt::format("{}, {} heads, rank {}, rope {}", dtype_name(dtype), heads, rank, rope));
      Attention a(heads, rank, rope, dtype, {0, 1, 62, 63, 64, 65, 127, 200});
      const auto out = a.run(0, a.tokens(), false, true);
      ASSERT_TRUE(close(out, a.reference(0), {a.tokens(), heads, rank}));
      for (int64_t t = 0; t < a.tokens(); t += 5)
        ASSERT_TRUE(same_bits(a.run(t, t + 1, false, true), row_of(out, t, heads * rank))) << "row " << t;
    }
}

// Heads that fill tiles of 64, one tile, and a part of one; lengths around pages, pairs of pages, and the points at
// which rows are split.
TEST_F(MlaAttentionGpuTest, Hopper) {
  if (!takes_hopper_kernels()) GTEST_SKIP() << "no Hopper";
  for (auto [heads, longest] : {std::array<int64_t, 2>{128, 700}, {64, 1500}, {16, 1500}, {96, 400}, {192, 300}}) {
    SCOPED_TRACE(fmt::format("{} heads, {}", heads, longest));
    Attention a(heads, 512, 64, DType::kBF16, {0, 1, 63, 64, 126, 127, 128, 129, 191, int32_t(longest)});
    a.run(0, 1, false, true);  // rounds a's cache to bf16
    const auto expected = a.reference(unit_roundoff(DType::kBF16));
    for (bool deterministic : {false, true}) {
      const auto out = a.run(0, a.tokens(), deterministic, false);
      ASSERT_TRUE(close(out, expected, {a.tokens(), heads, 512})) << "deterministic " << deterministic;
      ASSERT_TRUE(same_bits(a.run(0, a.tokens(), deterministic, false), out)) << "again";
      std::vector<float> in_bf16;
      for (float v : out) in_bf16.push_back(bf16_to_f32(f32_to_bf16(v)));
      ASSERT_TRUE(same_bits(a.run(0, a.tokens(), deterministic, false, true), in_bf16))
          << "queries and results in bf16";
      for (int64_t t = 0; deterministic && t < a.tokens(); t += 4)
        ASSERT_TRUE(same_bits(a.run(t, t + 1, true, false), row_of(out, t, heads * 512))) << "row " << t << " alone";
    }
  }
}

TEST_F(MlaAttentionGpuTest, WrongShapesAreRefused) {
  float* none = nullptr;
  MlaAttentionArgs a;
  a.q = View<const float>(none, {1, 2, 24});
  a.cache = KvView(none, DType::kF32, {4, kPage, 20, 0});
  a.kv_lora_rank = 16;
  EXPECT_THROW(cuda::mla_attention(a, {}, {}), Error);
}

}  // namespace
}  // namespace moectl::test
