// The products per head of MLA on Hopper against sums in f64, rows alone against rows of a batch, and the FP8 copy
// against fp8_quantize. Products of operands are exact in f32; the tensor core adds the 16 of one instruction
// and the running sum after aligning them to the largest and cuts off below about 2^-22 of it (bf16_gemm_test.cpp).
#include "kernels/cuda/elementwise/bf16_copy.h"
#include "kernels/cuda/mla/mla_project_sm90.h"

#include "kernels/cuda/elementwise/fp8_quantize.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

constexpr int64_t kNope = 128, kRope = 64, kRank = 512, kWidth = kRank + kRope, kQuery = kNope + kRope;

std::vector<uint16_t> to_bf16(const std::vector<float>& v) {
  std::vector<uint16_t> out;
  for (float x : v) out.push_back(f32_to_bf16(x));
  return out;
}
std::vector<float> to_f32(const std::vector<uint16_t>& v) {
  std::vector<float> out;
  for (uint16_t x : v) out.push_back(bf16_to_f32(x));
  return out;
}
template <class T>
std::vector<T> rows_of(const std::vector<T>& v, int64_t begin, int64_t end, int64_t size) {
  return {v.begin() + begin * size, v.begin() + end * size};
}

// Weights of kv_b_proj, cut by head as a model does it.
struct Heads {
  Heads(DType dtype, int64_t heads, int64_t v_dim)
      : heads(heads), v_dim(v_dim), kv_b(random_matrix(dtype, heads * (kNope + v_dim), kRank, 1)) {
    for (int64_t h = 0; h < heads; ++h) {
      uk.push_back(kv_b.rectangle(h * (kNope + v_dim), kNope, 0, kRank, true));
      uv.push_back(kv_b.rectangle(h * (kNope + v_dim) + kNope, v_dim, 0, kRank));
    }
  }
  int64_t heads, v_dim;
  Matrix kv_b;
  std::vector<MatrixSpec> uk, uv;
};

Bounded product(const MatrixSpec& w, int64_t n, int64_t k_size, const float* x) {
  double sum = 0, error = 0;
  for (int64_t block = 0; block < k_size; block += 128) {
    double part = 0, largest = 0;
    for (int64_t k = block; k < block + 128; ++k) {
      const double term = weight_value(w, n, k) * double(x[k]);
      part += term;
      largest = std::max({largest, std::abs(term), std::abs(part), std::abs(sum + part)});
    }
    sum += part;
    error += 8.0 * 17 * 0x1p-22 * largest + 4 * unit_roundoff(DType::kF32) * std::abs(sum);
  }
  return rounded(sum, error);
}
Bounded to_bf16(Bounded b) {
  return {b.value, b.error + unit_roundoff(DType::kBF16) * (std::abs(b.value) + b.error)};
}

class MlaProjectTest : public HopperTest {
 protected:
  void SetUp() override {
    HopperTest::SetUp();
    if (!IsSkipped()) ops_ = make_ops({.device = "cuda"});
  }

  std::vector<uint16_t> query(const Weight& w_uk, const std::vector<float>& q, const std::vector<float>& cos_sin,
                              bool interleaved) {
    const int64_t heads = w_uk.batch, tokens = int64_t(q.size()) / (heads * kQuery);
    DeviceArray<float> dq(q), dc(cos_sin);
    DeviceArray<uint16_t> out(tokens * heads * kWidth);
    cuda::mla_project_in({.w = cuda::matrix_of(w_uk),
                          .x = dq.data(),
                          .x_row = heads * kQuery,
                          .x_head = kQuery,
                          .out = out.data(),
                          .out_row = heads * kWidth,
                          .out_head = kWidth,
                          .num_tokens = tokens,
                          .num_heads = heads},
                         {dc.data(), kRope, interleaved}, {});
    return out.host();
  }

