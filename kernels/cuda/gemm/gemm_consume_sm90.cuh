// The k loop of the kernel in gemm_sm90.cuh: the consumer warpgroups multiply the stages of a work item by wgmma and
// accumulate in registers. Owns no data. sm_90a only.
#pragma once

#include "kernels/cuda/gemm/gemm_plan_sm90.cuh"
#include "kernels/cuda/gemm/wgmma.cuh"

namespace moectl::cuda::kernel {

// A thread's sums of a tile: of 64 rows of the M axis per `sub` and warpgroup, as wgmma.cuh lays them out.
template <class S>
using Accumulators = float[S::kSub][S::kTileN / 2];

// A value that a warp agrees on, so that the compiler knows it.
__device__ __forceinline__ int warp_uniform(int v) {
  return __shfl_sync(0xffffffffu, v, 0);
}

// A consumer warpgroup's place in the pipeline, which it keeps from one work item to the next.
template <class S>
struct GemmConsumer {
  const GemmBlock<S>& block;
  int thread = threadIdx.x - (kGemmThreads - kConsumerThreads);
  int warpgroup = warp_uniform(thread / 128);
  int stage = 0, phase = 0;  // of the next k-block
  int oldest = 0;            // the stage to be released next
  int partials_phase = 0;    // of the barriers of the partial sums

  __device__ __forceinline__ uint32_t weights() const { return block.weights + stage * S::kWeightBytes; }
  __device__ __forceinline__ uint32_t tokens() const { return block.tokens + stage * S::kTokenBytes; }
  __device__ __forceinline__ uint32_t m_operand(int sub) const {  // this warpgroup's 64 rows of it
    return (S::kSwap ? weights() : tokens()) + (sub * 2 + warpgroup) * 64 * kTileK;
  }
  __device__ __forceinline__ uint32_t n_operand() const { return S::kSwap ? tokens() : weights(); }
  // The first row of this warp on the M axis, in `sub` 0.
  __device__ __forceinline__ int warp_row() const { return warpgroup * 64 + thread % 128 / 32 * 16; }

  __device__ __forceinline__ void wait_full() const { mbarrier_wait(block.full + 8 * stage, phase); }
  __device__ __forceinline__ void advance() {
    if (++stage == block.p.stages) stage = 0, phase ^= 1;
  }
  // Consumer release of the oldest stage: its products are done. Every block of the multicast group loads into it.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (block.p.multicast == 1) {
      if (block.lane == 0) mbarrier_arrive(block.empty + 8 * oldest);
    } else if (block.lane < block.p.multicast) {
      mbarrier_arrive_cluster(cluster_addr(block.empty + 8 * oldest, block.split_idx * block.p.multicast + block.lane));
    }
    if (++oldest == block.p.stages) oldest = 0;
  }
};

// ------------------------------------------------------------------------------------------------ FP8

// What a thread multiplies its sums of one k-block and one `sub` by.
template <class S, bool = S::kSwap>
struct Scales;

// Tokens on M: two rows per thread, and the weight blocks that the tile touches (column group j of the tile lies in
// block (col % 128 + 8 j) / 128 of those whose scales are in the stage; gated: the up block's scale lies 128 bytes
// further).
template <class S>
struct Scales<S, false> {
  static constexpr int kBlocks = S::kGated ? 2 : S::kTileN % 128 == 0 ? S::kTileN / 128 : (S::kTileN + 238) / 128;
  static_assert(S::kTileN % 16 == 0);   // so that both column groups of a pair lie in one block
  static constexpr bool kEarly = true;  // all is in registers after load()
  float low[kBlocks], high[kBlocks];

