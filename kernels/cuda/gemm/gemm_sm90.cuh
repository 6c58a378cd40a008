// The kernel of fp8_gemm and bf16_gemm: out = A W^T (shapes and layouts in fp8_gemm.h, bf16_gemm.h). sm_90a only.
//
// A thread block has three warpgroups. The first has four producer warps, one thread of each per kind of operand, which
// fill the stages by TMA (gemm_produce_sm90.cuh): a stage is one tile of weights and one of tokens (128 bytes of k,
// swizzled) with their scales. The other two are consumers: each multiplies 64 * kSub rows of the tile
// (gemm_consume_sm90.cuh), and stores its outputs (gemm_epilogue_sm90.cuh).
//
// The grid is persistent: a cluster takes tiles c, c + clusters, ... of all experts' tiles, found in a table that each
// block computes from expert_offsets (gemm_plan_sm90.cuh). In a cluster `multicast` blocks take neighboring weight
// tiles and load their common tokens once, and `split` blocks divide k of the tiles of the last wave (split-K).
//
// Two orientations: tokens on wgmma's M axis (many rows), or weight rows there and tokens on N (`kSwap`, few rows: the
// tensor core's M = 64 is then filled, and the time is that of reading the weights). An output's bits are the same in
// all tilings that divide k alike.
#pragma once

#include "kernels/cuda/gemm/gemm_consume_sm90.cuh"
#include "kernels/cuda/gemm/gemm_epilogue_sm90.cuh"
#include "kernels/cuda/gemm/gemm_plan_sm90.cuh"
#include "kernels/cuda/gemm/gemm_produce_sm90.cuh"
#include "kernels/cuda/runtime/hopper.cuh"

namespace moectl::cuda::kernel {

template <class S>
__device__ __forceinline__ void init_barriers(const GemmBlock<S>& block) {
  const GemmParams& p = block.p;
  if (block.lane < p.stages) {
    mbarrier_init(block.full + 8 * block.lane, S::kBf16 ? 2 : kProducerWarps);
    mbarrier_init(block.empty + 8 * block.lane, kConsumerWarps * p.multicast);
  }
  if (block.lane == 0) {
    mbarrier_init(block.partials_full, 1);
    mbarrier_init(block.partials_empty, kConsumerWarps * p.split);
  }
}

template <class S>
__global__ void __launch_bounds__(kGemmThreads, 1)
    gemm(const __grid_constant__ CUtensorMap map_w, const __grid_constant__ CUtensorMap map_w_up,
         const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_a8,
         const __grid_constant__ GemmParams p) {
  extern __shared__ __align__(1024) uint8_t smem[];
  const GemmBlock<S> block{p, smem};
  if (block.warp == 0) {
    init_barriers(block);
    if (block.lane == 0) {
      tma_prefetch_map(&map_w);
      tma_prefetch_map(&map_a);
    }
    fence_mbarrier_init();
    __syncwarp();
    if (p.offsets && !p.offsets_settled) grid_dependency_wait();
    fill_tile_table(block.tile_begin, block.row_begin, p, S::kTokens, block.col_groups);
  }
  if (p.multicast * p.split > 1)
    cluster_sync();
  else
    __syncthreads();

  GemmSchedule<S> schedule{
      p, block.tile_begin, block.row_begin, block.col_groups, block.multicast_idx, block.split_idx};
  if (block.warp < kProducerWarps) {
    setmaxnreg_dec<40>();
    if (elect_one()) produce(block, schedule, &map_w, &map_w_up, &map_a, &map_a8);
  } else {
    setmaxnreg_inc<232>();
    GemmConsumer<S> consumer{block};
    for (WorkItem work; schedule.next(work);) {
      Accumulators<S> acc;
      consume(consumer, work, acc);
      if (S::kCanSplit && work.split)
        reduce(consumer, work.tile, acc);
      else
        store(consumer, work.tile, acc);
    }
  }
  __syncwarp();
  // No block exits while another block of the cluster may still write to its shared memory or barriers. After a single
  // split tile none can: this block has received all partial sums, and with them all releases.
  if (p.multicast * p.split > 1 && !(p.multicast == 1 && p.one_tile)) cluster_sync();
}

}  // namespace moectl::cuda::kernel
