// The kernel of fp8_gemm and bf16_gemm: out = A W^T (shapes and layouts in fp8_gemm.h, bf16_gemm.h). sm_90a only.
//
// A block has three warpgroups: one thread of the first keeps a ring of stages full by TMA, each stage one tile of
// weights, one of tokens (128 of k, swizzled) and their scales; the other two multiply 64 * kSub rows of the tile each.
// wgmma's FP8 sums keep few bits, so the sum of each 128 of k is scaled and added to f32 registers; BF16 adds up in the
// tensor cores. The grid is persistent: a cluster takes tiles c, c + clusters, ... of all experts' tiles. In a cluster
// `multicast` blocks take neighbouring weight tiles and load their common tokens once, and `split` blocks divide k and
// exchange partial sums through distributed shared memory, added in the order of k: no scratch memory, no atomics, the
// same bits in each run. Two orientations: tokens on wgmma's M axis (many rows), or weight rows there and tokens on N
// (`kSwap`, few rows: the tensor core's M = 64 is then filled, and the time is that of reading the weights).
#pragma once

#include <cuda_bf16.h>

#include <type_traits>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace moectl::cuda::kernel {

using namespace hopper;

constexpr int kGemmThreads = 384, kConsumerThreads = 256, kConsumerWarps = 8;
constexpr int kProducerWarps = 4, kFewEights = 4;
constexpr int kScaleBlock = 128;
constexpr int kTileK = 128;  // bytes of a row in a stage: 128 FP8 or 64 BF16 numbers

struct GemmParams {
  void* out;
  bool out_bf16;
  int m, n, num_kb;  // m: rows of the dense case; n: columns of out
  const float *a_scales, *w_scales, *w_up_scales;
  int a_scale_stride, w_scale_stride;
  const int32_t* offsets;  // null: dense
  int num_experts, expert_begin;
  int multicast, split, stages, group_m;
  int a_box;                             // token rows a copy of map_a; divides the token tile / multicast
  uint64_t weight_policy, token_policy;  // of the L2 cache
};

template <bool kSwap_, int kSub_, int kTileN_, bool kGated_, bool kBf16_ = false>
struct GemmShape {
  static constexpr bool kSwap = kSwap_, kGated = kGated_, kBf16 = kBf16_;
  static constexpr int kSub = kSub_, kTileN = kTileN_;
  static constexpr int kTileM = 128 * kSub;
  static constexpr int kTokens = kSwap ? kTileN : kTileM, kWeightRows = kSwap ? kTileM : kTileN;
  static constexpr int kOutCols = kGated ? kWeightRows / 2 : kWeightRows;  // columns of out a tile
  static constexpr int kWeightBytes = kWeightRows * kTileK, kTokenBytes = kTokens * kTileK;
  // Scales of a stage: copies begin and end at multiples of 16 bytes, so up to three floats before the first one
  // wanted.
  static constexpr int kTokenScales = kTokens + 4, kWeightScales = 8, kWeightScaleBytes = 128;
  static constexpr int kTokenScaleBytes = (kTokenScales * 4 + 127) / 128 * 128,
                       kScaleBytes = kBf16 ? 0 : kTokenScaleBytes + (kGated ? 2 : 1) * kWeightScaleBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes + kScaleBytes;
  static constexpr int kRegs = kSub * kTileN / 2, kVectors = kRegs / 4;  // a thread's sums; float4 of them
  // Two products in flight where the registers allow it.
  static constexpr int kBuffers = !kBf16 && kRegs + kTileN <= 192 ? 2 : 1;
  // Vectors that belong together: a gated output needs its gate's and its up's.
  static constexpr int kUnit = kGated ? 2 : 1, kUnits = kVectors / kUnit;
  static_assert(!kGated || (kSwap ? kSub == 2 : kTileN == 128));
  static constexpr bool kCanSplit = kSwap || (kSub == 1 && kTileN == 128 && !kGated);
  static constexpr int kMaxStages = 12;
  static constexpr int reduce_bytes(int split) {
    return split == 1 ? 0 : (split - 1) * (kVectors / split) * kConsumerThreads * 16;
  }
  // Straight tiles: 16 rows of 32 sums a warp pass through shared memory on their way out, rows padded by 16 bytes.
  static constexpr int kPassRow = 36, kPassBytes = kSwap ? 0 : kConsumerWarps * 16 * kPassRow * 4;
  // Barriers and the table of tiles, then (1024-aligned) stages, then the exchange of partial sums.
  static constexpr int kTableOffset = 512;
  static constexpr int head_bytes(int num_experts) {
    return (kTableOffset + (num_experts + 1) * 8 + 1023) / 1024 * 1024;
  }
};

