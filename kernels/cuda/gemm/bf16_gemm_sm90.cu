// Launcher of bf16_gemm (gemm_sm90.cuh has the kernel). A stage's 128 bytes of k are 64 elements.
#include "kernels/cuda/gemm/bf16_gemm.h"
#include "kernels/cuda/gemm/gemm_launch.cuh"

namespace moectl::cuda {
namespace {

constexpr int64_t kBlock = 64, kBlockBytes = 128;

CUtensorMap weight_map(const Bf16GemmArgs& a, const void* data, int rows) {
  return make_tensor_map({.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                          .data = data,
                          .dims = {kBlock, a.n, a.k / kBlock, a.batch},
                          .stride_bytes = {2 * a.k, kBlockBytes, 2 * a.n * a.k},
                          .box = {int(kBlock), rows, 1, 1},
                          .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
}

CUtensorMap token_map(const Bf16GemmArgs& a, int rows) {
  return make_tensor_map({.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                          .data = a.a,
                          .dims = {kBlock, a.rows, a.k / kBlock},
                          .stride_bytes = {2 * a.k, kBlockBytes},
                          .box = {int(kBlock), rows, 1},
                          .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
}

}  // namespace

GemmConfig bf16_gemm_config(const Bf16GemmArgs& a) {
  GemmConfig c = choose_gemm_config({.rows = a.rows,
                                     .n = a.n,
                                     .num_kb = a.k / kBlock,
                                     .num_experts = a.num_experts,
                                     .num_multiprocessors = current_device_info().num_multiprocessors,
                                     .grouped = a.expert_offsets != nullptr,
                                     .gated = a.w_up != nullptr,
                                     .deterministic = a.deterministic});
  if (!c.swap && c.tile_n == 176) c.tile_n = 128;
  return c;
}

void bf16_gemm(const Bf16GemmArgs& a, const GemmConfig& c, Stream stream) {
  CHECK(a.a && a.w && a.out, "bf16_gemm: an operand is missing");
  CHECK(a.k > 0 && a.k % kBlock == 0 && a.n > 0 && a.n % 8 == 0 && a.n <= INT_MAX / 2 && a.rows >= 0 &&
            a.rows <= INT_MAX / 2,
        "bf16_gemm: [{}, {}] x [{}, {}]: k must be a multiple of 64 and n of 8", a.rows, a.k, a.n, a.k);
  CHECK(a.out_type == DType::kF32 || a.out_type == DType::kBF16, "bf16_gemm: out must be f32 or bf16");
  CHECK(a.num_experts >= 1 && a.num_experts <= kMaxGemmExperts && (a.expert_offsets || a.num_experts == 1),
        "bf16_gemm: {} experts", a.num_experts);
  CHECK(a.expert_begin >= 0 && a.expert_begin + a.num_experts <= a.batch, "bf16_gemm: experts {} .. {} of {}",
        a.expert_begin, a.expert_begin + a.num_experts, a.batch);
  if (a.rows == 0) return;
  const bool gated = a.w_up != nullptr;
  const GemmProblem problem{"bf16_gemm",
                            kernel::GemmParams{.out = a.out,
                                               .out_bf16 = a.out_type == DType::kBF16,
                                               .m = int(a.rows),
                                               .n = int(a.n),
                                               .num_kb = int(a.k / kBlock),
                                               .offsets = a.expert_offsets,
                                               .offsets_settled = a.offsets_settled,
                                               .num_experts = int(a.num_experts),
                                               .expert_begin = int(a.expert_begin)},
                            a.rows, [&](int rows, bool up) { return weight_map(a, up ? a.w_up : a.w, rows); },
                            [&](int rows) { return token_map(a, rows); }};
  launch_tiling<true>(problem, c, gated, static_cast<cudaStream_t>(stream.handle));
}

void bf16_gemm(const Bf16GemmArgs& a, Stream stream) {
  bf16_gemm(a, bf16_gemm_config(a), stream);
}

}  // namespace moectl::cuda
