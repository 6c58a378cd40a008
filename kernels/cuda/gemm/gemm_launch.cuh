// Launches the kernel of gemm_sm90.cuh: what fp8_gemm_sm90.cu and bf16_gemm_sm90.cu have in common. Host code, but only
// for files that are compiled for sm_90a.
#pragma once

#include <algorithm>
#include <climits>
#include <type_traits>

#include "core/base/check.h"
#include "kernels/cuda/gemm/gemm_config.h"
#include "kernels/cuda/gemm/gemm_sm90.cuh"
#include "kernels/cuda/gemm/tensor_map.h"
#include "kernels/cuda/runtime/check.h"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda {

// One product of either dtype. The map functions take the rows of one copy.
template <class WeightMap, class TokenMap>
struct GemmProblem {
  const char* name;
  kernel::GemmParams params;  // the operands' part; the tiling's part is filled in
  int64_t max_rows;
  WeightMap weight_map;  // (rows, up) -> map of w or w_up
  TokenMap token_map;    // (rows) -> map of A
};

constexpr int kMaxClusterSize = 8, kMaxSharedBytes = 232448;

// Largest number of clusters of this size that the current device runs at once, with kMaxSharedBytes for each block.
template <auto* kKernel>
int max_clusters(const cudaLaunchConfig_t& config, int cluster_size) {
  static PerDevice<int> known[kMaxClusterSize + 1];
  return known[cluster_size].get([&] {
    int clusters = 0;
    CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, kKernel, &config));
    return clusters;
  });
}

template <class S, class Problem>
void launch_gemm(const Problem& problem, const GemmConfig& c, cudaStream_t stream) {
  kernel::GemmParams p = problem.params;
  const int cluster_size = c.multicast * c.split;
  CHECK((c.split == 1 || S::kCanSplit) && S::kTokens % (8 * c.multicast) == 0 && cluster_size <= kMaxClusterSize,
        "{}: a split of {} and a multicast of {} do not divide the tile", problem.name, c.split, c.multicast);
  allow_shared_memory<kernel::gemm<S>>(kMaxSharedBytes);
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = unsigned(cluster_size);
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(cluster_size));
  config.blockDim = dim3(kernel::kGemmThreads);
  config.dynamicSmemBytes = kMaxSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = c.early_start ? 2 : 1;
  // Tiles: at most one partial tile per expert more than the rows fill.
  const int64_t groups = ((p.n + S::kOutCols - 1) / S::kOutCols + c.multicast - 1) / c.multicast;
  const int64_t m_tiles = p.offsets ? std::min(problem.max_rows, problem.max_rows / S::kTokens + p.num_experts)
                                    : (problem.max_rows + S::kTokens - 1) / S::kTokens;
  CHECK(m_tiles * groups <= INT_MAX, "{}: {} x {} tiles are too many", problem.name, m_tiles, groups);
  const int64_t clusters = std::min<int64_t>(m_tiles * groups, max_clusters<kernel::gemm<S>>(config, cluster_size));
  CHECK(clusters > 0, "{}: the device runs no cluster of {} blocks with {} bytes of shared memory", problem.name,
        cluster_size, config.dynamicSmemBytes);
  config.gridDim = dim3(unsigned(clusters * cluster_size));

  // A cluster that splits one tile and has no other may exchange partial sums in the memory of its stages: that costs
  // one round trip, and leaves room for more stages.
  constexpr int kEnoughStages = 7;
  const int head = S::head_bytes(p.num_experts), reduce = S::reduce_bytes(c.split) + S::kEpilogueBytes;
  p.one_tile = m_tiles * groups <= clusters;
  p.partials_in_stages = p.one_tile && c.split > 1 && kMaxSharedBytes - head - reduce < kEnoughStages * S::kStageBytes;
  const int others = p.partials_in_stages ? S::kEpilogueBytes : reduce,
            most = std::min(S::kMaxStages, (kMaxSharedBytes - head - others) / S::kStageBytes);
  p.multicast = c.multicast;
  p.split = c.split;
  p.stages = c.stages ? std::min(c.stages, most) : most;
  p.group_m = c.group_m;
  p.a_box = S::kTokens / c.multicast;
  p.weight_policy = S::kSwap ? hopper::kEvictFirst : hopper::kEvictNormal;
  p.token_policy = S::kSwap ? hopper::kEvictLast : hopper::kEvictNormal;
  CHECK(p.stages >= 2, "{}: {} bytes of shared memory hold {} stages", problem.name, kMaxSharedBytes, p.stages);
  CHECK(!p.partials_in_stages || S::reduce_bytes(c.split) <= p.stages * S::kStageBytes,
        "{}: {} stages do not hold {} bytes of partial sums", problem.name, p.stages, S::reduce_bytes(c.split));
  config.dynamicSmemBytes = size_t(head + others + p.stages * S::kStageBytes);

  const int weight_rows = S::kGated ? S::kWeightRows / 2 : S::kWeightRows;
  const CUtensorMap map_w = problem.weight_map(weight_rows, false),
                    map_w_up = problem.weight_map(weight_rows, S::kGated), map_a = problem.token_map(p.a_box),
                    map_a8 = problem.token_map(8);

  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel::gemm<S>, map_w, map_w_up, map_a, map_a8, p));
}

// The product by the tiling `c`, which must be one of those that are compiled.
template <bool kBf16, class Problem>
void launch_tiling(const Problem& problem, const GemmConfig& c, bool gated, cudaStream_t stream) {
  bool launched = false;
  const auto take = [&]<class S>(std::type_identity<S>) {
    if (launched || c.swap != S::kSwap || c.sub != S::kSub || c.tile_n != S::kTileN || gated != S::kGated) return;
    launch_gemm<S>(problem, c, stream);
    launched = true;
  };
  take(std::type_identity<kernel::GemmShape<false, 2, 128, false, kBf16>>());
  take(std::type_identity<kernel::GemmShape<false, 1, 128, false, kBf16>>());
  if constexpr (!kBf16) take(std::type_identity<kernel::GemmShape<false, 1, 176, false>>());
  take(std::type_identity<kernel::GemmShape<false, 2, 128, true, kBf16>>());
  take(std::type_identity<kernel::GemmShape<true, 1, 16, false, kBf16>>());
  take(std::type_identity<kernel::GemmShape<true, 1, 64, false, kBf16>>());
  take(std::type_identity<kernel::GemmShape<true, 2, 16, true, kBf16>>());
  take(std::type_identity<kernel::GemmShape<true, 2, 64, true, kBf16>>());
  CHECK(launched, "{}: no kernel for swap {} sub {} tile_n {} gated {}", problem.name, c.swap, c.sub, c.tile_n, gated);
}

}  // namespace moectl::cuda
