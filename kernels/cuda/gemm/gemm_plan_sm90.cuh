// What a thread block of the kernel in gemm_sm90.cuh works on: its parameters, the shape of its tiles, its shared
// memory and its work items in order. Owns no data. sm_90a only.
#pragma once

#include <cstdint>

#include "kernels/cuda/runtime/hopper.cuh"

namespace moectl::cuda::kernel {

using namespace hopper;

constexpr int kGemmThreads = 384, kConsumerThreads = 256, kConsumerWarps = 8;
constexpr int kProducerWarps = 4, kFewRowGroups = 4;
constexpr int kScaleBlock = 128;
constexpr int kTileK = 128;  // bytes of a row in a stage: 128 FP8 or 64 BF16 elements

struct GemmParams {
  void* out;
  bool out_bf16;
  int m, n, num_kb;  // m: rows of the dense case; n: columns of out
  const float *a_scales, *w_scales, *w_up_scales;
  int a_scale_stride, w_scale_stride;
  const int32_t* offsets;  // null: dense
  bool offsets_settled;    // they may be read before the preceding kernel is done
  int num_experts, expert_begin;
  int multicast, split, stages, group_m;
  bool one_tile;                         // a cluster has at most one tile
  bool partials_in_stages;               // one_tile, and split-K's partial sums take the place of the stages
  int a_box;                             // token rows per copy of map_a; divides the token tile / multicast
  uint64_t weight_policy, token_policy;  // of the L2 cache
};

template <bool kSwap_, int kSub_, int kTileN_, bool kGated_, bool kBf16_ = false>
struct GemmShape {
  static constexpr bool kSwap = kSwap_, kGated = kGated_, kBf16 = kBf16_;
  static constexpr int kSub = kSub_, kTileN = kTileN_;
  static constexpr int kTileM = 128 * kSub;
  static constexpr int kTokens = kSwap ? kTileN : kTileM, kWeightRows = kSwap ? kTileM : kTileN;
  static constexpr int kOutCols = kGated ? kWeightRows / 2 : kWeightRows;  // columns of out per tile
  static constexpr int kWeightBytes = kWeightRows * kTileK, kTokenBytes = kTokens * kTileK;
  // Scales of a stage: copies begin and end at multiples of 16 bytes, so up to three floats precede the first one that
  // is used.
  static constexpr int kTokenScales = kTokens + 4, kWeightScales = 8, kWeightScaleBytes = 128;
  static constexpr int kTokenScaleBytes = (kTokenScales * 4 + 127) / 128 * 128,
                       kScaleBytes = kBf16 ? 0 : kTokenScaleBytes + (kGated ? 2 : 1) * kWeightScaleBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes + kScaleBytes;
  static constexpr int kRegs = kSub * kTileN / 2, kVectors = kRegs / 4;  // accumulators per thread; float4 of them
  // Two products in flight where the registers allow it.
  static constexpr int kBuffers = !kBf16 && kRegs + kTileN <= 192 ? 2 : 1;
  // Weight rows go to the tensor cores through registers: 3 to 6 % faster for this shape, no gain or a loss for others.
  static constexpr bool kFromRegs = kSwap && kSub == 1 && kTileN == 64 && !kBf16;
  // A unit is what makes four outputs: one vector, or where gated one of the gate and one of the up projection.
  static constexpr int kUnit = kGated ? 2 : 1, kUnits = kVectors / kUnit;
  static_assert(!kGated || (kSwap ? kSub == 2 : kTileN % 128 == 0));
  static constexpr bool kCanSplit = kSwap || (kSub == 1 && kTileN <= 128 && !kGated);
  static constexpr int kMaxStages = 12;
  // Split-K: a block reduces at most so many units, and receives them from every block of its split.
  static constexpr int units_each(int split) { return (kUnits + split - 1) / split; }
  static constexpr int reduce_bytes(int split) {
    return split == 1 ? 0 : split * units_each(split) * kUnit * kConsumerThreads * 16;
  }
  // The epilogue stages outputs in shared memory, so that whole lines are written. Per warp: 16 rows of 32 columns
  // (straight) or 8 tokens of 16 columns (swapped); rows padded by 16 bytes.
  static constexpr int kEpiloguePitch = kSwap ? 20 : 36, kEpilogueFloats = (kSwap ? 8 : 16) * kEpiloguePitch,
                       kEpilogueBytes = kConsumerWarps * kEpilogueFloats * 4;
  // Shared memory: barriers and the table of tiles, (1024-aligned) the stages' weights, tokens and scales, split-K's
  // partial sums, the epilogue's rows.
  static constexpr int kTableOffset = 512;
  static constexpr int head_bytes(int num_experts) {
    return (kTableOffset + (num_experts + 1) * 8 + 1023) / 1024 * 1024;
  }
};

__device__ __forceinline__ int log2_of(int power_of_two) {
  return __ffs(power_of_two) - 1;
}

// One block's view of itself: its place in the cluster, and what lies where in its shared memory.
template <class S>
struct GemmBlock {
  const GemmParams& p;
  uint8_t* smem;
  uint32_t base = smem_addr(smem);
  // mbarriers: full and empty of each stage, full and empty of the partial sums.
  uint32_t full = base, empty = base + 8 * S::kMaxStages, partials_full = base + 16 * S::kMaxStages,
           partials_empty = partials_full + 8;
  int* tile_begin = reinterpret_cast<int*>(smem + S::kTableOffset);
  int* row_begin = tile_begin + p.num_experts + 1;
  uint32_t weights = base + S::head_bytes(p.num_experts), tokens = weights + p.stages * S::kWeightBytes,
           scales = tokens + p.stages * S::kTokenBytes,
           partials = p.partials_in_stages ? weights : scales + p.stages * S::kScaleBytes,
           epilogue = scales + p.stages * S::kScaleBytes + (p.partials_in_stages ? 0 : S::reduce_bytes(p.split));

  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // multicast is a power of two: it divides a tile's tokens.
  int multicast_bits = log2_of(p.multicast), rank = int(cluster_ctarank());
  int multicast_idx = rank & (p.multicast - 1), split_idx = rank >> multicast_bits;
  int col_tiles = (p.n + S::kOutCols - 1) / S::kOutCols, col_groups = (col_tiles + p.multicast - 1) >> multicast_bits;

