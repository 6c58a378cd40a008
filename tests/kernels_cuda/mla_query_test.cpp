// The products per head at DeepSeek's sizes, FP8 block weights of kv_b_proj cut by head and transposed, against the CPU
// backend; small and odd sizes are in tests/kernels/mla_attention_test.cpp.
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

class MlaQueryTest : public GpuTest {};

TEST_F(MlaQueryTest, DeepSeekHeads) {
  constexpr int64_t kHeads = 4, kNope = 128, kRope = 64, kRank = 512, kValue = 128, kTokens = 9;
  MirrorOps gpu(make_ops({.device = "cuda", .precise = true}));
  const auto cpu = make_ops({});
  for (DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    const Matrix kv_b = random_matrix(dtype, kHeads * (kNope + kValue), kRank, 1);
    std::vector<MatrixSpec> uk, uv;
    for (int64_t h = 0; h < kHeads; ++h) {
      uk.push_back(kv_b.rectangle(h * (kNope + kValue), kNope, 0, kRank, true));
      uv.push_back(kv_b.rectangle(h * (kNope + kValue) + kNope, kValue, 0, kRank));
    }
    const auto q = Random(2).floats(kTokens * kHeads * (kNope + kRope)), cos_sin = Random(3).floats(kTokens * kRope),
               latent = Random(4).floats(kTokens * kHeads * kRank);
    auto run = [&](Ops& ops) {
      std::vector<float> query(size_t(kTokens * kHeads * (kRank + kRope)), NAN),
          values(size_t(kTokens * kHeads * kValue), NAN);
      ops.mla_query({View<const float>(q.data(), {kTokens, kHeads, kNope + kRope}), ops.pack(uk),
                     View<const float>(cos_sin.data(), {kTokens, kRope}),
                     View<float>(query.data(), {kTokens, kHeads, kRank + kRope}), true},
                    {});
      ops.mla_output({View<const float>(latent.data(), {kTokens, kHeads, kRank}), ops.pack(uv),
                      View<float>(values.data(), {kTokens, kHeads, kValue})},
                     {});
      query.insert(query.end(), values.begin(), values.end());
      return query;
    };
    // Both backends sum in f32, so each may be off by the tolerance of a sum of its length; |w| <= 1 (bf16) or 4 (FP8).
    const double largest = dtype == DType::kBF16 ? 1.0 : 4.0;
    std::vector<Bounded> expected;
    for (float v : run(*cpu)) expected.push_back({v, 2 * dot_tolerance(kRank, largest * kRank)});
    EXPECT_TRUE(close(run(gpu), expected)) << dtype_name(dtype);
  }
}

}  // namespace
}  // namespace moectl::test