// A tile of one block.
struct TileAt {
  int expert, row, rows;  // its first token row in A, and how many of them belong to the expert (may exceed the tile)
  int col;                // first column of out
};

// What a block does next: a tile and the k-blocks of it that are this block's.
struct Work {
  TileAt tile;
  int kb_begin, kb_end;
  bool split;  // the cluster shares the tile
};

// The sequence of a block's work; each role of the block walks through its own copy. tile_begin[e]: number of tiles
// before expert e; row_begin[e]: its first row; both in shared memory. The blocks of a cluster that divide k take whole
// tiles as long as every block of the grid gets one, and share the tiles of the last, partial round.
template <class S>
struct Schedule {
  const GemmParams& p;
  const int *tile_begin, *row_begin;
  int col_groups, multicast_idx, split_idx;
  int cluster = int(cluster_id_x()), num_clusters = int(num_clusters_x());
  int num_tiles = tile_begin[p.num_experts], whole = num_tiles / (num_clusters * p.split);
  int round = 0, expert = 0;

  __device__ __forceinline__ bool next(Work& work) {
    work.split = S::kCanSplit && p.split > 1 && round >= whole;
    const int t = !S::kCanSplit || p.split == 1 ? round * num_clusters + cluster
                  : work.split ? whole * num_clusters * p.split + (round - whole) * num_clusters + cluster
                               : (round * num_clusters + cluster) * p.split + split_idx;
    ++round;
    if (t >= num_tiles) return false;
    work.tile = locate(t);
    work.kb_begin = work.split ? p.num_kb * split_idx / p.split : 0;
    work.kb_end = work.split ? p.num_kb * (split_idx + 1) / p.split : p.num_kb;
    return true;
  }

  __device__ __forceinline__ TileAt locate(int t) {
    for (int end = p.num_experts; end - expert > 1;) {
      const int mid = (expert + end) / 2;
      if (tile_begin[mid] <= t)
        expert = mid;
      else
        end = mid;
    }
    const int begin = row_begin[expert], rows = row_begin[expert + 1] - begin;
    const int m_tiles = (rows + S::kTokens - 1) / S::kTokens, local = t - tile_begin[expert];
    const int group = local / (p.group_m * col_groups), first = group * p.group_m;
    const int in_group = min(p.group_m, m_tiles - first), rest = local - group * p.group_m * col_groups;
    const int m_tile = first + rest % in_group, col_group = rest / in_group;
    return {expert, begin + m_tile * S::kTokens, rows - m_tile * S::kTokens,
            (col_group * p.multicast + multicast_idx) * S::kOutCols};
  }
};

// One warp: the running sums of the table, 32 experts a round.
__device__ inline void fill_tile_table(int* tile_begin, int* row_begin, const GemmParams& p, int tokens,
                                       int col_groups) {
  const int lane = threadIdx.x % 32;
  int base = 0;
  for (int e0 = 0; e0 < p.num_experts; e0 += 32) {
    const int e = e0 + lane;
    int begin = 0, end = 0;
    if (e < p.num_experts) {
      begin = p.offsets ? p.offsets[e] : 0;
      end = p.offsets ? p.offsets[e + 1] : p.m;
      row_begin[e] = begin;
      if (e == p.num_experts - 1) row_begin[p.num_experts] = end;
    }
    const int tiles = (end - begin + tokens - 1) / tokens * col_groups;
    int sum = tiles;
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, sum, offset);
      if (lane >= offset) sum += other;
    }
    if (e < p.num_experts) tile_begin[e] = base + sum - tiles;
    base += __shfl_sync(0xffffffffu, sum, 31);
  }
  if (lane == 0) tile_begin[p.num_experts] = base;
}

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