  // The generic pointer to a shared memory address.
  template <class T>
  __device__ __forceinline__ T* at(uint32_t address, int offset = 0) const {
    return reinterpret_cast<T*>(smem + (address - base) + offset);
  }
  // The rank in the cluster of the block that takes part `split` of k of this block's tile.
  __device__ __forceinline__ int split_rank(int split) const { return split * p.multicast + multicast_idx; }
};

// A tile of one block.
struct Tile {
  int expert, row, rows;  // its first token row in A, and how many of them belong to the expert (may exceed the tile)
  int col;                // first column of out
};

// A tile, and the k-blocks of it that the block multiplies.
struct WorkItem {
  Tile tile;
  int kb_begin, kb_end;
  bool split;  // the cluster divides k of the tile
};

// A block's work items in order; each role of the block iterates over its own copy. tile_begin[e]: number of tiles
// before expert e; row_begin[e]: its first row; both in shared memory. The blocks of a cluster that divide k take whole
// tiles as long as every block of the grid gets one, and split the tiles of the last, partial wave.
template <class S>
struct GemmSchedule {
  const GemmParams& p;
  const int *tile_begin, *row_begin;
  int col_groups, multicast_idx, split_idx;
  int cluster = int(cluster_id_x()), num_clusters = int(num_clusters_x());
  int num_tiles = tile_begin[p.num_experts], whole_waves = p.one_tile ? 0 : num_tiles / (num_clusters * p.split);
  int wave = 0, expert = 0;

  __device__ __forceinline__ bool next(WorkItem& work) {
    work.split = S::kCanSplit && p.split > 1 && wave >= whole_waves;
    const int t = !S::kCanSplit || p.split == 1 ? wave * num_clusters + cluster
                  : work.split ? whole_waves * num_clusters * p.split + (wave - whole_waves) * num_clusters + cluster
                               : (wave * num_clusters + cluster) * p.split + split_idx;
    ++wave;
    if (t >= num_tiles) return false;
    work.tile = locate(t);
    work.kb_begin = work.split ? p.num_kb * split_idx / p.split : 0;
    work.kb_end = work.split ? p.num_kb * (split_idx + 1) / p.split : p.num_kb;
    return true;
  }

  __device__ __forceinline__ Tile locate(int t) {
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

// One warp: the prefix sums of the table, 32 experts at a time.
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
