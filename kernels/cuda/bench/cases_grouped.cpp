// Feed-forwards of many experts, whose row counts are on the device: a decode step's few rows per expert (bound by
// reading weights) and a prompt's many, against one product per expert through cuBLASLt.
#include <numeric>

#include "kernels/cuda/bench/bench.h"
#include "kernels/cuda/gemm/bf16_gemm.h"
#include "kernels/cuda/gemm/cublaslt.h"
#include "kernels/cuda/gemm/fp8_gemm.h"

namespace moectl::cuda::bench {
namespace {

// `rows` of each of `experts`.
struct Load {
  int64_t experts, rows;
  int64_t total() const { return experts * rows; }
};

std::vector<int32_t> offsets_of(const Load& load) {
  std::vector<int32_t> offsets;
  for (int64_t e = 0; e <= load.experts; ++e) offsets.push_back(int32_t(e * load.rows));
  return offsets;
}

enum class Half { kGateUp, kDown };

// One of the two halves of the experts, FP8: silu(x gate^T) * (x up^T), or x down^T.
Case f8_case(const KernelShape& s, const Load& load, Half half) {
  const bool gated = half == Half::kGateUp;
  const int64_t rows = load.total(), n = gated ? s.moe_intermediate_size : s.hidden_size,
                k = gated ? s.hidden_size : s.moe_intermediate_size, matrices = gated ? 2 : 1;
  Case c{.kernel = "fp8_grouped_gemm",
         .shape = fmt::format("{} {} {} experts x {} rows, {}x{}", s.name, gated ? "gate+up" : "down", load.experts,
                              load.rows, n, k),
         .bytes = double(load.experts * matrices * n * k) + double(rows * k) + double(rows * n) * 2,
         .flops = 2.0 * double(rows) * double(matrices * n) * double(k),
         .unit = Unit::kF8,
         .peers = {"cuBLASLt, a product per expert, block scales"}};
  c.make = [=](Memory& memory) {
    const Weight w = random_weight(memory, true, load.experts, n, k);
    const Weight w_up = gated ? random_weight(memory, true, load.experts, n, k) : Weight{};
    Fp8GemmArgs args{.a = random_fp8_rows(memory, rows, k), .w = fp8_weight_of(w)};
    if (gated) args.w_up = fp8_weight_of(w_up);
    args.expert_offsets = memory.upload(offsets_of(load));
    args.num_experts = load.experts;
    args.out = memory.alloc<__nv_bfloat16>(rows * n);
    args.out_type = DType::kBF16;
    LtMatmulArgs lt{.m = load.rows, .n = n, .k = k, .dtype = DType::kF8E4M3, .scales = LtScales::kBlock};
    lt.x_scales = args.a.scales;
    lt.w_scales = args.w.scales;
    lt.workspace = memory.alloc<std::byte>(kLtWorkspaceBytes);
    Work work;
    work.run = [=, keep = std::pair(w, w_up)](Stream stream) { fp8_gemm(args, stream); };
    work.peers = {[=](Stream stream) {
      for (int64_t e = 0; e < load.experts; ++e)
        for (const Fp8Weight* matrix : {&args.w, &args.w_up}) {
          if (!matrix->data) continue;
          LtMatmulArgs one = lt;
          one.x = args.a.data + e * load.rows * k;
          one.w = matrix->data + e * n * k;
          one.out = static_cast<__nv_bfloat16*>(args.out) + e * load.rows * n;
          CublasLt::get().matmul(one, stream);
        }
    }};
    work.out = args.out;
    work.out_bytes = rows * n * 2;
    return work;
  };
  return c;
}

Case bf16_case(const KernelShape& s, const Load& load, Half half) {
  const bool gated = half == Half::kGateUp;
  const int64_t rows = load.total(), n = gated ? s.moe_intermediate_size : s.hidden_size,
                k = gated ? s.hidden_size : s.moe_intermediate_size, matrices = gated ? 2 : 1;
  Case c{.kernel = "bf16_grouped_gemm",
         .shape = fmt::format("{} {} {} experts x {} rows, {}x{}", s.name, gated ? "gate+up" : "down", load.experts,
                              load.rows, n, k),
         .bytes = (double(load.experts * matrices * n * k) + double(rows * k) + double(rows * n)) * 2,
         .flops = 2.0 * double(rows) * double(matrices * n) * double(k),
         .unit = Unit::kBf16,
         .peers = {"cuBLASLt, a product per expert"}};
  c.make = [=](Memory& memory) {
    Bf16GemmArgs args{.a = memory.bf16(rows * k), .rows = rows, .n = n, .k = k, .batch = load.experts};
    args.w = memory.bf16(load.experts * n * k, 0.02f);
    if (gated) args.w_up = memory.bf16(load.experts * n * k, 0.02f);
    args.expert_offsets = memory.upload(offsets_of(load));
    args.num_experts = load.experts;
    args.out = memory.alloc<__nv_bfloat16>(rows * n);
    args.out_type = DType::kBF16;
    auto* workspace = memory.alloc<std::byte>(kLtWorkspaceBytes);
    Work work;
    work.run = [args](Stream stream) { bf16_gemm(args, stream); };
    work.peers = {[=](Stream stream) {
      const auto at = [](const void* p, int64_t i) { return static_cast<const __nv_bfloat16*>(p) + i; };
      for (int64_t e = 0; e < load.experts; ++e)
        for (const void* matrix : {args.w, args.w_up})
          if (matrix)
            CublasLt::get().matmul({.m = load.rows,
                                    .n = n,
                                    .k = k,
                                    .x = at(args.a, e * load.rows * k),
                                    .w = at(matrix, e * n * k),
                                    .out = static_cast<__nv_bfloat16*>(args.out) + e * load.rows * n,
                                    .workspace = workspace},
                                   stream);
    }};
    work.out = args.out;
    work.out_bytes = rows * n * 2;
    return work;
  };
  return c;
}

}  // namespace

void add_grouped_cases(const KernelShape& s, Cases& cases) {
  if (s.num_experts == 0) return;
  // Experts of a rank of EP32 and EP8, and of a whole model on one GPU.
  const int64_t few = s.num_experts / 32 + 1, many = s.num_experts / 8;
  for (const Load& load :
       {Load{few, 64}, Load{few, 128}, Load{many, 8}, Load{many, 64}, Load{many, 1024}, Load{s.num_experts, 4}})
    for (const Half half : {Half::kGateUp, Half::kDown})
      cases.push_back(s.f8 ? f8_case(s, load, half) : bf16_case(s, load, half));
}

}  // namespace moectl::cuda::bench
