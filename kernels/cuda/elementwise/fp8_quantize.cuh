// The FP8 copy of 128 values by a warp (fp8_quantize.h), for kernels that make such copies beside what else they do.
#pragma once

#include <cuda_fp8.h>

#include "kernels/cuda/gemm/fp8_gemm.h"

namespace moectl::cuda::kernel {

constexpr float kE4m3Max = 448.0f, kMinAmax = 1e-30f;  // below, 1 / scale could overflow

// A warp's 128 values, four a lane.
struct Fp8Piece {
  uint32_t numbers;
  float scale;
};
__device__ __forceinline__ Fp8Piece quantize(float4 v) {
  float amax = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
  for (int offset = 16; offset > 0; offset /= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, offset));
  // amax / 448 and its reciprocal by one correction each: what a division does, without its branches for numbers that
  // do not come here.
  constexpr float kInverse = 1.0f / kE4m3Max;
  const float quotient = amax * kInverse;
  const float scale = amax >= kMinAmax ? fmaf(fmaf(-quotient, kE4m3Max, amax), kInverse, quotient) : 1.0f;
  float inv;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inv) : "f"(scale));
  inv = fmaf(inv, fmaf(-scale, inv, 1.0f), inv);
  const __nv_fp8x4_e4m3 q(make_float4(v.x * inv, v.y * inv, v.z * inv, v.w * inv));
  return {q.__x, scale};
}

// To piece `kb` of row `row`.
__device__ __forceinline__ void store_piece(const Fp8Piece& piece, const Fp8Rows& out, int64_t row, int64_t kb) {
  const int lane = threadIdx.x % 32;
  *reinterpret_cast<uint32_t*>(out.data + (kb * out.rows + row) * kFp8Block + lane * 4) = piece.numbers;
  if (lane == 0) out.scales[kb * out.scale_stride + row] = piece.scale;
}
__device__ __forceinline__ void quantize_piece(float4 v, const Fp8Rows& out, int64_t row, int64_t kb) {
  store_piece(quantize(v), out, row, kb);
}

}  // namespace moectl::cuda::kernel
