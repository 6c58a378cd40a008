// Packing of FP8 block weights: a checkpoint's row-major numbers and scales to the layout that fp8_gemm reads
// (kernels/cuda/gemm/fp8_gemm.h). Moves bytes; runs once, at loading.
#include <climits>

#include "core/base/check.h"
#include "kernels/cuda/gemm/fp8_gemm.h"
#include "kernels/cuda/runtime/check.h"

namespace moectl::cuda {
namespace {

int64_t scale_stride(int64_t n) {
  return ((n + kFp8Block - 1) / kFp8Block + 3) / 4 * 4;
}

}  // namespace

namespace kernel {

constexpr int kThreads = 256, kPieceBytes = 16, kPiecesARow = kFp8Block / kPieceBytes;

// rows [n, k] -> data [k / 128, n, 128], 16 bytes a thread.
__global__ void __launch_bounds__(kThreads) pack_fp8_data(const uint8_t* rows, uint8_t* data, int64_t n, int64_t k) {
  const int64_t piece = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (piece >= n * k / kPieceBytes) return;
  const int64_t part = piece % kPiecesARow, row = piece / kPiecesARow % n, kb = piece / kPiecesARow / n;
  reinterpret_cast<uint4*>(data)[piece] =
      *reinterpret_cast<const uint4*>(rows + row * k + kb * kFp8Block + part * kPieceBytes);
}

// scales [num_blocks, k / 128] -> [k / 128, stride], zeros behind the last block.
__global__ void __launch_bounds__(kThreads)
    pack_fp8_scales(const float* scales, float* out, int64_t num_blocks, int64_t num_kb, int64_t stride) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= num_kb * stride) return;
  const int64_t kb = i / stride, block = i % stride;
  out[i] = block < num_blocks ? scales[block * num_kb + kb] : 0.0f;
}

}  // namespace kernel

int64_t fp8_weight_data_bytes(int64_t batch, int64_t n, int64_t k) {
  return batch * n * k;
}

int64_t fp8_weight_scales_bytes(int64_t batch, int64_t n, int64_t k) {
  return batch * (k / kFp8Block) * scale_stride(n) * int64_t(sizeof(float));
}

Fp8Weight fp8_weight_at(const void* data, const void* scales, int64_t batch, int64_t n, int64_t k) {
  CHECK(batch > 0 && n > 0 && n % 8 == 0 && k > 0 && k % kFp8Block == 0,
        "an FP8 weight of [{}, {}, {}]: n must be a multiple of 8 and k of 128", batch, n, k);
  return {.data = static_cast<const uint8_t*>(data),
          .scales = static_cast<const float*>(scales),
          .batch = batch,
          .n = n,
          .k = k,
          .scale_stride = scale_stride(n)};
}

void fp8_weight_pack(const uint8_t* rows, const float* block_scales, const Fp8Weight& out, int64_t batch_idx,
                     Stream stream) {
  CHECK(batch_idx >= 0 && batch_idx < out.batch, "fp8_weight_pack: entry {} of {}", batch_idx, out.batch);
  const auto s = static_cast<cudaStream_t>(stream.handle);
  const int64_t num_kb = out.k / kFp8Block, pieces = out.n * out.k / kernel::kPieceBytes;
  const auto blocks = [](int64_t threads) {
    const int64_t b = (threads + kernel::kThreads - 1) / kernel::kThreads;
    CHECK(b <= INT_MAX, "fp8_weight_pack: {} threads are too many for one launch", threads);
    return unsigned(b);
  };
  kernel::pack_fp8_data<<<blocks(pieces), kernel::kThreads, 0, s>>>(
      rows, const_cast<uint8_t*>(out.data) + batch_idx * out.n * out.k, out.n, out.k);
  CUDA_CHECK(cudaGetLastError());
  kernel::pack_fp8_scales<<<blocks(num_kb * out.scale_stride), kernel::kThreads, 0, s>>>(
      block_scales, const_cast<float*>(out.scales) + batch_idx * num_kb * out.scale_stride,
      (out.n + kFp8Block - 1) / kFp8Block, num_kb, out.scale_stride);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace moectl::cuda
