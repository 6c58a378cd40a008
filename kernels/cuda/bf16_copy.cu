// f32 rows to bf16, rounded to nearest even. A thread four numbers: reads of 16 bytes, writes of 8.
#include "kernels/cuda/bf16_copy.h"

#include "kernels/cuda/device.cuh"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    bf16_copy(const float* x, int64_t rows, int64_t k, __nv_bfloat16* out, int64_t padded_k, const int32_t* num_rows) {
  const int64_t fours = padded_k / 4, i = int64_t{blockIdx.x} * kThreads + threadIdx.x, row = i / fours;
  if (row >= (num_rows ? *num_rows : rows) || row >= rows) return;
  const int64_t begin = i % fours * 4;
  const float* in = x + row * k + begin;
  float v[4] = {};
  if (k % 4 == 0 && begin < k && reinterpret_cast<uintptr_t>(in) % 16 == 0) {
    *reinterpret_cast<float4*>(v) = *reinterpret_cast<const float4*>(in);
  } else {
    for (int j = 0; j < 4; ++j) v[j] = begin + j < k ? in[j] : 0.0f;
  }
  const __nv_bfloat162 low = __floats2bfloat162_rn(v[0], v[1]), high = __floats2bfloat162_rn(v[2], v[3]);
  uint2 bits;
  bits.x = *reinterpret_cast<const uint32_t*>(&low);
  bits.y = *reinterpret_cast<const uint32_t*>(&high);
  *reinterpret_cast<uint2*>(out + row * padded_k + begin) = bits;
}

}  // namespace kernel

void bf16_copy(const float* x, int64_t rows, int64_t k, void* out, int64_t padded_k, const int32_t* num_rows,
               Stream stream) {
  CHECK(padded_k % 4 == 0 && padded_k >= k, "bf16 rows of {} for {} numbers", padded_k, k);
  if (rows == 0) return;
  kernel::bf16_copy<<<blocks_for(rows * (padded_k / 4), kernel::kThreads), kernel::kThreads, 0, handle(stream)>>>(
      x, rows, k, static_cast<__nv_bfloat16*>(out), padded_k, num_rows);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace moectl::cuda
