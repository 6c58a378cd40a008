// Rotation of one pair of a vector by the row's cosines and sines (RopeTableArgs): pair i is (2i, 2i + 1) when
// interleaved, else (i, i + dim / 2).
#pragma once

namespace moectl::cuda::kernel {

struct RopePair {
  int a, b;  // where its two values stand
};
__device__ inline RopePair rope_pair(int i, int dim, bool interleaved) {
  return interleaved ? RopePair{2 * i, 2 * i + 1} : RopePair{i, i + dim / 2};
}

// One rounding an operation, as on the CPU.
__device__ inline float2 rotate(float a, float b, float cos, float sin) {
  return {__fsub_rn(__fmul_rn(a, cos), __fmul_rn(b, sin)), __fadd_rn(__fmul_rn(b, cos), __fmul_rn(a, sin))};
}
__device__ inline float2 rotate(float a, float b, const float* cos_sin, int i, int dim) {
  return rotate(a, b, cos_sin[i], cos_sin[dim / 2 + i]);
}

}  // namespace moectl::cuda::kernel
