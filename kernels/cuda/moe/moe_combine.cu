// Sums the results of a token's experts, weighted, in the order of the slots, then the shared expert: the CPU's order
// and roundings, so the same bits. A thread an output, four where rows are whole float4s.
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 128;

template <class T>
__device__ inline void add_scaled(T& sum, float weight, T x);
template <>
__device__ inline void add_scaled(float& sum, float weight, float x) {
  sum = __fadd_rn(sum, __fmul_rn(weight, x));
}
template <>
__device__ inline void add_scaled(float4& sum, float weight, float4 x) {
  add_scaled(sum.x, weight, x.x);
  add_scaled(sum.y, weight, x.y);
  add_scaled(sum.z, weight, x.z);
  add_scaled(sum.w, weight, x.w);
}

// A row in units of one or four numbers, as f32.
__device__ inline float load(const float* row, int i) {
  return row[i];
}
__device__ inline float load(const __nv_bfloat16* row, int i) {
  return __bfloat162float(row[i]);
}
__device__ inline float4 load(const float4* row, int i) {
  return row[i];
}
struct alignas(8) Bf16x4 {
  __nv_bfloat162 low, high;
};
__device__ inline float4 load(const Bf16x4* row, int i) {
  const Bf16x4 x = row[i];
  const float2 low = __bfloat1622float2(x.low), high = __bfloat1622float2(x.high);
  return {low.x, low.y, high.x, high.y};
}

// Grid: (parts of a row, tokens). `size`: of a row, in Ts. R: how expert_rows hold as many numbers as a T.
template <class T, class R>
__global__ void __launch_bounds__(kThreads)
    moe_combine(const void* const* expert_rows, const float* expert_weight, const float* shared,
                const float* shared_gate, int top_k, int size, T* out) {
  wait_for_earlier();
  const int64_t token = blockIdx.y;
  const int i = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (i >= size) return;
  T sum = {};
  for (int j = 0; j < top_k; ++j) {
    const R* row = static_cast<const R*>(expert_rows[token * top_k + j]);
    if (row) add_scaled(sum, expert_weight ? expert_weight[token * top_k + j] : 1.0f, load(row, i));
  }
  if (shared) {
    const float gate = shared_gate ? 1.0f / (1.0f + float(exp(-double(shared_gate[token])))) : 1.0f;
    add_scaled(sum, gate, reinterpret_cast<const T*>(shared)[token * size + i]);
  }
  out[token * size + i] = sum;
}

}  // namespace kernel

void moe_combine(const MoeCombineArgs& a, Stream stream) {
  const int64_t num_tokens = a.out.dim(0), size = a.out.row_size(), top_k = a.expert_rows.dim(1);
  CHECK(a.expert_rows.dim(0) == num_tokens && num_tokens <= 65535, "moe_combine: rows of {} tokens for {}",
        a.expert_rows.dim(0), num_tokens);
  if (num_tokens == 0) return;
  CHECK(a.rows_dtype == DType::kF32 || a.rows_dtype == DType::kBF16, "moe_combine: rows of {}",
        dtype_name(a.rows_dtype));
  auto launch = [&]<class T, class R>(T* out, const R*, int64_t row) {
    const dim3 grid(blocks_for(row, kernel::kThreads), unsigned(num_tokens));
    launch_early(kernel::moe_combine<T, R>, grid, kernel::kThreads, 0, handle(stream), a.expert_rows.data,
                 a.expert_weight.data, a.shared.data, a.shared_gate.data, int(top_k), int(row), out);
  };
  // Rows of experts begin at multiples of a row from an allocation, so they are as aligned as its size.
  const bool four =
      size % 4 == 0 && (reinterpret_cast<uintptr_t>(a.out.data) | reinterpret_cast<uintptr_t>(a.shared.data)) % 16 == 0;
  const bool bf16 = a.rows_dtype == DType::kBF16;
  auto* out4 = reinterpret_cast<float4*>(a.out.data);
  if (four && bf16)
    launch(out4, static_cast<const kernel::Bf16x4*>(nullptr), size / 4);
  else if (four)
    launch(out4, static_cast<const float4*>(nullptr), size / 4);
  else if (bf16)
    launch(a.out.data, static_cast<const __nv_bfloat16*>(nullptr), size);
  else
    launch(a.out.data, static_cast<const float*>(nullptr), size);
}

}  // namespace moectl::cuda