  __device__ __forceinline__ void load(const float* token_scale, const float* weight_scale, int sub, int warpgroup) {
    const int m = (sub * 2 + warpgroup) * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
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

// Tokens on N: two tokens of each column group, and the one weight block of this `sub`.
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

// One product: one `sub` of the tile by one k-block.
template <class S>
struct Fp8Product {
  uint32_t fragments[kTileK / 32][4];  // kFromRegs: the weights
  float sums[S::kTileN / 2];
  Scales<S> scales;
};

// Issues the wgmmas of a product. With the last `sub` the consumer advances to the next stage.
template <class S>
__device__ __forceinline__ void start(GemmConsumer<S>& c, Fp8Product<S>& product, const Tile& tile, int sub) {
  if (sub == 0) c.wait_full();
  const uint32_t m = c.m_operand(sub), desc_m = wgmma_desc_low(m), desc_n = wgmma_desc_low(c.n_operand());
  if constexpr (S::kFromRegs) {
    const int lane = c.block.lane;
    const uint32_t row = m + (c.thread % 128 / 32 * 16 + lane % 16) * kTileK;
#pragma unroll
    for (int k = 0; k < kTileK / 32; ++k)
      ldmatrix_x4(row + ((2 * k + lane / 16) ^ (lane % 8)) * 16, product.fragments[k]);
  }
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kTileK / 32; ++k)
    if constexpr (S::kFromRegs)
      WgmmaF8Reg<S::kTileN>::mma(product.sums, product.fragments[k], wgmma_desc_from(desc_n + 2 * k), k > 0);
    else
      WgmmaF8<S::kTileN>::mma(product.sums, wgmma_desc_from(desc_m + 2 * k), wgmma_desc_from(desc_n + 2 * k), k > 0);
  wgmma_commit();
  // The scales are loaded while the tensor cores work, so that little but arithmetic follows the wait.
  const float* scales = c.block.template at<const float>(c.block.scales, c.stage * S::kScaleBytes);
  product.scales.load(scales + tile.row % 4, scales + S::kTokenScaleBytes / 4 + tile.col / kScaleBlock % 4, sub,
                      c.warpgroup);
  if (sub == S::kSub - 1) c.advance();
}

// Waits for a product, of which kInFlight later ones may still run, then scales it and adds it to the accumulators.
// With the last `sub` the consumer releases the stage.
template <int kInFlight, class S>
__device__ __forceinline__ void finish(GemmConsumer<S>& c, Fp8Product<S>& product, const Tile& tile, int sub,
                                       Accumulators<S>& acc) {
  wgmma_wait<kInFlight>();
  wgmma_pin(product.sums);
  if (Scales<S>::kEarly && sub == S::kSub - 1) c.release();
#pragma unroll
  for (int j = 0; j < S::kTileN / 8; ++j) {
    float f[4];
    product.scales.of(j, tile.col % kScaleBlock, f);
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[sub][4 * j + i] += product.sums[4 * j + i] * f[i];
  }
  if (!Scales<S>::kEarly && sub == S::kSub - 1) c.release();
}

// wgmma's FP8 sums keep few bits, so the sum of each k-block is scaled and added in f32. Where the registers hold two
// products, one runs in the tensor cores while the other is added.
template <class S>
__device__ __forceinline__ void consume_fp8(GemmConsumer<S>& c, const WorkItem& work, Accumulators<S>& acc) {
  const Tile& tile = work.tile;
  if constexpr (S::kBuffers == 2) {
    constexpr int kOdd = S::kSub - 1;  // `sub` of every second product
    Fp8Product<S> even, odd;
    const int products = (work.kb_end - work.kb_begin) * S::kSub;
    if (products == 0) return;
    start(c, even, tile, 0);
    int left = products - 1;  // not yet started
    for (; left >= 2; left -= 2) {
      start(c, odd, tile, kOdd);
      finish<1>(c, even, tile, 0, acc);
      start(c, even, tile, 0);
      finish<1>(c, odd, tile, kOdd, acc);
    }
    if (left == 1) {
      start(c, odd, tile, kOdd);
      finish<1>(c, even, tile, 0, acc);
      finish<0>(c, odd, tile, kOdd, acc);
    } else {
      finish<0>(c, even, tile, 0, acc);
    }
  } else {
    Fp8Product<S> product;
    for (int kb = work.kb_begin; kb < work.kb_end; ++kb)
#pragma unroll
      for (int sub = 0; sub < S::kSub; ++sub) {
        start(c, product, tile, sub);
        finish<0>(c, product, tile, sub, acc);
      }
  }
}

// ------------------------------------------------------------------------------------------------ BF16

// The tensor cores accumulate in f32; the products of one stage run while those of the next are issued.
template <class S>
__device__ __forceinline__ void consume_bf16(GemmConsumer<S>& c, const WorkItem& work, Accumulators<S>& acc) {
  for (int kb = work.kb_begin; kb < work.kb_end; ++kb) {
    c.wait_full();
    const uint32_t desc_n = wgmma_desc_low(c.n_operand());
    wgmma_fence();
#pragma unroll
    for (int sub = 0; sub < S::kSub; ++sub) {
      const uint32_t desc_m = wgmma_desc_low(c.m_operand(sub));
#pragma unroll
      for (int k = 0; k < kTileK / 32; ++k)
        WgmmaBf16<S::kTileN>::mma(acc[sub], wgmma_desc_from(desc_m + 2 * k), wgmma_desc_from(desc_n + 2 * k), 1);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (kb > work.kb_begin) c.release();
    c.advance();
  }
  wgmma_wait<0>();
#pragma unroll
  for (int sub = 0; sub < S::kSub; ++sub) wgmma_pin(acc[sub]);
  if (work.kb_end > work.kb_begin) c.release();
}

// ------------------------------------------------------------------------------------------------ either

// acc = the tile's sums over the work item's k-blocks.
template <class S>
__device__ __forceinline__ void consume(GemmConsumer<S>& c, const WorkItem& work, Accumulators<S>& acc) {
#pragma unroll
  for (int sub = 0; sub < S::kSub; ++sub)
#pragma unroll
    for (int i = 0; i < S::kTileN / 2; ++i) acc[sub][i] = 0.0f;
  if constexpr (S::kBf16)
    consume_bf16(c, work, acc);
  else
    consume_fp8(c, work, acc);
}

}  // namespace moectl::cuda::kernel
