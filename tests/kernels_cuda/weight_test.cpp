// The layout of packed FP8 block weights: every element and scale where kernels/cuda/gemm/fp8_gemm.h says, zeros after
// the last scale. (What products make of packed weights of every dtype: tests/kernels.)
#include "kernels/cuda/gemm/weight.h"

#include "kernels/cuda/gemm/fp8_gemm.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

using WeightCudaTest = GpuTest;

template <class T>
std::vector<T> download(const void* device, int64_t size) {
  std::vector<T> host(static_cast<size_t>(size));
  CUDA_CHECK(cudaMemcpy(host.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
  return host;
}

TEST_F(WeightCudaTest, LayoutOfFp8Blocks) {
  constexpr int64_t kBatch = 3, kN = 264, kK = 384, kBlocksN = 3, kBlocksK = 3, kBlock = kFp8Block;
  const auto ops = make_ops({.device = "cuda"});
  std::vector<Matrix> matrices;
  std::vector<MatrixSpec> specs;
  for (uint64_t b = 0; b < kBatch; ++b) matrices.push_back(random_matrix(DType::kF8E4M3, kN, kK, b));
  for (const Matrix& m : matrices) specs.push_back(m.whole());
  const Weight packed = pack_and_wait(*ops, specs);
  const cuda::Matrix& matrix = cuda::matrix_of(packed);
  ASSERT_TRUE(matrix.is_fp8_block());
  const cuda::Fp8Weight w = cuda::fp8_weight_at(matrix.data, matrix.scales, kBatch, kN, kK);
  const auto data = download<uint8_t>(w.data, kBatch * kN * kK);
  const auto scales = download<float>(w.scales, kBatch * kBlocksK * w.scale_stride);
  for (int64_t b = 0; b < kBatch; ++b) {
    Matrix& m = matrices[size_t(b)];
    for (int64_t i = 0; i < kN; ++i)
      for (int64_t j = 0; j < kK; ++j)
        ASSERT_EQ(data[size_t(((b * kBlocksK + j / kBlock) * kN + i) * kBlock + j % kBlock)], uint8_t(*m.element(i, j)))
            << b << ", " << i << ", " << j;
    for (int64_t kb = 0; kb < kBlocksK; ++kb)
      for (int64_t block = 0; block < w.scale_stride; ++block) {
        float expected = 0.0f;
        if (block < kBlocksN) std::memcpy(&expected, m.scale(block, kb), sizeof expected);
        ASSERT_EQ(scales[size_t((b * kBlocksK + kb) * w.scale_stride + block)], expected)
            << b << ", " << kb << ", " << block;
      }
  }
}

}  // namespace
}  // namespace moectl::test
