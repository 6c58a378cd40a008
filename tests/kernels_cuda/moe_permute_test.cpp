// The second copy that rows of experts get as they are gathered, against the kernels that make such copies alone. (The
// gathering itself: tests/kernels/moe_permute_test.cpp.)
#include "kernels/cuda/elementwise/bf16_copy.h"
#include "kernels/cuda/elementwise/fp8_quantize.h"
#include "kernels/cuda/runtime/kernels.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

using MoePermuteGpuTest = GpuTest;

TEST_F(MoePermuteGpuTest, CopiesOfRows) {
  constexpr int64_t kExperts = 6, kTopK = 3;
  for (int64_t tokens : {1, 7, 129})
    for (int64_t size : {128, 384, 7168}) {
      SCOPED_TRACE(fmt::format("{} tokens of {}", tokens, size));
      Random random(uint64_t(tokens + size));
      std::vector<int32_t> idx;
      for (int64_t i = 0; i < tokens * kTopK; ++i)
        idx.push_back(int32_t(random.uniform(-1.0f, 7.99f)));  // some: nobody's
      const int64_t rows = tokens * kTopK;
      DeviceArray<float> x(random.floats(tokens * size)), plain(rows * size), out(rows * size);
      DeviceArray<int32_t> experts(idx), row_of(rows), offsets(kExperts + 1), counts(kExperts);
      DeviceArray<uint8_t> fp8(cuda::fp8_rows_bytes(rows, size)), expected_fp8(cuda::fp8_rows_bytes(rows, size));
      DeviceArray<uint16_t> bf16(rows * size), expected_bf16(rows * size);
      auto permute = [&](const DeviceArray<float>& to, const cuda::RowCopies& copies, bool only_copies = false) {
        const MoeSource source = {View<const float>(x.data(), {tokens, size}),
                                  View<const int32_t>(experts.data(), {tokens, kTopK}),
                                  {},
                                  View<int32_t>(row_of.data(), {rows})};
        MoePermuteArgs a;
        a.sources = std::span(&source, 1);
        a.expert_offsets = View<int32_t>(offsets.data(), {kExperts + 1});
        a.x = View<float>(to.data(), {rows, size});
        cuda::moe_permute(a, counts.data(), copies, only_copies, {});
        return to.host();
      };
      const auto expected = permute(plain, {});
      const int32_t* num_rows = offsets.data() + kExperts;
      cuda::fp8_quantize(
          {.x = plain.data(), .out = cuda::fp8_rows_at(expected_fp8.data(), rows, size), .num_rows = num_rows}, {});
      cuda::bf16_copy(plain.data(), rows, size, expected_bf16.data(), size, num_rows, {});
      ASSERT_TRUE(same_bits(permute(out, {.fp8 = cuda::fp8_rows_at(fp8.data(), rows, size)}), expected));
      ASSERT_EQ(fp8.host(), expected_fp8.host());  // both were poisoned alike
      ASSERT_TRUE(same_bits(permute(out, {.bf16 = bf16.data()}), expected));
      ASSERT_EQ(bf16.host(), expected_bf16.host());
      const DeviceArray<float> untouched(rows * size);
      const DeviceArray<uint8_t> fp8_alone(fp8.size());
      permute(untouched, {.fp8 = cuda::fp8_rows_at(fp8_alone.data(), rows, size)}, true);
      ASSERT_EQ(fp8_alone.host(), expected_fp8.host());
      ASSERT_TRUE(same_bits(untouched.host(), DeviceArray<float>(rows * size).host()));
    }
}

}  // namespace
}  // namespace moectl::test
