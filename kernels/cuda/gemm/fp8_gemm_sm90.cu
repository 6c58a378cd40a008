// Launcher of fp8_gemm (gemm_sm90.cuh has the kernel).
#include "kernels/cuda/gemm/fp8_gemm.h"
#include "kernels/cuda/gemm/gemm_launch.cuh"

namespace moectl::cuda {
namespace {

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

Fp8Weight fp8_weight_at(const void* data, const void* scales, int64_t batch, int64_t n, int64_t k) {
  CHECK(batch > 0 && n > 0 && n % 8 == 0 && k > 0 && k % kFp8Block == 0,
        "an FP8 weight of [{}, {}, {}]: n must be a multiple of 8 and k of 128", batch, n, k);
  return {.data = static_cast<const uint8_t*>(data),
          .scales = static_cast<const float*>(scales),
          .batch = batch,
          .n = n,
          .k = k,
          .scale_stride = ((n + kFp8Block - 1) / kFp8Block + 3) / 4 * 4};
}

GemmConfig fp8_gemm_config(const Fp8GemmArgs& a) {
  return choose_gemm_config({.rows = a.a.rows,
                             .n = a.w.n,
                             .num_kb = a.w.k / kFp8Block,
                             .num_experts = a.num_experts,
                             .num_multiprocessors = current_device_info().num_multiprocessors,
                             .grouped = a.expert_offsets != nullptr,
                             .gated = a.w_up.data != nullptr,
                             .deterministic = a.deterministic});
}

void fp8_gemm(const Fp8GemmArgs& a, const GemmConfig& c, Stream stream) {
  check(a);
  if (a.a.rows == 0) return;
  const bool gated = a.w_up.data != nullptr;
  const GemmProblem problem{"fp8_gemm",
                            kernel::GemmParams{.out = a.out,
                                               .out_bf16 = a.out_type == DType::kBF16,
                                               .m = int(a.a.rows),
                                               .n = int(a.w.n),
                                               .num_kb = int(a.w.k / kFp8Block),
                                               .a_scales = a.a.scales,
                                               .w_scales = a.w.scales,
                                               .w_up_scales = a.w_up.scales,
                                               .a_scale_stride = int(a.a.scale_stride),
                                               .w_scale_stride = int(a.w.scale_stride),
                                               .offsets = a.expert_offsets,
                                               .offsets_settled = a.offsets_settled,
                                               .num_experts = int(a.num_experts),
                                               .expert_begin = int(a.expert_begin)},
                            a.a.rows, [&](int rows, bool up) { return weight_map(up ? a.w_up : a.w, rows); },
                            [&](int rows) { return token_map(a.a, rows); }};
  launch_tiling<false>(problem, c, gated, static_cast<cudaStream_t>(stream.handle));
}

void fp8_gemm(const Fp8GemmArgs& a, Stream stream) {
  fp8_gemm(a, fp8_gemm_config(a), stream);
}

}  // namespace moectl::cuda
