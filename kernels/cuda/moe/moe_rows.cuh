// What the kernels that permute tokens to experts share: where tokens, choices and experts are, and the numbering of
// few choices by one block.
#pragma once

#include "kernels/cuda/runtime/device.cuh"
#include "kernels/ops.h"

namespace moectl::cuda::kernel {

inline constexpr int kMaxRanks = 72;

// MoeSource. As small as it can be: 72 of them are a kernel's arguments (4 KB).
struct Source {
  const std::byte* x;
  const int32_t* expert_idx;
  const float* expert_weight;
  int32_t* row_of;
  int num_choices, token_begin;
  int num_rows;  // of x; 0: packed (MoeSource)
};
struct Sources {
  Source of[kMaxRanks];
  int num_ranks, top_k;
};

// PlacementView of rank `me`; replica_begin null: every expert is here, in order.
struct Placement {
  const int32_t *replica_begin, *rank, *local;
  int num_logical, me;
};
inline Placement placement_of(const PlacementView& p, int64_t rank) {
  return {p.replica_begin.data, p.rank.data, p.local.data, p.replica_begin ? int(p.replica_begin.dim(0)) - 1 : 0,
          int(rank)};
}

// The physical expert of a choice of an expert by token `token` of source rank `source`; -1: none.
__device__ __forceinline__ int physical_expert(const Placement& p, int expert, int source, int token) {
  if (expert < 0 || expert >= p.num_logical) return -1;
  const int first = p.replica_begin[expert], num = p.replica_begin[expert + 1] - first;
  return num == 1 ? first : first + (source + token) % num;
}

// The index of that expert among the caller's `num_experts`; -1: not the caller's.
__device__ __forceinline__ int local_expert(const Placement& p, int num_experts, const Sources& sources, int source,
                                            int choice) {
  const Source& s = sources.of[source];
  int expert = s.expert_idx[choice];
  if (p.replica_begin) {
    const int physical = physical_expert(p, expert, source, s.token_begin + choice / sources.top_k);
    expert = physical >= 0 && p.rank[physical] == p.me ? p.local[physical] : -1;
  }
  return expert < num_experts ? expert : -1;
}

inline constexpr int kTile = 1024, kTileWarps = kTile / kWarp;  // choices, and threads, of number_few
inline constexpr int64_t kFewChoices = 4 * kTile;

// row_of = number among the choices of the same expert; offsets [num_experts + 1], at most max_rows. By one block of
// kTile threads. shared [(kTileWarps + 1) * num_experts]: of each warp of the tile and expert, how many choices stand
// before the warp's; then of each expert, how many there were.
__device__ __forceinline__ void number_few(const Sources& sources, const Placement& placement, int num_experts,
                                           int max_rows, uint32_t* shared, int32_t* offsets) {
  uint32_t *before = shared, *count = shared + kTileWarps * num_experts;
  __shared__ uint32_t warp_sums[kTileWarps];
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  for (int e = threadIdx.x; e < num_experts; e += kTile) count[e] = 0;
  for (int rank = 0; rank < sources.num_ranks; ++rank) {
    const Source& s = sources.of[rank];
    for (int begin = 0; begin < s.num_choices; begin += kTile) {
      for (int i = threadIdx.x; i < kTileWarps * num_experts; i += kTile) before[i] = 0;
      const int choice = begin + int(threadIdx.x);
      const int expert = choice < s.num_choices ? local_expert(placement, num_experts, sources, rank, choice) : -1;
      __syncthreads();
      const unsigned like_me = __match_any_sync(kAll, expert);
      const int mine = __popc(like_me & ((1u << lane) - 1));
      if (expert >= 0 && mine == 0) before[warp * num_experts + expert] = uint32_t(__popc(like_me));
      __syncthreads();
      for (int e = threadIdx.x; e < num_experts; e += kTile) {
        uint32_t sum = count[e];
        for (int w = 0; w < kTileWarps; ++w) {
          const uint32_t here = before[w * num_experts + e];
          before[w * num_experts + e] = sum;
          sum += here;
        }
        count[e] = sum;
      }
      __syncthreads();
      if (expert >= 0) s.row_of[choice] = int32_t(before[warp * num_experts + expert]) + mine;
      __syncthreads();
    }
  }
  __syncthreads();
  // Sums of the counts: within a warp, then of the warps before it.
  uint32_t carry = 0;
  for (int begin = 0; begin < num_experts; begin += kTile) {
    const int e = begin + int(threadIdx.x);
    uint32_t sum = e < num_experts ? count[e] : 0;
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const uint32_t left = __shfl_up_sync(kAll, sum, offset);
      if (lane >= offset) sum += left;
    }
    if (lane == kWarp - 1) warp_sums[warp] = sum;
    __syncthreads();
    uint32_t all = carry;
    for (int w = 0; w < kTileWarps; ++w) {
      if (w < warp) sum += warp_sums[w];
      all += warp_sums[w];
    }
    if (e < num_experts) offsets[e + 1] = min(int32_t(sum + carry), max_rows);
    carry = all;
    __syncthreads();
  }
  if (threadIdx.x == 0) offsets[0] = 0;
}

inline constexpr int64_t kMaxNumberShared = 47 << 10;  // bytes, without opting in to more
inline int64_t number_few_shared_bytes(int64_t num_experts) {
  return (kTileWarps + 1) * num_experts * int64_t(sizeof(uint32_t));
}

}  // namespace moectl::cuda::kernel

namespace moectl::cuda {
kernel::Sources sources_of(const MoePermuteArgs& args);
}  // namespace moectl::cuda
