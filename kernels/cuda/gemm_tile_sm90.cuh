// A tile's sums in the kernel of gemm_sm90.cuh: the scales that they are multiplied by on their way in, and how they
// reach memory on their way out. Owns no data. sm_90a only.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/gemm_plan_sm90.cuh"

namespace moectl::cuda::kernel {

__device__ __forceinline__ float silu(float g) {
  return g / (1.0f + __expf(-g));
}

__device__ __forceinline__ void store_four(const GemmParams& p, int64_t at, float4 v) {
  if (p.out_bf16) {
    const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y), high = __floats2bfloat162_rn(v.z, v.w);
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(p.out) + at) =
        make_uint2(*reinterpret_cast<const uint32_t*>(&low), *reinterpret_cast<const uint32_t*>(&high));
  } else {
    *reinterpret_cast<float4*>(static_cast<float*>(p.out) + at) = v;
  }
}
__device__ __forceinline__ void store_one(const GemmParams& p, int64_t at, float a) {
  if (p.out_bf16)
    static_cast<__nv_bfloat16*>(p.out)[at] = __float2bfloat16_rn(a);
  else
    static_cast<float*>(p.out)[at] = a;
}

// Swapped tiles: the four sums of vector (sub, j) of this consumer thread to their places in out.
__device__ __forceinline__ void store_swapped(const GemmParams& p, const TileAt& tile, int sub, int j, float4 v) {
  const int t = threadIdx.x - (kGemmThreads - kConsumerThreads), lane = t % 32;
  const int col = tile.col + (sub * 2 + t / 128) * 64 + t % 128 / 32 * 16 + lane / 4, c = 8 * j + lane % 4 * 2;
  const int64_t at = int64_t(tile.row + c) * p.n + col;
  if (c < tile.rows) {
    if (col < p.n) store_one(p, at, v.x);
    if (col + 8 < p.n) store_one(p, at + 8, v.z);
  }
  if (c + 1 < tile.rows) {
    if (col < p.n) store_one(p, at + p.n, v.y);
    if (col + 8 < p.n) store_one(p, at + p.n + 8, v.w);
  }
}

// Straight tiles: 16 rows and up to 32 columns of a warp, `count` vectors of which each thread has put into `pass`, in
// whole lines of memory. row, col: of the warp's first sum, in the tile.
template <class S>
__device__ __forceinline__ void store_pass(const GemmParams& p, const TileAt& tile, int row, int col, int count,
                                           const float* pass) {
  const int lane = threadIdx.x % 32, c = lane % 8 * 4;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = 4 * i + lane / 8;
    if (row + r < tile.rows && c < 8 * count && tile.col + col + c < p.n)
      store_four(p, int64_t(tile.row + row + r) * p.n + tile.col + col + c,
                 *reinterpret_cast<const float4*>(pass + r * S::kPassRow + c));
  }
  __syncwarp();
}

// What a thread multiplies its sums of one k-block and one half of the tile by.
template <class S, bool = S::kSwap>
struct Scales;

// Tokens on M: two rows a thread, and the weight blocks that the tile touches (column group j of the tile lies in block
// (col % 128 + 8 j) / 128 of those whose scales are in the stage; gated: the up block's scale lies 128 bytes further).
template <class S>
struct Scales<S, false> {
  static constexpr int kBlocks = S::kGated ? 2 : S::kTileN % 128 == 0 ? S::kTileN / 128 : (S::kTileN + 238) / 128;
  static_assert(S::kTileN % 16 == 0);   // so that both column groups of a pair lie in one block
  static constexpr bool kEarly = true;  // all is in registers after load()
  float low[kBlocks], high[kBlocks];

  __device__ __forceinline__ void load(const float* token_scale, const float* weight_scale, int sub, int wg) {
    const int m = (sub * 2 + wg) * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    const float t_low = token_scale[m], t_high = token_scale[m + 8];
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const float w = weight_scale[S::kGated ? b * 32 : b];
      low[b] = t_low * w, high[b] = t_high * w;
    }
  }
  __device__ __forceinline__ void of(int j, int shift, float (&s)[4]) const {
    s[0] = low[0], s[2] = high[0];
#pragma unroll
    for (int b = 1; b < kBlocks; ++b) {
      const bool here = S::kGated              ? j >= 8
                        : S::kTileN % 128 == 0 ? 8 * j >= b * kScaleBlock
                                               : shift + 16 * (j / 2) >= b * kScaleBlock;
      if (here) s[0] = low[b], s[2] = high[b];
    }
    s[1] = s[0], s[3] = s[2];
  }
};

// Tokens on N: two tokens of each column group, and the one weight block of this half of the tile.
template <class S>
struct Scales<S, true> {
  static constexpr bool kEarly = S::kTileN <= 64;  // else the registers do not suffice
  float2 token[kEarly ? S::kTileN / 8 : 1];
  const float* later;
  float weight;

  __device__ __forceinline__ void load(const float* token_scale, const float* weight_scale, int sub, int) {
    weight = weight_scale[S::kGated ? sub * 32 : sub];
    later = token_scale + threadIdx.x % 4 * 2;
    if constexpr (kEarly)
#pragma unroll
      for (int j = 0; j < S::kTileN / 8; ++j) token[j] = make_float2(later[8 * j], later[8 * j + 1]);
  }
  __device__ __forceinline__ void of(int j, int, float (&s)[4]) const {
    const float2 t = kEarly ? token[kEarly ? j : 0] : make_float2(later[8 * j], later[8 * j + 1]);
    s[0] = s[2] = t.x * weight, s[1] = s[3] = t.y * weight;
  }
};

// How many of `count` floats from `begin`, rounded down to a multiple of 4, lie within a row of `stride`.
__device__ __forceinline__ int scales_from(int begin, int count, int stride) {
  return max(0, min(count, stride - (begin & ~3)));
}

}  // namespace moectl::cuda::kernel