  struct Values {
    std::vector<float> out;
    std::vector<uint8_t> copy, expected_copy;  // memory of Fp8Rows
    std::vector<uint16_t> bf16, expected_bf16;
  };
  Values values(const Weight& w_uv, const std::vector<uint16_t>& latent, bool with_copies) {
    const int64_t heads = w_uv.batch, tokens = int64_t(latent.size()) / (heads * kRank), size = heads * w_uv.n;
    DeviceArray<uint16_t> x(latent);
    DeviceArray<float> out(tokens * size);
    DeviceArray<uint8_t> copy(cuda::fp8_rows_bytes(tokens, size)), expected(cuda::fp8_rows_bytes(tokens, size));
    DeviceArray<uint16_t> bf16(tokens * size), expected_bf16(tokens * size);
    cuda::Fp8Rows fp8;
    if (with_copies) fp8 = cuda::fp8_rows_at(copy.data(), tokens, size);
    cuda::mla_project_out({.w = cuda::matrix_of(w_uv),
                           .x = x.data(),
                           .x_row = heads * kRank,
                           .x_head = kRank,
                           .out = out.data(),
                           .out_row = size,
                           .out_head = w_uv.n,
                           .num_tokens = tokens,
                           .num_heads = heads},
                          with_copies ? bf16.data() : nullptr, fp8, {});
    cuda::fp8_quantize({.x = out.data(), .out = cuda::fp8_rows_at(expected.data(), tokens, size)}, {});
    cuda::bf16_copy(out.data(), tokens, size, expected_bf16.data(), size, nullptr, {});
    return {out.host(), copy.host(), expected.host(), bf16.host(), expected_bf16.host()};
  }
  Ops& ops() { return *ops_; }

 private:
  std::unique_ptr<Ops> ops_;
};

const std::vector<std::pair<int64_t, int64_t>> kTokensAndHeads = {{1, 1},  {1, 3},  {7, 2},  {8, 2},  {9, 2},
                                                                  {32, 1}, {33, 2}, {64, 3}, {65, 1}, {129, 2}};

TEST_F(MlaProjectTest, Query) {
  for (DType dtype : {DType::kF8E4M3, DType::kBF16})
    for (auto [tokens, heads] : kTokensAndHeads)
      for (bool interleaved : {false, true}) {
        SCOPED_TRACE(
            fmt::format("{}: {} tokens, {} heads, interleaved {}", dtype_name(dtype), tokens, heads, interleaved));
        const Heads w(dtype, heads, 128);
        const Weight w_uk = pack_and_wait(ops(), w.uk);
        ASSERT_TRUE(cuda::mla_project_in_fits(cuda::matrix_of(w_uk)));
        const auto q = Random(2).floats(tokens * heads * kQuery), cos_sin = Random(3).floats(tokens * kRope);
        const auto out = query(w_uk, q, cos_sin, interleaved);
        std::vector<Bounded> expected;
        for (int64_t t = 0; t < tokens; ++t)
          for (int64_t h = 0; h < heads; ++h) {
            const auto x = rows_of(q, t * heads + h, t * heads + h + 1, kQuery);
            const auto rounded_x = to_f32(to_bf16(x));
            for (int64_t i = 0; i < kRank; ++i)
              expected.push_back(to_bf16(product(w.uk[size_t(h)], i, kNope, rounded_x.data())));
            for (int64_t i = 0; i < kRope; ++i) {
              const int64_t half = kRope / 2, pair = interleaved ? i / 2 : i % half;
              const int64_t a = interleaved ? 2 * pair : pair, b = interleaved ? 2 * pair + 1 : pair + half;
              const double cos = cos_sin[size_t(t * kRope + pair)], sin = cos_sin[size_t(t * kRope + half + pair)];
              const double xa = x[size_t(kNope + a)], xb = x[size_t(kNope + b)];
              const double value = i == a ? xa * cos - xb * sin : xb * cos + xa * sin;
              expected.push_back(
                  to_bf16(Bounded{value, 3 * unit_roundoff(DType::kF32) * (std::abs(xa) + std::abs(xb))}));
            }
          }
        ASSERT_TRUE(close(to_f32(out), expected, {tokens, heads, kWidth}));
        for (int64_t part : {int64_t{1}, tokens / 3, tokens - 1}) {
          if (part < 1) continue;
          const auto some = query(w_uk, rows_of(q, tokens - part, tokens, heads * kQuery),
                                  rows_of(cos_sin, tokens - part, tokens, kRope), interleaved);
          ASSERT_EQ(some, rows_of(out, tokens - part, tokens, heads * kWidth)) << "the last " << part << " rows alone";
        }
      }
}

