// What a block of the kernel in gemm_sm90.cuh works on: its parameters, the shape of its tiles and of its shared
// memory, and the order of its work. Owns no data. sm_90a only.
#pragma once

#include <cstdint>

#include "kernels/cuda/runtime/hopper.cuh"

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
  bool offsets_settled;    // they may be read before the kernel in front is done
  int num_experts, expert_begin;
  int multicast, split, stages, group_m;
  bool one_tile;                         // a cluster has at most one tile
  bool exchange_in_ring;                 // one_tile, and partial sums pass through the stages
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
  // Weight rows go to the tensor cores through registers: 3 to 6 % faster here; nothing or a loss for other shapes.
  static constexpr bool kFromRegs = kSwap && kSub == 1 && kTileN == 64 && !kBf16;
  // Vectors that belong together: a gated output needs its gate's and its up's.
  static constexpr int kUnit = kGated ? 2 : 1, kUnits = kVectors / kUnit;
  static_assert(!kGated || (kSwap ? kSub == 2 : kTileN % 128 == 0));
  static constexpr bool kCanSplit = kSwap || (kSub == 1 && kTileN <= 128 && !kGated);
  static constexpr int kMaxStages = 12;
  // Partial sums that a block of a cluster gets from each: at most so many units.
  static constexpr int units_each(int split) { return (kUnits + split - 1) / split; }
  static constexpr int reduce_bytes(int split) {
    return split == 1 ? 0 : split * units_each(split) * kUnit * kConsumerThreads * 16;
  }
  // Outputs pass through shared memory on their way out, so that whole lines are written. A warp's piece: 16 rows of 32
  // columns (straight), 8 tokens of 16 columns (swapped); rows padded by 16 bytes.
  static constexpr int kPassRow = kSwap ? 20 : 36, kPassFloats = (kSwap ? 8 : 16) * kPassRow,
                       kPassBytes = kConsumerWarps * kPassFloats * 4;
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
struct GemmSchedule {
  const GemmParams& p;
  const int *tile_begin, *row_begin;
  int col_groups, multicast_idx, split_idx;
  int cluster = int(cluster_id_x()), num_clusters = int(num_clusters_x());
  int num_tiles = tile_begin[p.num_experts], whole = p.one_tile ? 0 : num_tiles / (num_clusters * p.split);
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
    if (m_tiles == 1) return {expert, begin, rows, (local * p.multicast + multicast_idx) * S::kOutCols};
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
  if (!p.offsets) {  // one expert
    if (lane == 0) {
      tile_begin[0] = row_begin[0] = 0;
      tile_begin[1] = (p.m + tokens - 1) / tokens * col_groups;
      row_begin[1] = p.m;
    }
    return;
  }
  int base = 0;
  for (int e0 = 0; e0 < p.num_experts; e0 += 32) {
    const int e = e0 + lane;
    int begin = 0, end = 0;
    if (e < p.num_experts) {
      begin = p.offsets[e];
      end = p.offsets[e + 1];
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

}  // namespace moectl::cuda::kernel
