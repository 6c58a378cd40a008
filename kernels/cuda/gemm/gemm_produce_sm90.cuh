// The producer warps of the kernel in gemm_sm90.cuh: one thread per kind of operand fills the stages by TMA. Owns no
// data. sm_90a only.
#pragma once

#include "kernels/cuda/gemm/gemm_plan_sm90.cuh"

namespace moectl::cuda::kernel {

// Each kind of operand has a struct: begin(tile) before the k-blocks of a tile, then load(kb, stage, full) for each,
// which arrives at the barrier `full` with the bytes that it loads. One thread each, so that it needs few registers.

template <class S>
struct WeightProducer {
  const GemmBlock<S>& block;
  const CUtensorMap *map, *map_up;
  int col, batch;

  __device__ __forceinline__ void begin(const Tile& tile) {
    col = tile.col;
    batch = block.p.expert_begin + tile.expert;
  }
  __device__ __forceinline__ void load(int kb, int stage, uint32_t full) const {
    const uint32_t dst = block.weights + stage * S::kWeightBytes;
    mbarrier_arrive_expect_tx(full, S::kWeightBytes);
    tma_load_4d(dst, map, full, 0, col, kb, batch, block.p.weight_policy);
    if constexpr (S::kGated)
      tma_load_4d(dst + S::kWeightBytes / 2, map_up, full, 0, col, kb, batch, block.p.weight_policy);
  }
};

template <class S>
struct TokenProducer {
  const GemmBlock<S>& block;
  const CUtensorMap *map_a, *map_a8;
  uint16_t mask;  // the blocks of the cluster that multiply the same tokens
  const CUtensorMap* map;
  int box, boxes, row;

  __device__ __forceinline__ void begin(const Tile& tile) {
    // Few rows are loaded in groups of eight (the swizzle's period), so that unused rows are not read.
    const int rows = min(tile.rows, S::kTokens), row_groups = (rows + 7) / 8;
    const bool few = S::kSwap && row_groups <= kFewRowGroups && row_groups * 8 < S::kTokens;
    box = few ? 8 : block.p.a_box;
    boxes = (rows + box - 1) / box;
    map = few ? map_a8 : map_a;
    row = tile.row;
  }
  __device__ __forceinline__ void load(int kb, int stage, uint32_t full) const {
    const int multicast = block.p.multicast;
    const uint32_t dst = block.tokens + stage * S::kTokenBytes;
    mbarrier_arrive_expect_tx(full, boxes * box * kTileK);
    for (int b = block.multicast_idx; b < boxes; b += multicast) {
      if (multicast > 1)
        tma_load_3d_multicast(dst + b * box * kTileK, map, full, 0, row + b * box, kb, mask, block.p.token_policy);
      else
        tma_load_3d(dst + b * box * kTileK, map, full, 0, row + b * box, kb, block.p.token_policy);
    }
  }
};

// How many of `count` floats from `begin`, rounded down to a multiple of 4, lie within a row of `stride`.
__device__ __forceinline__ int scales_from(int begin, int count, int stride) {
  return max(0, min(count, stride - (begin & ~3)));
}

template <class S>
struct WeightScaleProducer {
  const GemmBlock<S>& block;
  int bytes;
  int64_t first;

  __device__ __forceinline__ void begin(const Tile& tile) {
    const GemmParams& p = block.p;
    const int scale_block = tile.col / kScaleBlock;
    bytes = 4 * scales_from(scale_block, S::kWeightScales, p.w_scale_stride);
    first = int64_t(p.expert_begin + tile.expert) * p.num_kb * p.w_scale_stride + (scale_block & ~3);
  }
  __device__ __forceinline__ void load(int kb, int stage, uint32_t full) const {
    const GemmParams& p = block.p;
    const uint32_t dst = block.scales + stage * S::kScaleBytes + S::kTokenScaleBytes;
    mbarrier_arrive_expect_tx(full, bytes * (S::kGated ? 2 : 1));
    if (bytes == 0) return;  // a block of a multicast group that has no columns
    bulk_load(dst, p.w_scales + first + kb * p.w_scale_stride, bytes, full);
    if constexpr (S::kGated)
      bulk_load(dst + S::kWeightScaleBytes, p.w_up_scales + first + kb * p.w_scale_stride, bytes, full);
  }
};

template <class S>
struct TokenScaleProducer {
  const GemmBlock<S>& block;
  int bytes;
  const float* first;

  __device__ __forceinline__ void begin(const Tile& tile) {
    bytes = 4 * scales_from(tile.row, S::kTokenScales, block.p.a_scale_stride);
    first = block.p.a_scales + (tile.row & ~3);
  }
  __device__ __forceinline__ void load(int kb, int stage, uint32_t full) const {
    mbarrier_arrive_expect_tx(full, bytes);
    bulk_load(block.scales + stage * S::kScaleBytes, first + int64_t(kb) * block.p.a_scale_stride, bytes, full);
  }
};

// Fills the stages with one kind of operand, for all work items of the block.
template <class S, class Producer>
__device__ __forceinline__ void produce(const GemmBlock<S>& block, GemmSchedule<S>& schedule, Producer producer) {
  WorkItem work;
  for (int stage = 0, phase = 0; schedule.next(work);) {
    producer.begin(work.tile);
    for (int kb = work.kb_begin; kb < work.kb_end; ++kb) {
      mbarrier_wait(block.empty + 8 * stage, phase ^ 1);
      producer.load(kb, stage, block.full + 8 * stage);
      if (++stage == block.p.stages) stage = 0, phase ^= 1;
    }
  }
}

// The elected thread of each producer warp. Weights need not wait for the preceding kernel, which does not write them.
template <class S>
__device__ __forceinline__ void produce(const GemmBlock<S>& block, GemmSchedule<S>& schedule, const CUtensorMap* map_w,
                                        const CUtensorMap* map_w_up, const CUtensorMap* map_a,
                                        const CUtensorMap* map_a8) {
  const int multicast = block.p.multicast;
  if (block.warp == 0) {
    grid_dependency_launch();
    produce(block, schedule, WeightProducer<S>{block, map_w, map_w_up});
  } else if (block.warp == 1) {
    grid_dependency_wait();
    const uint16_t mask = uint16_t(((1u << multicast) - 1) << (block.split_idx * multicast));
    produce(block, schedule, TokenProducer<S>{block, map_a, map_a8, mask});
  } else if (!S::kBf16 && block.warp == 2) {
    produce(block, schedule, WeightScaleProducer<S>{block});
  } else if (!S::kBf16) {
    grid_dependency_wait();
    produce(block, schedule, TokenScaleProducer<S>{block});
  }
}

}  // namespace moectl::cuda::kernel