template <class S>
__global__ void __launch_bounds__(kGemmThreads, 1)
    gemm(const __grid_constant__ CUtensorMap map_w, const __grid_constant__ CUtensorMap map_w_up,
         const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_a8,
         const __grid_constant__ GemmParams p) {
  extern __shared__ __align__(1024) uint8_t smem[];
  const uint32_t base = smem_addr(smem);
  // Barriers: full and empty of each stage, then the exchange's full and empty.
  const uint32_t full = base, empty = base + 8 * S::kMaxStages, reduce_full = base + 16 * S::kMaxStages,
                 reduce_empty = reduce_full + 8;
  int* const tile_begin = reinterpret_cast<int*>(smem + S::kTableOffset);
  int* const row_begin = tile_begin + p.num_experts + 1;
  const uint32_t weights = base + S::head_bytes(p.num_experts), tokens = weights + p.stages * S::kWeightBytes,
                 scales = tokens + p.stages * S::kTokenBytes, exchange = scales + p.stages * S::kScaleBytes;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rank = int(cluster_ctarank()), multicast_idx = rank % p.multicast, split_idx = rank / p.multicast;
  const int col_tiles = (p.n + S::kOutCols - 1) / S::kOutCols, col_groups = (col_tiles + p.multicast - 1) / p.multicast;

  if (warp == 0) {
    if (lane == 0) {
      for (int s = 0; s < p.stages; ++s) {
        mbarrier_init(full + 8 * s, S::kBf16 ? 2 : kProducerWarps);
        mbarrier_init(empty + 8 * s, kConsumerWarps * p.multicast);
      }
      mbarrier_init(reduce_full, 1);
      mbarrier_init(reduce_empty, kConsumerWarps * (p.split - 1) + 1);
      fence_mbarrier_init();
      tma_prefetch_map(&map_w);
      tma_prefetch_map(&map_a);
    }
    __syncwarp();
    if (p.offsets) grid_dependency_wait();
    fill_tile_table(tile_begin, row_begin, p, S::kTokens, col_groups);
  }
  if (p.multicast * p.split > 1)
    cluster_sync();
  else
    __syncthreads();

  Schedule<S> schedule{p, tile_begin, row_begin, col_groups, multicast_idx, split_idx};

  if (warp < kProducerWarps) {
    setmaxnreg_dec<40>();
    // One thread a kind of operand, so that each has few registers to juggle: 0 weights, 1 tokens, 2 weight scales, 3
    // token scales. fill(work) returns what loads one k-block: (kb, stage, barrier) -> nothing.
    const auto produce = [&](auto&& fill) {
      Work work;
      for (int stage = 0, phase = 0; schedule.next(work);) {
        auto&& load = fill(work.tile);
        for (int kb = work.kb_begin; kb < work.kb_end; ++kb) {
          mbarrier_wait(empty + 8 * stage, phase ^ 1);
          load(kb, stage, full + 8 * stage);
          if (++stage == p.stages) stage = 0, phase ^= 1;
        }
      }
    };
    if (elect_one()) {
      if (warp == 0) {
        // Weights need not wait for the kernel before this one; only in the grouped case it tells which.
        grid_dependency_launch();
        produce([&](const TileAt& tile) {
          const int batch = p.expert_begin + tile.expert;
          return [&, batch](int kb, int stage, uint32_t bar) {
            const uint32_t dst = weights + stage * S::kWeightBytes;
            mbarrier_arrive_expect_tx(bar, S::kWeightBytes);
            tma_load_4d(dst, &map_w, bar, 0, tile.col, kb, batch, p.weight_policy);
            if constexpr (S::kGated)
              tma_load_4d(dst + S::kWeightBytes / 2, &map_w_up, bar, 0, tile.col, kb, batch, p.weight_policy);
          };
        });
      } else if (warp == 1) {
        grid_dependency_wait();
        const uint16_t mask = uint16_t(((1u << p.multicast) - 1) << (split_idx * p.multicast));
        produce([&](const TileAt& tile) {
          // Few rows come in pieces of eight (the swizzle's period), so that rows that nobody needs are not read.
          const int rows = min(tile.rows, S::kTokens), eights = (rows + 7) / 8;
          const bool few = S::kSwap && eights <= kFewEights && eights * 8 < S::kTokens;
          const int box = few ? 8 : p.a_box, boxes = (rows + box - 1) / box;
          const CUtensorMap* map = few ? &map_a8 : &map_a;
          return [&, box, boxes, map](int kb, int stage, uint32_t bar) {
            const uint32_t dst = tokens + stage * S::kTokenBytes;
            mbarrier_arrive_expect_tx(bar, boxes * box * kTileK);
            for (int b = multicast_idx; b < boxes; b += p.multicast) {
              if (p.multicast > 1)
                tma_load_3d_multicast(dst + b * box * kTileK, map, bar, 0, tile.row + b * box, kb, mask,
                                      p.token_policy);
              else
                tma_load_3d(dst + b * box * kTileK, map, bar, 0, tile.row + b * box, kb, p.token_policy);
            }
          };
        });
      } else if (!S::kBf16 && warp == 2) {
        produce([&](const TileAt& tile) {
          const int block = tile.col / kScaleBlock, bytes = 4 * scales_from(block, S::kWeightScales, p.w_scale_stride);
          const int64_t first = int64_t(p.expert_begin + tile.expert) * p.num_kb * p.w_scale_stride + (block & ~3);
          return [&, bytes, first](int kb, int stage, uint32_t bar) {
            const uint32_t dst = scales + stage * S::kScaleBytes + S::kTokenScaleBytes;
            mbarrier_arrive_expect_tx(bar, bytes * (S::kGated ? 2 : 1));
            if (bytes == 0) return;  // a block of a multicast group that has no columns
            bulk_load(dst, p.w_scales + first + kb * p.w_scale_stride, bytes, bar);
            if constexpr (S::kGated)
              bulk_load(dst + S::kWeightScaleBytes, p.w_up_scales + first + kb * p.w_scale_stride, bytes, bar);
          };
        });
      } else if (!S::kBf16) {
        grid_dependency_wait();
        produce([&](const TileAt& tile) {
          const int bytes = 4 * scales_from(tile.row, S::kTokenScales, p.a_scale_stride);
          const float* first = p.a_scales + (tile.row & ~3);
          return [&, bytes, first](int kb, int stage, uint32_t bar) {
            mbarrier_arrive_expect_tx(bar, bytes);
            bulk_load(scales + stage * S::kScaleBytes, first + int64_t(kb) * p.a_scale_stride, bytes, bar);
          };
        });
      }
    }
  } else {
    setmaxnreg_inc<232>();
    const int t0 = threadIdx.x - (kGemmThreads - kConsumerThreads);
    const int wg = __shfl_sync(0xffffffffu, t0 / 128, 0);  // so that the compiler knows it to be the same in a warp
    int stage = 0, phase = 0, done = 0, reduce_phase = 0;
    for (Work work; schedule.next(work);) {
      const TileAt& tile = work.tile;
      float acc[S::kSub][S::kTileN / 2];
#pragma unroll
      for (int sub = 0; sub < S::kSub; ++sub)
#pragma unroll
        for (int i = 0; i < S::kTileN / 2; ++i) acc[sub][i] = 0.0f;

      // The oldest stage is free: its products are done and nothing more is read from it.
      const auto release = [&] {
        __syncwarp();
        if (p.multicast == 1) {
          if (lane == 0) mbarrier_arrive(empty + 8 * done);
        } else if (lane < p.multicast) {
          mbarrier_arrive_cluster(cluster_addr(empty + 8 * done, split_idx * p.multicast + lane));
        }
        if (++done == p.stages) done = 0;
      };
      // One product: the tile's half `sub` and one k-block into part[buffer]. With two buffers the next product runs in
      // the tensor cores while the last one is scaled and added.
      float part[S::kBuffers][S::kTileN / 2];
      Scales<S> factor[S::kBuffers];
      const auto start = [&](auto buffer, int sub) {
        if (sub == 0) mbarrier_wait(full + 8 * stage, phase);
        const uint32_t w = weights + stage * S::kWeightBytes, a = tokens + stage * S::kTokenBytes;
        const uint32_t desc_m = wgmma_desc_low((S::kSwap ? w : a) + (sub * 2 + wg) * 64 * kTileK),
                       desc_n = wgmma_desc_low(S::kSwap ? a : w);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTileK / 32; ++k)
          WgmmaF8<S::kTileN>::mma(part[buffer], wgmma_desc_from(desc_m + 2 * k), wgmma_desc_from(desc_n + 2 * k),
                                  k > 0);
        wgmma_commit();
        // While the tensor cores work: the scales, so that little but arithmetic follows the wait.
        const float* stage_scales = reinterpret_cast<const float*>(smem + (scales - base) + stage * S::kScaleBytes);
        factor[buffer].load(stage_scales + tile.row % 4,
                            stage_scales + S::kTokenScaleBytes / 4 + tile.col / kScaleBlock % 4, sub, wg);
        if (sub == S::kSub - 1 && ++stage == p.stages) stage = 0, phase ^= 1;
      };
      const auto finish = [&](auto buffer, int sub, auto in_flight) {
        wgmma_wait<in_flight>();
        wgmma_pin(part[buffer]);
        if (Scales<S>::kEarly && sub == S::kSub - 1) release();
#pragma unroll
        for (int j = 0; j < S::kTileN / 8; ++j) {
          float f[4];
          factor[buffer].of(j, tile.col % kScaleBlock, f);
#pragma unroll
          for (int i = 0; i < 4; ++i) acc[sub][4 * j + i] += part[buffer][4 * j + i] * f[i];
        }
        if (!Scales<S>::kEarly && sub == S::kSub - 1) release();
      };
      constexpr std::integral_constant<int, 0> kFirst;
      constexpr std::integral_constant<int, S::kBuffers - 1> kSecond;
      constexpr std::integral_constant<int, 0> kLast;  // products that may still run after the wait
      constexpr std::integral_constant<int, 1> kOneMore;
      if constexpr (S::kBf16) {
        for (int kb = work.kb_begin; kb < work.kb_end; ++kb) {
          mbarrier_wait(full + 8 * stage, phase);
          const uint32_t w = weights + stage * S::kWeightBytes, a = tokens + stage * S::kTokenBytes;
          const uint32_t desc_n = wgmma_desc_low(S::kSwap ? a : w);
          wgmma_fence();
#pragma unroll
          for (int sub = 0; sub < S::kSub; ++sub) {
            const uint32_t desc_m = wgmma_desc_low((S::kSwap ? w : a) + (sub * 2 + wg) * 64 * kTileK);
#pragma unroll
            for (int k = 0; k < kTileK / 32; ++k)
              WgmmaBf16<S::kTileN>::mma(acc[sub], wgmma_desc_from(desc_m + 2 * k), wgmma_desc_from(desc_n + 2 * k), 1);
          }
          wgmma_commit();
          wgmma_wait<1>();
          if (kb > work.kb_begin) release();
          if (++stage == p.stages) stage = 0, phase ^= 1;
        }
        wgmma_wait<0>();
#pragma unroll
        for (int sub = 0; sub < S::kSub; ++sub) wgmma_pin(acc[sub]);
        if (work.kb_end > work.kb_begin) release();
      } else if constexpr (S::kBuffers == 2) {
        constexpr int kOdd = S::kSub - 1;  // the half of every second product
        const int products = (work.kb_end - work.kb_begin) * S::kSub;
        if (products > 0) {
          start(kFirst, 0);
          int left = products - 1;  // not yet started
          for (; left >= 2; left -= 2) {
            start(kSecond, kOdd);
            finish(kFirst, 0, kOneMore);
            start(kFirst, 0);
            finish(kSecond, kOdd, kOneMore);
          }
          if (left == 1) {
            start(kSecond, kOdd);
            finish(kFirst, 0, kOneMore);
            finish(kSecond, kOdd, kLast);
          } else {
            finish(kFirst, 0, kLast);
          }
        }
      } else {
        for (int kb = work.kb_begin; kb < work.kb_end; ++kb)
#pragma unroll
          for (int sub = 0; sub < S::kSub; ++sub) {
            start(kFirst, sub);
            finish(kFirst, sub, kLast);
          }
      }

      const auto vector = [&](int sub, int j) {
        return make_float4(acc[sub][4 * j], acc[sub][4 * j + 1], acc[sub][4 * j + 2], acc[sub][4 * j + 3]);
      };
      // Unit u of a thread: the vector, or gate's and up's, that make one output; block u / units_each owns it.
      const auto at = [](int u, int part) {  // -> {sub, j}
        constexpr int kPerSub = S::kTileN / 8;
        if constexpr (!S::kGated) return int2{u / kPerSub, u % kPerSub};
        if constexpr (S::kSwap) return int2{part, u};
        return int2{u / (kPerSub / 2), u % (kPerSub / 2) + part * (kPerSub / 2)};
      };
      const bool split = S::kCanSplit && work.split;
      const int units_each = S::kUnits / p.split, unit_shift = __ffs(units_each) - 1;
      if (split) {
        if (t0 == 0) mbarrier_arrive_expect_tx(reduce_full, S::reduce_bytes(p.split));
        mbarrier_wait_cluster(reduce_empty, reduce_phase ^ 1);
#pragma unroll
        for (int u = 0; u < S::kUnits; ++u) {
          const int owner = u >> unit_shift;
          if (owner == split_idx) continue;
          const int slot = split_idx - (split_idx > owner), peer = owner * p.multicast + multicast_idx;
#pragma unroll
          for (int w = 0; w < S::kUnit; ++w) {
            const int2 v = at(u, w);
            const int i = (slot * units_each + (u & (units_each - 1))) * S::kUnit + w;
            store_cluster_async(cluster_addr(exchange + (i * kConsumerThreads + t0) * 16, peer),
                                cluster_addr(reduce_full, peer), vector(v.x, v.y));
          }
        }
        mbarrier_wait_cluster(reduce_full, reduce_phase);
      }
      // What unit u puts out.
      const auto result = [&](int u) {
        float4 sum[S::kUnit];
#pragma unroll
        for (int w = 0; w < S::kUnit; ++w) {
          const int2 v = at(u, w);
          sum[w] = vector(v.x, v.y);
          if (!split) continue;
          const float4 own = sum[w];
          sum[w] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          for (int r = 0; r < p.split; ++r) {
            const int i = ((r - (r > split_idx)) * units_each + (u & (units_each - 1))) * S::kUnit + w;
            const float4 x =
                r == split_idx
                    ? own
                    : *reinterpret_cast<const float4*>(smem + (exchange - base) + (i * kConsumerThreads + t0) * 16);
            sum[w].x += x.x, sum[w].y += x.y, sum[w].z += x.z, sum[w].w += x.w;
          }
        }
        if constexpr (S::kGated)
          return make_float4(silu(sum[0].x) * sum[1].x, silu(sum[0].y) * sum[1].y, silu(sum[0].z) * sum[1].z,
                             silu(sum[0].w) * sum[1].w);
        else
          return sum[0];
      };
      if constexpr (S::kSwap) {
#pragma unroll
        for (int u = 0; u < S::kUnits; ++u)
          if (!split || u >> unit_shift == split_idx) store_swapped(p, tile, at(u, 0).x, at(u, 0).y, result(u));
      } else {
        constexpr int kPerSub = S::kOutCols / 8;
        float* const pass =
            reinterpret_cast<float*>(smem + (exchange - base) + S::reduce_bytes(p.split)) + t0 / 32 * 16 * S::kPassRow;
#pragma unroll
        for (int sub = 0; sub < S::kSub; ++sub)
#pragma unroll
          for (int j = 0; j < kPerSub; j += 4) {
            const int u = sub * kPerSub + j;
            if (split && u >> unit_shift != split_idx) continue;
            constexpr int kMost = 4;
            const int count = kPerSub - j < kMost ? kPerSub - j : kMost;
#pragma unroll
            for (int i = 0; i < kMost; ++i) {
              if (i >= count) break;
              const float4 v = result(u + i);
              float* const to = pass + lane / 4 * S::kPassRow + 8 * i + lane % 4 * 2;
              *reinterpret_cast<float2*>(to) = make_float2(v.x, v.y);
              *reinterpret_cast<float2*>(to + 8 * S::kPassRow) = make_float2(v.z, v.w);
            }
            store_pass<S>(p, tile, (sub * 2 + wg) * 64 + t0 % 128 / 32 * 16, 8 * j, count, pass);
          }
      }
      if (split) {
        __syncwarp();
        if (lane < p.split && lane != split_idx)
          mbarrier_arrive_cluster(cluster_addr(reduce_empty, lane * p.multicast + multicast_idx));
        if (t0 == 0) mbarrier_arrive(reduce_empty);
        reduce_phase ^= 1;
      }
    }
  }
  __syncwarp();
  // Nobody leaves while a neighbour may still write to its shared memory or barriers.
  if (p.multicast * p.split > 1) cluster_sync();
}

}  // namespace moectl::cuda::kernel
