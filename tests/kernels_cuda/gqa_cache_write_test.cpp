// Keys and values in a bf16 cache: exactly the rounded values, and nothing else written. (f32: tests/kernels.)
#include "kernels/cuda/runtime/kernels.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

class GqaCacheWriteTest : public GpuTest {};

TEST_F(GqaCacheWriteTest, Bf16) {
  constexpr int64_t kPage = 64, kPages = 5, kPoison = 0xffff;
  for (int64_t heads : {1, 3, 8})
    for (int64_t dim : {8, 64, 130}) {
      const std::vector<int64_t> slots = {64, 3, -1, 319, 0, 200};
      const int64_t tokens = int64_t(slots.size()), page_values = heads * 2 * kPage * dim;
      const auto k = Random(1).floats(tokens * heads * dim, 9.0f), v = Random(2).floats(tokens * heads * dim, 9.0f);
      std::vector<uint16_t> expected(size_t(kPages * page_values), uint16_t(kPoison));
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t h = 0; h < heads && slots[size_t(t)] >= 0; ++h)
          for (int64_t i = 0; i < dim; ++i) {
            const int64_t page = slots[size_t(t)] / kPage, offset = slots[size_t(t)] % kPage;
            const int64_t at = page * page_values + (h * 2 * kPage + offset) * dim + i;
            expected[size_t(at)] = f32_to_bf16(k[size_t((t * heads + h) * dim + i)]);
            expected[size_t(at + kPage * dim)] = f32_to_bf16(v[size_t((t * heads + h) * dim + i)]);
          }
      DeviceArray<float> dk(k), dv(v);
      DeviceArray<int64_t> dslots(slots);
      DeviceArray<uint16_t> cache(int64_t(expected.size()));
      cuda::gqa_cache_write(
          {View<const float>(dk.data(), {tokens, heads, dim}), View<const float>(dv.data(), {tokens, heads, dim}),
           View<const int64_t>(dslots.data(), {tokens}), int(kPage),
           KvView(cache.data(), DType::kBF16, {kPages, heads, 2 * kPage, dim})},
          {});
      ASSERT_EQ(cache.host(), expected) << heads << " heads of " << dim;
    }
}

}  // namespace
}  // namespace moectl::test
