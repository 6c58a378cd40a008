// Compressed KV in a bf16 cache: within one rounding of the f64 value, and nothing else written. (f32: tests/kernels.)
#include "kernels/cuda/runtime/kernels.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

class MlaCacheWriteTest : public GpuTest {};

TEST_F(MlaCacheWriteTest, Bf16) {
  constexpr int64_t kPage = 64, kPages = 5;
  for (int64_t rank : {16, 130, 512})
    for (int64_t rope : {8, 64})
      for (bool interleaved : {false, true}) {
        SCOPED_TRACE(fmt::format("rank {} rope {} interleaved {}", rank, rope, interleaved));
        const std::vector<int64_t> slots = {64, 3, -1, 319, 0, 200};
        const int64_t tokens = int64_t(slots.size()), width = rank + rope;
        const auto kv = Random(1).floats(tokens * width, 5.0f), weight = Random(2).floats(rank),
                   cos_sin = Random(3).floats(tokens * rope);
        DeviceArray<float> dkv(kv), dweight(weight), dcos(cos_sin);
        DeviceArray<int64_t> dslots(slots);
        DeviceArray<uint16_t> cache(kPages * kPage * width);
        cuda::mla_cache_write(
            {View<const float>(dkv.data(), {tokens, width}), View<const float>(dweight.data(), {rank}), 1e-6f,
             View<const float>(dcos.data(), {tokens, rope}), View<const int64_t>(dslots.data(), {tokens}),
             KvView(cache.data(), DType::kBF16, {kPages, kPage, width, 0}), interleaved},
            {});
        const std::vector<uint16_t> got = cache.host();
        std::vector<bool> written(size_t(kPages * kPage));
        for (int64_t t = 0; t < tokens; ++t) {
          const int64_t slot = slots[size_t(t)];
          if (slot < 0) continue;
          written[size_t(slot)] = true;
          const float* in = kv.data() + t * width;
          std::vector<double> expected;
          double squares = 0;
          for (int64_t i = 0; i < rank; ++i) squares += double(in[i]) * double(in[i]);
          for (int64_t i = 0; i < rank; ++i)
            expected.push_back(double(in[i]) / std::sqrt(squares / double(rank) + 1e-6) * double(weight[size_t(i)]));
          expected.resize(size_t(width));
          for (int64_t i = 0; i < rope / 2; ++i) {
            const int64_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + rope / 2;
            const double cos = double(cos_sin[size_t(t * rope + i)]),
                         sin = double(cos_sin[size_t(t * rope + rope / 2 + i)]);
            expected[size_t(rank + a)] = double(in[rank + a]) * cos - double(in[rank + b]) * sin;
            expected[size_t(rank + b)] = double(in[rank + b]) * cos + double(in[rank + a]) * sin;
          }
          for (int64_t i = 0; i < width; ++i) {
            // One rounding to bf16, and what f32 makes of two products of up to 5 or of the norm.
            const double tolerance = std::abs(expected[size_t(i)]) * (unit_roundoff(DType::kBF16) + 1e-5) + 3e-6;
            ASSERT_NEAR(double(bf16_to_f32(got[size_t(slot * width + i)])), expected[size_t(i)], tolerance)
                << t << ", " << i;
          }
        }
        for (int64_t slot = 0; slot < kPages * kPage; ++slot)
          for (int64_t i = 0; i < width && !written[size_t(slot)]; ++i)
            ASSERT_EQ(got[size_t(slot * width + i)], 0xffff);
      }
}

}  // namespace
}  // namespace moectl::test
