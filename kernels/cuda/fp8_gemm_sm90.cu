// Launcher of fp8_gemm (kernels/cuda/fp8_gemm.cuh has the kernel): chooses the tiling, encodes the tensor maps,
// launches.
#include <algorithm>
#include <climits>
#include <map>
#include <mutex>

#include "core/base/check.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/fp8_gemm.cuh"
#include "kernels/cuda/tensor_map.h"

namespace moectl::cuda {
namespace {

constexpr int kMaxSharedBytes = 232448;

CUtensorMap weight_map(const Fp8Weight& w, int rows) {
  return make_tensor_map({.data = w.data,
                          .dims = {kFp8Block, w.n, w.k / kFp8Block, w.batch},
                          .stride_bytes = {kFp8Block, w.n * kFp8Block, w.n * w.k},
                          .box = {kFp8Block, rows, 1, 1},
                          .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
}

CUtensorMap token_map(const Fp8Rows& a, int rows) {
  return make_tensor_map({.data = a.data,
                          .dims = {kFp8Block, a.rows, a.k / kFp8Block},
                          .stride_bytes = {kFp8Block, a.rows * kFp8Block},
                          .box = {kFp8Block, rows, 1},
                          .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
}

// Largest number of clusters that the device runs at once; asked once for each kernel and launch shape.
template <class Kernel>
int max_clusters(Kernel* kernel, const cudaLaunchConfig_t& config, int cluster_size) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int, size_t>, int> known;  // device, cluster size, shared memory
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  std::lock_guard lock(mutex);
  auto [it, fresh] = known.try_emplace({device, cluster_size, config.dynamicSmemBytes}, 0);
  if (fresh) CUDA_CHECK(cudaOccupancyMaxActiveClusters(&it->second, kernel, &config));
  return it->second;
}

template <class S>
void launch(const Fp8GemmArgs& a, const Fp8GemmConfig& c, cudaStream_t stream) {
  const int64_t n = a.w.n, num_kb = a.w.k / kFp8Block;
  const int cluster_size = c.multicast * c.split;
  CHECK((c.split == 1 || (S::kCanSplit && S::kUnits % c.split == 0)) && S::kTokens % c.multicast == 0 && cluster_size <= 8,
        "fp8_gemm: a split of {} and a multicast of {} do not divide the tile", c.split, c.multicast);
  const int head = S::head_bytes(int(a.num_experts)), reduce = S::reduce_bytes(c.split);
  const int most = std::min(S::kMaxStages, (kMaxSharedBytes - head - reduce) / S::kStageBytes);
  const int stages = c.stages ? std::min(c.stages, most) : most;
  CHECK(stages >= 2, "fp8_gemm: {} bytes of shared memory hold {} stages", kMaxSharedBytes, stages);
  const int a_box = S::kTokens / c.multicast;
  CHECK(a_box <= 256 && a_box % 8 == 0, "fp8_gemm: {} token rows a copy", a_box);

  kernel::Fp8GemmParams p{.out = a.out,
                          .out_bf16 = a.out_type == DType::kBF16,
                          .m = int(a.a.rows),
                          .n = int(n),
                          .num_kb = int(num_kb),
                          .a_scales = a.a.scales,
                          .w_scales = a.w.scales,
                          .w_up_scales = a.w_up.scales,
                          .a_scale_stride = int(a.a.scale_stride),
                          .w_scale_stride = int(a.w.scale_stride),
                          .offsets = a.expert_offsets,
                          .num_experts = int(a.num_experts),
                          .expert_begin = int(a.expert_begin),
                          .multicast = c.multicast,
                          .split = c.split,
                          .stages = stages,
                          .group_m = c.group_m,
                          .in_turn = c.in_turn,
                          .a_box = a_box,
                          .weight_policy = S::kSwap ? hopper::kEvictFirst : hopper::kEvictNormal,
                          .token_policy = S::kSwap ? hopper::kEvictLast : hopper::kEvictNormal};
  const Fp8Weight& up = S::kGated ? a.w_up : a.w;
  const int weight_rows = S::kGated ? S::kWeightRows / 2 : S::kWeightRows;
  const CUtensorMap map_w = weight_map(a.w, weight_rows), map_w_up = weight_map(up, weight_rows);
  const CUtensorMap map_a = token_map(a.a, a_box), map_a8 = token_map(a.a, 8);

  auto* const kernel = kernel::fp8_gemm<S>;
  static const cudaError_t prepared =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxSharedBytes);
  CUDA_CHECK(prepared);
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = unsigned(cluster_size);
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(cluster_size));
  config.blockDim = dim3(kernel::kFp8GemmThreads);
  config.dynamicSmemBytes = size_t(head + reduce + stages * S::kStageBytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = c.early_start ? 2 : 1;
  // Tiles: at most one partial tile an expert more than the rows fill.
  const int64_t groups = ((n + S::kOutCols - 1) / S::kOutCols + c.multicast - 1) / c.multicast;
  const int64_t m_tiles = a.expert_offsets ? std::min(a.a.rows, a.a.rows / S::kTokens + a.num_experts)
                                           : (a.a.rows + S::kTokens - 1) / S::kTokens;
  CHECK(m_tiles * groups <= INT_MAX, "fp8_gemm: {} x {} tiles are too many", m_tiles, groups);
  const int64_t clusters = std::min<int64_t>(m_tiles * groups, max_clusters(kernel, config, cluster_size));
  CHECK(clusters > 0, "fp8_gemm: the device runs no cluster of {} blocks with {} bytes of shared memory", cluster_size,
        config.dynamicSmemBytes);
  config.gridDim = dim3(unsigned(clusters * cluster_size));
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, map_w, map_w_up, map_a, map_a8, p));
}

void check(const Fp8GemmArgs& a) {
  const Fp8Weight& w = a.w;
  CHECK(w.data && w.scales && a.a.data && a.a.scales && a.out, "fp8_gemm: an operand is missing");
  CHECK(a.a.k == w.k && w.k > 0 && w.k % kFp8Block == 0, "fp8_gemm: rows of {} and a weight of [{}, {}]", a.a.k, w.n,
        w.k);
  CHECK(w.n > 0 && w.n % 8 == 0 && w.n <= INT_MAX / 2 && a.a.rows <= INT_MAX / 2, "fp8_gemm: [{}, {}] x [{}, {}]",
        a.a.rows, a.a.k, w.n, w.k);
  CHECK(a.a.scale_stride >= a.a.rows && a.a.scale_stride % 4 == 0 && w.scale_stride * kFp8Block >= w.n &&
            w.scale_stride % 4 == 0,
        "fp8_gemm: rows of {} and {} scales for {} rows and {} columns", a.a.scale_stride, w.scale_stride, a.a.rows,
        w.n);
  CHECK(a.out_type == DType::kF32 || a.out_type == DType::kBF16, "fp8_gemm: out must be f32 or bf16");
  CHECK(a.num_experts >= 1 && a.num_experts <= kMaxFp8Experts && (a.expert_offsets || a.num_experts == 1),
        "fp8_gemm: {} experts", a.num_experts);
  CHECK(a.expert_begin >= 0 && a.expert_begin + a.num_experts <= w.batch, "fp8_gemm: experts {} .. {} of {}",
        a.expert_begin, a.expert_begin + a.num_experts, w.batch);
  CHECK(!a.w_up.data || (a.w_up.n == w.n && a.w_up.k == w.k && a.w_up.batch == w.batch),
        "fp8_gemm: gate [{}, {}, {}] and up [{}, {}, {}] differ", w.batch, w.n, w.k, a.w_up.batch, a.w_up.n, a.w_up.k);
}

}  // namespace

Fp8GemmConfig fp8_gemm_config(const Fp8GemmArgs& a) {
  const bool gated = a.w_up.data != nullptr;
  const int64_t rows = a.expert_offsets ? (a.a.rows + a.num_experts - 1) / a.num_experts : a.a.rows;
  Fp8GemmConfig c;
  if (rows > 128) {
    c.sub = 2, c.tile_n = 128, c.group_m = 8;
    if (!gated && a.w.n % 128 != 0) c.sub = 1, c.tile_n = 176, c.group_m = 16;
    return c;
  }
  c.swap = true;
  c.tile_n = rows <= 16 ? 16 : rows <= 64 || gated ? 64 : 128;
  c.sub = gated ? 2 : 1;
  if (!a.deterministic) c.split = c.tile_n == 16 ? 2 : 4;
  return c;
}

void fp8_gemm(const Fp8GemmArgs& a, const Fp8GemmConfig& c, Stream stream) {
  check(a);
  if (a.a.rows == 0) return;
  const auto s = static_cast<cudaStream_t>(stream.handle);
  const bool gated = a.w_up.data != nullptr;
  const auto is = [&](bool swap, int sub, int tile_n, bool g) {
    return c.swap == swap && c.sub == sub && c.tile_n == tile_n && gated == g;
  };
#define MOECTL_TRY(SWAP, SUB, TILE_N, GATED) \
  if (is(SWAP, SUB, TILE_N, GATED)) return launch<kernel::Fp8GemmShape<SWAP, SUB, TILE_N, GATED>>(a, c, s)
  MOECTL_TRY(false, 2, 128, false);
  MOECTL_TRY(false, 1, 128, false);
  MOECTL_TRY(false, 1, 176, false);
  MOECTL_TRY(false, 2, 128, true);
  MOECTL_TRY(true, 1, 16, false);
  MOECTL_TRY(true, 1, 64, false);
  MOECTL_TRY(true, 1, 128, false);
  MOECTL_TRY(true, 2, 16, true);
  MOECTL_TRY(true, 2, 64, true);
#ifdef MOECTL_FP8_GEMM_TRIALS
  MOECTL_TRY(false, 1, 160, false);
  MOECTL_TRY(false, 1, 192, false);
  MOECTL_TRY(false, 2, 96, false);
  MOECTL_TRY(true, 1, 32, false);
  MOECTL_TRY(true, 2, 16, false);
  MOECTL_TRY(true, 2, 64, false);
  MOECTL_TRY(true, 2, 128, false);
#endif
#undef MOECTL_TRY
  CHECK(false, "fp8_gemm: no kernel for swap {} sub {} tile_n {} gated {}", c.swap, c.sub, c.tile_n, gated);
}

void fp8_gemm(const Fp8GemmArgs& a, Stream stream) {
  fp8_gemm(a, fp8_gemm_config(a), stream);
}

}  // namespace moectl::cuda
