// Packing of FP8 block weights: every number and scale at the place that kernels/cuda/gemm/fp8_gemm.h names, zeros
// behind.
#include "kernels/cuda/gemm/fp8_gemm.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

using Fp8WeightTest = GpuTest;

TEST_F(Fp8WeightTest, Layout) {
  const int64_t batch = 3, n = 264, k = 384, blocks_n = 3, blocks_k = 3;
  DeviceArray<uint8_t> data(cuda::fp8_weight_data_bytes(batch, n, k));
  DeviceArray<float> scales(cuda::fp8_weight_scales_bytes(batch, n, k) / int64_t(sizeof(float)));
  const cuda::Fp8Weight w = cuda::fp8_weight_at(data.data(), scales.data(), batch, n, k);
  Random random(5);
  std::vector<std::vector<uint8_t>> numbers;
  std::vector<std::vector<float>> factors;
  for (int64_t b = 0; b < batch; ++b) {
    numbers.emplace_back(size_t(n * k));
    for (uint8_t& x : numbers.back()) x = uint8_t(random.below(256));
    factors.push_back(random.floats(blocks_n * blocks_k));
    DeviceArray<uint8_t> rows(numbers.back());
    DeviceArray<float> block_scales(factors.back());
    cuda::fp8_weight_pack(rows.data(), block_scales.data(), w, b, {});
    CUDA_CHECK(cudaDeviceSynchronize());
  }
  const auto packed = data.host();
  const auto packed_scales = scales.host();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < k; ++j)
        ASSERT_EQ(packed[size_t(((b * (k / 128) + j / 128) * n + i) * 128 + j % 128)],
                  numbers[size_t(b)][size_t(i * k + j)])
            << b << ", " << i << ", " << j;
    for (int64_t kb = 0; kb < blocks_k; ++kb)
      for (int64_t block = 0; block < w.scale_stride; ++block)
        ASSERT_EQ(packed_scales[size_t((b * blocks_k + kb) * w.scale_stride + block)],
                  block < blocks_n ? factors[size_t(b)][size_t(block * blocks_k + kb)] : 0.0f)
            << b << ", " << kb << ", " << block;
  }
  EXPECT_THROW(cuda::fp8_weight_pack(data.data(), scales.data(), w, batch, {}), Error);
}

}  // namespace
}  // namespace moectl::test
