// The fast numerics of CudaOps: which product goes to which tensor-core kernel, and the copies of its operand. FP8
// block weights take FP8 activations (1 x 128 scales), bf16 weights take bf16 ones. What does not fit here goes on to
// kernels/cuda/gemm/linear.cu, moe_experts.cu and mla_query.cu.
#include <algorithm>

#include "core/base/check.h"
#include "kernels/cuda/elementwise/bf16_copy.h"
#include "kernels/cuda/elementwise/fp8_quantize.h"
#include "kernels/cuda/gemm/bf16_gemm.h"
#include "kernels/cuda/gemm/cublaslt.h"
#include "kernels/cuda/gemm/fp8_gemm.h"
#include "kernels/cuda/gemm/plain_gemm.h"
#include "kernels/cuda/mla/mla_attention_sm90.h"
#include "kernels/cuda/mla/mla_project_sm90.h"
#include "kernels/cuda/runtime/cuda_ops.h"

namespace moectl::cuda {
namespace {

using Kind = OperandCache::Kind;

constexpr int64_t kFewRows = 64;

bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

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

}  // namespace

int64_t CudaOps::operand_bytes(int64_t rows, int64_t k) {
  const int64_t padded = (k + kFp8Block - 1) / kFp8Block * kFp8Block;
  return (std::max(fp8_rows_bytes(rows, padded), rows * padded * 2) + 255) / 256 * 256;
}

Fp8Rows CudaOps::fp8_operand(OperandCache::Pool pool, const void* x, DType type, int64_t rows, int64_t k,
                             const int32_t* num_rows, Stream stream) {
  const OperandCache::Copy copy = operands_.get(pool, x, rows, k, Kind::kFp8, fp8_rows_bytes(rows, k));
  CHECK(copy.memory, "an FP8 copy of [{}, {}] has no room: ScratchShape was smaller", rows, k);
  const Fp8Rows out = fp8_rows_at(copy.memory, rows, k);
  CHECK(!copy.missing || x != unwritten_, "rows of experts are not there");
  if (copy.missing) fp8_quantize({.x = x, .type = type, .out = out, .num_rows = num_rows}, stream);
  return out;
}

const void* CudaOps::bf16_operand(OperandCache::Pool pool, const float* x, int64_t rows, int64_t k,
                                  const int32_t* num_rows, Stream stream) {
  const OperandCache::Copy copy = operands_.get(pool, x, rows, k, Kind::kBf16, rows * k * 2);
  CHECK(copy.memory, "a bf16 copy of [{}, {}] has no room: ScratchShape was smaller", rows, k);
  CHECK(!copy.missing || x != unwritten_, "rows of experts are not there");
  if (copy.missing) bf16_copy(x, rows, k, copy.memory, k, num_rows, stream);
  return copy.memory;
}

// Copies of x [rows, k], for who writes it to make: those that products have asked for.
RowCopies CudaOps::copies_of(OperandCache::Pool pool, const float* x, int64_t rows, int64_t k) {
  RowCopies copies;
  if (precise_ || !regions_ || !hopper_ || rows == 0 || k % kFp8Block != 0 || !aligned(x)) return copies;
  if (operands_.is_wanted(pool, k, Kind::kFp8))
    if (void* memory = operands_.put(pool, x, rows, k, Kind::kFp8, fp8_rows_bytes(rows, k)))
      copies.fp8 = fp8_rows_at(memory, rows, k);
  if (operands_.is_wanted(pool, k, Kind::kBf16))
    copies.bf16 = operands_.put(pool, x, rows, k, Kind::kBf16, rows * k * 2);
  return copies;
}

// Rows of hidden states leave their copies behind: what follows a norm is a product.
bool CudaOps::fast_norm(const RmsNormArgs& a, Stream stream) {
  constexpr int64_t kLeast = 1024, kMost = 16384;  // shorter: of heads
  const int64_t rows = a.x.dim(0), size = a.x.row_size();
  if (precise_ || !regions_ || !hopper_ || rows == 0 || size < kLeast || size > kMost || size % kFp8Block != 0)
    return false;
  if (!aligned(a.x.data) || !aligned(a.residual.data) || !aligned(a.weight.data) || !aligned(a.out.data)) return false;
  rms_norm_copies(a, copies_of(OperandCache::kTokens, a.out.data, rows, size), stream);
  return true;
}

bool CudaOps::fast_linear(const LinearArgs& a, Stream stream) {
  const Matrix& w = matrix_of(a.weight);
  const int64_t rows = a.x.dim(0);
  if (precise_ || !regions_ || rows == 0 || !aligned(a.x.data) || !aligned(a.out.data)) return false;
  if (hopper_ && is_fp8(w)) {
    fp8_gemm({.a = fp8_operand(OperandCache::kTokens, a.x.data, DType::kF32, rows, w.k, nullptr, stream),
              .w = fp8_weight(a.weight),
              .out = a.out.data,
              .deterministic = deterministic_},
             stream);
  } else if (is_bf16(w)) {
    LtMatmulArgs lt = {.m = rows, .n = w.n, .k = w.k, .out_dtype = DType::kF32};
    lt.w = w.data;
    lt.out = a.out.data;
    lt.workspace = scratch_.get() + regions_->lt_workspace[on_side_];
    CublasLt& library = CublasLt::get();
    // For few rows our own product is the faster one, and may start early.
    const bool by_library = !deterministic_ && !(hopper_ && rows <= kFewRows) && library.is_present() &&
                            library.why_unsupported(lt).empty();
    if (!by_library && !hopper_) return false;
    lt.x = bf16_operand(OperandCache::kTokens, a.x.data, rows, w.k, nullptr, stream);
    if (by_library)
      library.matmul(lt, stream);
    else
      bf16_gemm({.a = lt.x,
                 .rows = rows,
                 .n = w.n,
                 .k = w.k,
                 .w = w.data,
                 .out = a.out.data,
                 .deterministic = deterministic_},
                stream);
  } else {
    return false;
  }
  if (a.bias) add_bias(a.out.data, rows, w.n, a.bias.data, stream);
  return true;
}

std::optional<Kind> CudaOps::expert_operand(const MoeExpertsArgs& a) const {
  const Matrix &gate = matrix_of(a.w_gate), &up = matrix_of(a.w_up), &down = matrix_of(a.w_down);
  if (precise_ || !regions_ || !hopper_ || a.activation.kind != Activation::Kind::kSwiGlu || a.gate_bias || a.up_bias ||
      a.down_bias || a.row_scale)
    return std::nullopt;
  if (is_fp8(gate) && is_fp8(up) && is_fp8(down)) return Kind::kFp8;
  if (is_bf16(gate) && is_bf16(up) && is_bf16(down)) return Kind::kBf16;
  return std::nullopt;
}

// The copy of x that the experts will read.
RowCopies CudaOps::expert_copies(const MoePermuteArgs& a) {
  const int64_t rows = a.x.dim(0), size = a.x.row_size(), num_experts = a.expert_offsets.dim(0) - 1;
  if (!a.for_experts || rows == 0 || num_experts == 1 || num_experts > kMaxGemmExperts || size % kFp8Block != 0)
    return {};
  bool fits = aligned(a.x.data);
  for (const MoeSource& s : a.sources) fits = fits && aligned(s.x.data);
  const std::optional<Kind> kind = expert_operand(*a.for_experts);
  if (!fits || !kind) return {};
  const bool fp8 = *kind == Kind::kFp8;
  void* memory = operands_.put(OperandCache::kExperts, a.x.data, rows, size, *kind,
                               fp8 ? fp8_rows_bytes(rows, size) : rows * size * 2);
  if (!memory) return {};
  return fp8 ? RowCopies{.fp8 = fp8_rows_at(memory, rows, size)} : RowCopies{.bf16 = memory};
}

// The offsets come from a copy or from moe_permute, whose last kernel lets no other past it before they are written: so
// weights are read while rows are still gathered, and the second product's while the first one ends.
bool CudaOps::fast_experts(const MoeExpertsArgs& a, Stream stream) {
  const Matrix &gate = matrix_of(a.w_gate), &up = matrix_of(a.w_up), &down = matrix_of(a.w_down);
  const int64_t rows = a.x.dim(0), num_experts = a.expert_offsets.dim(0) - 1;
  const std::optional<Kind> kind = expert_operand(a);
  if (!kind || rows == 0 || num_experts > kMaxGemmExperts) return false;
  if (!aligned(a.x.data) || !aligned(a.hidden.data) || !aligned(a.out.data)) return false;
  const int32_t* num_rows = a.expert_offsets.data + num_experts;
  // A dense feed-forward reads what other products read, too.
  const int64_t most = operand_bytes(rows, std::max(gate.k, down.k));
  const OperandCache::Pool pool = num_experts == 1 && most <= regions_->operand_bytes[OperandCache::kTokens]
                                      ? OperandCache::kTokens
                                      : OperandCache::kExperts;
  // Hidden values are bf16 in the room of f32 ones: rounding them to FP8 next costs sixteen times more.
  operands_.forget(a.hidden.data, rows * down.k * int64_t(sizeof(float)));
  if (*kind == Kind::kBf16) {
    Bf16GemmArgs product = {.a = bf16_operand(pool, a.x.data, rows, gate.k, num_rows, stream),
                            .rows = rows,
                            .n = gate.n,
                            .k = gate.k,
                            .w = gate.data,
                            .w_up = up.data,
                            .batch = a.w_gate.batch,
                            .expert_offsets = a.expert_offsets.data,
                            .offsets_settled = true,
                            .num_experts = num_experts,
                            .expert_begin = a.expert_begin,
                            .out = a.hidden.data,
                            .out_type = DType::kBF16,
                            .deterministic = deterministic_};
    bf16_gemm(product, stream);
    product.a = a.hidden.data;
    product.n = down.n;
    product.k = down.k;
    product.w = down.data;
    product.w_up = nullptr;
    product.batch = a.w_down.batch;
    product.out = a.out.data;
    product.out_type = DType::kF32;
    bf16_gemm(product, stream);
    return true;
  }
  Fp8GemmArgs product = {.a = fp8_operand(pool, a.x.data, DType::kF32, rows, gate.k, num_rows, stream),
                         .w = fp8_weight(a.w_gate),
                         .w_up = fp8_weight(a.w_up),
                         .expert_offsets = a.expert_offsets.data,
                         .offsets_settled = true,
                         .num_experts = num_experts,
                         .expert_begin = a.expert_begin,
                         .out = a.hidden.data,
                         .out_type = DType::kBF16,
                         .deterministic = deterministic_};
  fp8_gemm(product, stream);
  product.a = fp8_operand(pool, a.hidden.data, DType::kBF16, rows, down.k, num_rows, stream);
  product.w = fp8_weight(a.w_down);
  product.w_up = {};
  product.out = a.out.data;
  product.out_type = DType::kF32;
  fp8_gemm(product, stream);
  operands_.forget(a.hidden.data, rows * down.k * int64_t(sizeof(float)));
  return true;
}

// bf16 where all three kernels of the latent side take it.
DType CudaOps::latent_dtype(const Weight& w_uk, const Weight& w_uv, const KvView& cache) const {
  if (precise_ || !regions_ || !hopper_) return DType::kF32;
  const Matrix &uk = matrix_of(w_uk), &uv = matrix_of(w_uv);
  MlaAttentionArgs a;
  a.q = TypedView(nullptr, DType::kBF16, {scratch_shape_.max_tokens, w_uk.batch, cache.dim(2), 0});
  a.cache = cache;
  a.kv_lora_rank = int(uk.n);
  const bool fits = mla_project_in_fits(uk) && mla_project_out_fits(uv) && uk.n == uv.k && w_uk.batch == w_uv.batch &&
                    mla_attention_sm90_fits(a, attention_scratch());
  return fits ? DType::kBF16 : DType::kF32;
}

bool CudaOps::fast_mla_query(const MlaQueryArgs& a, Stream stream) {
  if (a.out.dtype != DType::kBF16) return false;
  const Matrix& w = matrix_of(a.w_uk);
  const int64_t tokens = a.q.dim(0), heads = a.q.dim(1), head_dim = a.q.dim(2), rope_dim = head_dim - w.k;
  CHECK(a.w_uk.batch == heads && a.cos_sin.row_size() == rope_dim && a.out.dim(2) == w.n + rope_dim,
        "mla_query: {} heads of {}, a weight of {} x [{}, {}], {} rotated, rows of {}", heads, head_dim, a.w_uk.batch,
        w.n, w.k, a.cos_sin.row_size(), a.out.dim(2));
  mla_project_in({.w = w,
                  .x = a.q.data,
                  .x_row = heads * head_dim,
                  .x_head = head_dim,
                  .out = a.out.data,
                  .out_row = heads * a.out.dim(2),
                  .out_head = a.out.dim(2),
                  .num_tokens = tokens,
                  .num_heads = heads},
                 {a.cos_sin.data, rope_dim, a.interleaved}, stream);
  return true;
}

bool CudaOps::fast_mla_output(const MlaOutputArgs& a, Stream stream) {
  if (a.latent.dtype != DType::kBF16) return false;
  const Matrix& w = matrix_of(a.w_uv);
  const int64_t tokens = a.latent.dim(0), heads = a.latent.dim(1), rank = a.latent.dim(2), size = heads * w.n;
  CHECK(a.w_uv.batch == heads && w.k == rank && a.out.dim(2) == w.n,
        "mla_output: {} heads of {}, a weight of {} x [{}, {}], values of {}", heads, rank, a.w_uv.batch, w.n, w.k,
        a.out.dim(2));
  mla_project_out({.w = w,
                   .x = a.latent.data,
                   .x_row = heads * rank,
                   .x_head = rank,
                   .out = a.out.data,
                   .out_row = size,
                   .out_head = w.n,
                   .num_tokens = tokens,
                   .num_heads = heads},
                  copies_of(OperandCache::kTokens, a.out.data, tokens, size), stream);
  return true;
}

}  // namespace moectl::cuda
