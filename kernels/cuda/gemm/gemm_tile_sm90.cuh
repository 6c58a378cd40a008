// A tile's sums in the kernel of gemm_sm90.cuh: the scales that they are multiplied by on their way in, and how they
// reach memory on their way out. Owns no data. sm_90a only.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/gemm/gemm_plan_sm90.cuh"

namespace moectl::cuda::kernel {

// silu(gate) * up
__device__ __forceinline__ float silu_times(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}
__device__ __forceinline__ float4 silu_times(float4 gate, float4 up) {
  return make_float4(silu_times(gate.x, up.x), silu_times(gate.y, up.y), silu_times(gate.z, up.z),
                     silu_times(gate.w, up.w));
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ void store_four(const GemmParams& p, int64_t at, float4 v) {
  if (p.out_bf16)
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(p.out) + at) =
        make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
  else
    *reinterpret_cast<float4*>(static_cast<float*>(p.out) + at) = v;
}

// Swapped tiles: vector j of this warp, 16 columns of out from `col` of the tile and 8 tokens.
template <class S>
__device__ __forceinline__ void store_swapped(const GemmParams& p, const TileAt& tile, int col, int j, float4 v,
                                              float* pass) {
  if (8 * j >= tile.rows) return;
  const int lane = threadIdx.x % 32, t = lane / 4, c = lane % 4 * 4;
  float* const to = pass + lane % 4 * 2 * S::kPassRow + lane / 4;
  to[0] = v.x, to[S::kPassRow] = v.y, to[8] = v.z, to[S::kPassRow + 8] = v.w;
  __syncwarp();
  if (8 * j + t < tile.rows && tile.col + col + c < p.n)
    store_four(p, int64_t(tile.row + 8 * j + t) * p.n + tile.col + col + c,
               *reinterpret_cast<const float4*>(pass + t * S::kPassRow + c));
  __syncwarp();
}

// Straight tiles: 16 rows of a warp and a line of memory each, 32 f32 or 64 bf16 columns. First each thread puts its
// vectors into `pass`, then the warp stores `count` of them. row, col: of the warp's first sum, in the tile.
template <class S, bool kOutBf16>
__device__ __forceinline__ void put_in_pass(float* pass, int i, float4 v) {
  const int lane = threadIdx.x % 32;
  if constexpr (kOutBf16) {
    uint32_t* const to = reinterpret_cast<uint32_t*>(pass) + lane / 4 * S::kPassRow + 4 * i + lane % 4;
    to[0] = pack_bf16(v.x, v.y), to[8 * S::kPassRow] = pack_bf16(v.z, v.w);
  } else {
    float* const to = pass + lane / 4 * S::kPassRow + 8 * i + lane % 4 * 2;
    *reinterpret_cast<float2*>(to) = make_float2(v.x, v.y);
    *reinterpret_cast<float2*>(to + 8 * S::kPassRow) = make_float2(v.z, v.w);
  }
}
template <class S, bool kOutBf16>
__device__ __forceinline__ void store_pass(const GemmParams& p, const TileAt& tile, int row, int col, int count,
                                           const float* pass) {
  constexpr int kBytes = kOutBf16 ? 2 : 4, kEach = 16 / kBytes;
  const int lane = threadIdx.x % 32, c = lane % 8 * kEach;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = 4 * i + lane / 8;
    if (row + r < tile.rows && c < 8 * count && tile.col + col + c < p.n)
      *reinterpret_cast<float4*>(static_cast<char*>(p.out) +
                                 (int64_t(tile.row + row + r) * p.n + tile.col + col + c) * kBytes) =
          *reinterpret_cast<const float4*>(pass + r * S::kPassRow + lane % 8 * 4);
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
      const bool here = S::kGated              ? j >= S::kTileN / 16
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