TEST_F(MlaProjectTest, Values) {
  for (DType dtype : {DType::kF8E4M3, DType::kBF16})
    for (auto [tokens, heads] : kTokensAndHeads)
      for (int64_t v_dim : {128, 384}) {
        SCOPED_TRACE(fmt::format("{}: {} tokens, {} heads of {}", dtype_name(dtype), tokens, heads, v_dim));
        const Heads w(dtype, heads, v_dim);
        const Weight w_uv = pack_and_wait(ops(), w.uv);
        ASSERT_TRUE(cuda::mla_project_out_fits(cuda::matrix_of(w_uv)));
        const auto latent = to_bf16(Random(4).floats(tokens * heads * kRank));
        const auto x = to_f32(latent);
        const Values all = values(w_uv, latent, true);
        std::vector<Bounded> expected;
        for (int64_t t = 0; t < tokens; ++t)
          for (int64_t h = 0; h < heads; ++h)
            for (int64_t i = 0; i < v_dim; ++i)
              expected.push_back(product(w.uv[size_t(h)], i, kRank, x.data() + (t * heads + h) * kRank));
        ASSERT_TRUE(close(all.out, expected, {tokens, heads, v_dim}));
        // Both were poisoned alike, so the bytes between rows are equal, too.
        ASSERT_EQ(all.copy, all.expected_copy);
        ASSERT_EQ(all.bf16, all.expected_bf16);
        for (int64_t part : {int64_t{1}, tokens / 3, tokens - 1}) {
          if (part < 1) continue;
          const Values some = values(w_uv, rows_of(latent, tokens - part, tokens, heads * kRank), false);
          ASSERT_TRUE(same_bits(some.out, rows_of(all.out, tokens - part, tokens, heads * v_dim)))
              << "the last " << part << " rows alone";
        }
      }
}

// A step of full size against the same rows a few at a time.
TEST_F(MlaProjectTest, FullSize) {
  constexpr int64_t kHeads = 128, kTokens = 200;
  const auto q = Random(6).floats(kTokens * kHeads * kQuery), cos_sin = Random(7).floats(kTokens * kRope);
  const auto latent = to_bf16(Random(8).floats(kTokens * kHeads * kRank));
  for (DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    const Heads w(dtype, kHeads, 128);
    const Weight w_uk = pack_and_wait(ops(), w.uk), w_uv = pack_and_wait(ops(), w.uv);
    const auto queries = query(w_uk, q, cos_sin, true);
    const Values all = values(w_uv, latent, true);
    EXPECT_EQ(all.copy, all.expected_copy);
    EXPECT_EQ(all.bf16, all.expected_bf16);
    for (int64_t t = 0, n = 0; t < kTokens; t += n) {
      n = std::min<int64_t>(t < 16 ? 7 : 50, kTokens - t);
      EXPECT_EQ(query(w_uk, rows_of(q, t, t + n, kHeads * kQuery), rows_of(cos_sin, t, t + n, kRope), true),
                rows_of(queries, t, t + n, kHeads * kWidth))
          << dtype_name(dtype) << ", rows from " << t;
      EXPECT_TRUE(same_bits(values(w_uv, rows_of(latent, t, t + n, kHeads * kRank), false).out,
                            rows_of(all.out, t, t + n, kHeads * 128)))
          << dtype_name(dtype) << ", rows from " << t;
    }
  }
}

// Every e4m3 number, subnormal ones too, becomes the bf16 of its value.
TEST_F(MlaProjectTest, WidensEveryNumber) {
  Matrix m = random_matrix(DType::kF8E4M3, kRank, kNope, 5);
  for (int64_t i = 0; i < kRank * kNope; ++i) {
    const uint8_t bits = uint8_t(i % 256);
    *m.element(0, i) = std::byte(bits % 128 == 127 ? 0 : bits);  // no NaN
  }
  const MatrixSpec spec = m.whole();
  const Weight w = pack_and_wait(ops(), {&spec, 1});
  // A query with a single 1 picks a column.
  std::vector<float> q(size_t(kNope * kQuery), 0.0f), expected;
  for (int64_t t = 0; t < kNope; ++t) q[size_t(t * kQuery + t)] = 1.0f;
  const auto out = to_f32(query(w, q, std::vector<float>(size_t(kNope * kRope), 0.0f), true));
  std::vector<Bounded> values;
  std::vector<float> got;
  for (int64_t t = 0; t < kNope; ++t)
    for (int64_t i = 0; i < kRank; ++i) {
      got.push_back(out[size_t(t * kWidth + i)]);
      values.push_back(to_bf16(rounded(weight_value(spec, i, t), 0)));
    }
  ASSERT_TRUE(close(got, values, {kNope, kRank}));
}

}  // namespace
}  // namespace moectl::test
