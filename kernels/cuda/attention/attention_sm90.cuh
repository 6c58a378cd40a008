// What the Hopper attention kernels share: the softmax over rows of tensor-core accumulators. Of a tile of scores (or
// outputs) thread t of a warp holds rows g = t / 4 and g + 8, and columns 2 (t % 4), + 1 of each group of eight
// (kernels/cuda/gemm/wgmma.cuh), so a row's reductions run over four lanes.
#pragma once

#include <cstdint>

#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda::kernel {

// The reference of a row's exponentials (its running maximum, loosely) is raised only where a score exceeds it by more
// than this (log2): exponentials up to 2^8 cost bf16 and f32 no precision, and earlier sums are rarely rescaled.
constexpr float kRaise = 8.0f;
constexpr float kLog2e = 1.4426950408889634f;

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

// A value for each of a thread's rows g (a) and g + 8 (b).
struct RowPair {
  float a, b;
};

__device__ __forceinline__ RowPair raise(RowPair m, RowPair max) {
  return {max.a > m.a + kRaise ? max.a : m.a, max.b > m.b + kRaise ? max.b : m.b};
}

// Rescales sums from reference `from` to reference `to`.
template <int N>
__device__ __forceinline__ void rescale(float (&o)[N], RowPair& l, RowPair from, RowPair to) {
  if (!__any_sync(0xffffffffu, from.a != to.a || from.b != to.b)) return;
  const float fa = exp2_approx(from.a - to.a), fb = exp2_approx(from.b - to.b);
  l.a *= fa;
  l.b *= fb;
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    o[i] *= fa;
    o[i + 1] *= fa;
    o[i + 2] *= fb;
    o[i + 3] *= fb;
  }
}

// The maximum over the 2 N columns.
template <int N>
__device__ __forceinline__ RowPair row_max(const float (&s)[N]) {
  float a = s[0], b = s[2];
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    a = fmaxf(a, fmaxf(s[i], s[i + 1]));
    b = fmaxf(b, fmaxf(s[i + 2], s[i + 3]));
  }
  return {quad_max(a), quad_max(b)};
}

// Scores become weights, which are added to this thread's part of the row sums.
template <int N>
__device__ __forceinline__ void exponentials(float (&s)[N], float scale_a, float scale_b, RowPair m, RowPair& l) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    s[i] = exp2_approx(fmaf(s[i], scale_a, -m.a));
    s[i + 1] = exp2_approx(fmaf(s[i + 1], scale_a, -m.a));
    s[i + 2] = exp2_approx(fmaf(s[i + 2], scale_b, -m.b));
    s[i + 3] = exp2_approx(fmaf(s[i + 3], scale_b, -m.b));
    l.a += s[i] + s[i + 1];
    l.b += s[i + 2] + s[i + 3];
  }
}

// The weights as the A operands of slices of 16 keys.
template <int N>
__device__ __forceinline__ void pack_weights(const float (&s)[N], uint32_t (&w)[N / 8][4]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    w[i / 8][i % 8 / 2] = pack_bf16(s[i], s[i + 1]);
    w[i / 8][i % 8 / 2 + 1] = pack_bf16(s[i + 2], s[i + 3]);
  }
}

}  // namespace moectl::cuda::kernel
