// The tensor-core path of CudaOps: which product of bf16 and FP8 operands goes to which kernel. FP8 block weights
// multiply FP8 rows (1 x 128 scales), bf16 weights bf16 rows. Weights that do not fit here take f32 rows
// (kernels/cuda/gemm/linear.cu, moe_experts.cu).
#include <algorithm>

#include "core/base/check.h"
#include "kernels/cuda/elementwise/fp8_quantize.h"
#include "kernels/cuda/gemm/bf16_gemm.h"
#include "kernels/cuda/gemm/cublaslt.h"
#include "kernels/cuda/gemm/fp8_gemm.h"
#include "kernels/cuda/gemm/plain_gemm.h"
#include "kernels/cuda/runtime/cuda_ops.h"

namespace moectl::cuda {
namespace {

constexpr int64_t kFewRows = 64;

// What fp8_gemm and bf16_gemm ask of a weight.
bool is_fp8(const Matrix& w) {
  return w.is_fp8_block() && w.k % kFp8Block == 0;
}
bool is_bf16(const Matrix& w) {
  return w.dtype == DType::kBF16 && w.k % 64 == 0 && w.n % 8 == 0;
}

Fp8Weight fp8_weight(const Weight& weight) {
  const Matrix& w = matrix_of(weight);
  return fp8_weight_at(w.data, w.scales, weight.batch, w.n, w.k);
}

LtMatmulArgs lt_args(const Matrix& w, int64_t rows) {
  LtMatmulArgs lt = {.m = rows, .n = w.n, .k = w.k, .out_dtype = DType::kF32};
  lt.w = w.data;
  return lt;
}

}  // namespace

// ------------------------------------------------------------------------------------------------ linear

// Not where results must be batch-invariant, nor where a peer may wait for this device: the library loads its kernels
// and allocates when they are first used.
bool CudaOps::uses_library() const {
  return !precise_ && !deterministic_ && !has_peers_ && CublasLt::get().is_present();
}

bool CudaOps::library_takes(const Matrix& w, int64_t rows) const {
  return uses_library() && CublasLt::get().why_unsupported(lt_args(w, rows)).empty();
}

DType CudaOps::linear_operand(const Matrix& w) const {
  if (precise_) return DType::kF32;
  if (hopper_ && is_fp8(w)) return DType::kF8E4M3;
  return is_bf16(w) && (hopper_ || library_takes(w, kFewRows)) ? DType::kBF16 : DType::kF32;
}

void CudaOps::linear_fp8(const LinearArgs& a, Stream stream) {
  if (a.x.dim(0) == 0) return;
  fp8_gemm({.a = fp8_rows(a.x), .w = fp8_weight(a.weight), .out = a.out.data, .deterministic = deterministic_}, stream);
  if (a.bias) add_bias(a.out.data, a.x.dim(0), a.weight.n, a.bias.data, stream);
}

void CudaOps::linear_bf16(const LinearArgs& a, Stream stream) {
  const Matrix& w = matrix_of(a.weight);
  const int64_t rows = a.x.dim(0);
  if (rows == 0) return;
  // For few rows our own product is the faster one on Hopper, and may start early.
  if (regions_ && !(hopper_ && rows <= kFewRows) && library_takes(w, rows)) {
    LtMatmulArgs lt = lt_args(w, rows);
    lt.x = a.x.data;
    lt.out = a.out.data;
    lt.workspace = scratch_.get() + regions_->lt_workspace[device_.on_side_stream()];
    CublasLt::get().matmul(lt, stream);
  } else {
    CHECK(hopper_, "linear: cuBLASLt does not take {} rows of bf16 times [{}, {}]", rows, w.n, w.k);
    bf16_gemm({.a = a.x.data,
               .rows = rows,
               .n = w.n,
               .k = w.k,
               .w = w.data,
               .out = a.out.data,
               .deterministic = deterministic_},
              stream);
  }
  if (a.bias) add_bias(a.out.data, rows, w.n, a.bias.data, stream);
}

// ------------------------------------------------------------------------------------------------ experts

ExpertOperands CudaOps::expert_operands(const MoeExpertsArgs& a) const {
  const Matrix &gate = matrix_of(a.w_gate), &up = matrix_of(a.w_up), &down = matrix_of(a.w_down);
  if (precise_ || !hopper_ || a.activation.kind != Activation::Kind::kSwiGlu || a.gate_bias || a.up_bias ||
      a.down_bias || a.row_scale || a.expert_offsets.dim(0) - 1 > kMaxGemmExperts)
    return {};
  // Hidden values pass through bf16: rounding them to FP8 next costs sixteen times more.
  if (is_fp8(gate) && is_fp8(up) && is_fp8(down)) return {DType::kF8E4M3, {DType::kBF16, DType::kF8E4M3}, DType::kBF16};
  if (is_bf16(gate) && is_bf16(up) && is_bf16(down)) return {DType::kBF16, {DType::kBF16}, DType::kBF16};
  return {};
}

// The offsets come from a copy or from moe_permute, whose last kernel lets no other past it before they are written: so
// weights are read while rows are still gathered, and the second product's while the first one ends.
void CudaOps::experts_fp8(const MoeExpertsArgs& a, Stream stream) {
  const int64_t num_experts = a.expert_offsets.dim(0) - 1;
  if (a.x.dim(0) == 0) return;
  const Operand &hidden = a.hidden.get(DType::kBF16), &quantized = a.hidden.get(DType::kF8E4M3);
  Fp8GemmArgs product = {.a = fp8_rows(a.x),
                         .w = fp8_weight(a.w_gate),
                         .w_up = fp8_weight(a.w_up),
                         .expert_offsets = a.expert_offsets.data,
                         .offsets_settled = true,
                         .num_experts = num_experts,
                         .out = hidden.data,
                         .out_type = DType::kBF16,
                         .deterministic = deterministic_};
  fp8_gemm(product, stream);
  product.a = fp8_rows(quantized);
  fp8_quantize(
      {.x = hidden.data, .type = DType::kBF16, .out = product.a, .num_rows = a.expert_offsets.data + num_experts},
      stream);
  product.w = fp8_weight(a.w_down);
  product.w_up = {};
  product.out = a.out.data;
  product.out_type = a.out.dtype;
  fp8_gemm(product, stream);
}

void CudaOps::experts_bf16(const MoeExpertsArgs& a, Stream stream) {
  const Matrix &gate = matrix_of(a.w_gate), &up = matrix_of(a.w_up), &down = matrix_of(a.w_down);
  if (a.x.dim(0) == 0) return;
  Bf16GemmArgs product = {.a = a.x.data,
                          .rows = a.x.dim(0),
                          .n = gate.n,
                          .k = gate.k,
                          .w = gate.data,
                          .w_up = up.data,
                          .batch = a.w_gate.batch,
                          .expert_offsets = a.expert_offsets.data,
                          .offsets_settled = true,
                          .num_experts = a.expert_offsets.dim(0) - 1,
                          .out = a.hidden.get(DType::kBF16).data,
                          .out_type = DType::kBF16,
                          .deterministic = deterministic_};
  bf16_gemm(product, stream);
  product.a = product.out;
  product.n = down.n;
  product.k = down.k;
  product.w = down.data;
  product.w_up = nullptr;
  product.batch = a.w_down.batch;
  product.out = a.out.data;
  product.out_type = a.out.dtype;
  bf16_gemm(product, stream);
}

}  // namespace moectl::cuda
