// f32 rows to bf16, rounded to nearest even. A thread four numbers: reads of 16 bytes, writes of 8.
#include "kernels/cuda/elementwise/bf16_copy.h"

#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    bf16_copy(const float* x, int64_t rows, int64_t k, __nv_bfloat16* out, int64_t padded_k, const int32_t* num_rows) {
  wait_for_earlier();
  const int64_t fours = padded_k / 4, i = int64_t{blockIdx.x} * kThreads + threadIdx.x, row = i / fours;
  if (row >= (num_rows ? *num_rows : rows) || row >= rows) return;
  const int64_t begin = i % fours * 4;
  const float* in = x + row * k + begin;
  float4 v = {};
  if (k % 4 == 0 && begin < k && reinterpret_cast<uintptr_t>(in) % 16 == 0) {
    v = *reinterpret_cast<const float4*>(in);
  } else {
    for (int j = 0; j < 4 && begin + j < k; ++j) (&v.x)[j] = in[j];
  }
  store_bf16(out + row * padded_k + begin, v);
}

}  // namespace kernel

void bf16_copy(const float* x, int64_t rows, int64_t k, void* out, int64_t padded_k, const int32_t* num_rows,
               Stream stream) {
  CHECK(padded_k % 4 == 0 && padded_k >= k, "bf16 rows of {} for {} numbers", padded_k, k);
  if (rows == 0) return;
  launch_early(kernel::bf16_copy, blocks_for(rows * (padded_k / 4), kernel::kThreads), kernel::kThreads, 0,
               handle(stream), x, rows, k, static_cast<__nv_bfloat16*>(out), padded_k, num_rows);
}

}  // namespace moectl::cuda
