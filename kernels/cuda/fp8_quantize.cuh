// The FP8 copy of 128 values by a warp (fp8_quantize.h), for kernels that make such copies beside what else they do.
#pragma once

#include <cuda_fp8.h>

#include "kernels/cuda/fp8_gemm.h"

namespace moectl::cuda::kernel {

constexpr float kE4m3Max = 448.0f, kMinAmax = 1e-30f;  // below, 1 / scale could overflow

// A warp's 128 values, four a lane, to piece `kb` of row `row`.
__device__ __forceinline__ void quantize_piece(float4 v, const Fp8Rows& out, int64_t row, int64_t kb) {
  const int lane = threadIdx.x % 32;
  float amax = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
  for (int offset = 16; offset > 0; offset /= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, offset));
  const float scale = amax >= kMinAmax ? amax / kE4m3Max : 1.0f, inv = 1.0f / scale;
  const __nv_fp8x4_e4m3 q(make_float4(v.x * inv, v.y * inv, v.z * inv, v.w * inv));
  *reinterpret_cast<uint32_t*>(out.data + (kb * out.rows + row) * kFp8Block + lane * 4) = q.__x;
  if (lane == 0) out.scales[kb * out.scale_stride + row] = scale;
}

}  // namespace moectl::cuda::kernel
