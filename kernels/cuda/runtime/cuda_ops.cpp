// CudaOps: the choice of kernel for each operation. `precise`: f32 activations in the portable kernels. Else a weight
// asks for bf16 or FP8 operands where tensor cores multiply it (tensor_core_ops.cpp).
#include "kernels/cuda/runtime/cuda_ops.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "kernels/cuda/comm/expert_all_to_all.h"
#include "kernels/cuda/elementwise/bf16_copy.h"
#include "kernels/cuda/elementwise/fp8_quantize.h"
#include "kernels/cuda/gemm/cublaslt.h"
#include "kernels/cuda/mla/mla_attention_sm90.h"
#include "kernels/cuda/mla/mla_prefill_sm90.h"
#include "kernels/cuda/mla/mla_project_sm90.h"
#include "kernels/cuda/sample/sample.h"

namespace moectl::cuda {

// Raise when any kernel changes a bit of its results.
inline constexpr int kKernelVersion = 5;
// Shorter prefill chunks cost less in absorbed form whatever their context is.
inline constexpr int64_t kMinExpandedRows = 128;
inline constexpr int kDefaultStepTokens = 2048;

std::unique_ptr<Ops> make_cuda_ops(const OpsOptions& options) {
  return std::make_unique<CudaOps>(options);
}

CudaOps::CudaOps(const OpsOptions& options)
    : precise_(options.precise),
      deterministic_(options.deterministic),
      portable_(options.portable),
      has_peers_(options.has_peers),
      device_(options.device_index, options.portable) {
  const ComputeCapability capability = compute_capability(options.device_index);
  architecture_ = fmt::format("sm{}{}", capability.major, capability.minor);
  hopper_ = takes_hopper_kernels() && !portable_;
  capabilities_ = {.device = "cuda",
                   .max_steps_in_flight = 2,
                   .asynchronous = true,
                   .host_readable = false,
                   .limited_memory = true,
                   .splits_scale_blocks = options.precise,
                   .kv_transfer = false,
                   .default_step_tokens = kDefaultStepTokens};
  capabilities_.kv_dtypes = precise_ ? std::vector{DType::kF32, DType::kBF16} : std::vector{DType::kBF16, DType::kF32};
  if (!precise_) capabilities_.operand_dtypes.push_back(DType::kBF16);
  if (!precise_ && hopper_) capabilities_.operand_dtypes.push_back(DType::kF8E4M3);
  load_threads_ = std::max(1, options.num_threads);
  flag_ = device_.alloc(sizeof(int));
}

Staging& CudaOps::staging() {
  if (!staging_) staging_ = std::make_unique<Staging>(load_threads_);
  return *staging_;
}

std::string CudaOps::numerics_id() const {
  return fmt::format("cuda-{}-{}{}{}-{}", architecture_, precise_ ? "precise" : "fast",
                     deterministic_ ? "-deterministic" : "", portable_ ? "-portable" : "", kKernelVersion);
}

// ------------------------------------------------------------------------------------------------ scratch

CudaOps::Regions CudaOps::regions(const ScratchShape& shape) const {
  Regions r;
  auto take = [&](int64_t num_bytes) {
    const int64_t begin = r.num_bytes;
    r.num_bytes += (num_bytes + 255) / 256 * 256;
    return begin;
  };
  r.num_counters = attention_counters(shape.max_tokens, shape.num_heads);
  r.counters = take(r.num_counters * 4);
  r.attention_bytes = attention_scratch_bytes(shape.max_tokens, shape.num_heads, shape.out_head_size);
  r.attention = take(r.attention_bytes);
  // Not where a row's bits must not depend on its chunk, nor where sizes or dtypes rule it out.
  if (hopper_ && !precise_ && !deterministic_ && mla_prefill_sm90_fits(shape)) {
    r.prefill_bytes = mla_prefill_sm90_scratch_bytes(shape.max_tokens, shape.num_heads);
    r.prefill = take(r.prefill_bytes);
  }
  r.counts = take(shape.num_experts * 4);
  if (shape.vocab_size > 0) r.sampling = take(sample_scratch_bytes(shape.max_sampled_rows, shape.vocab_size));
  if (uses_library())
    for (int64_t& workspace : r.lt_workspace) workspace = take(int64_t{kLtWorkspaceBytes});
  r.num_bytes = std::max<int64_t>(r.num_bytes, 256);
  return r;
}

int64_t CudaOps::scratch_bytes(const ScratchShape& shape) const {
  return regions(shape).num_bytes;
}

void CudaOps::set_scratch(Buffer buffer, const ScratchShape& shape) {
  scratch_ = std::move(buffer);
  scratch_shape_ = shape;
  regions_ = std::make_unique<Regions>(regions(shape));
}

// ------------------------------------------------------------------------------------------------ operations

void CudaOps::embed(const EmbedArgs& a, Stream s) {
  device_.run("embed", s, [&](Stream stream) { cuda::embed(a, stream); });
}

void CudaOps::rms_norm(const RmsNormArgs& a, Stream s) {
  device_.run("rms_norm", s, [&](Stream stream) { cuda::rms_norm(a, stream); });
}

void CudaOps::sum_squares(const SumSquaresArgs& a, Stream s) {
  device_.run("sum_squares", s, [&](Stream stream) { cuda::sum_squares(a, stream); });
}

void CudaOps::linear(const LinearArgs& a, Stream s) {
  device_.run("linear", s, [&](Stream stream) {
    switch (a.x.dtype) {
      case DType::kF8E4M3:
        return linear_fp8(a, stream);
      case DType::kBF16:
        return linear_bf16(a, stream);
      default:
        return cuda::linear(a, numerics(), stream);
    }
  });
}

void CudaOps::quantize(const QuantizeArgs& a, Stream s) {
  const int64_t rows = a.x.dim(0), size = a.x.row_size();
  CHECK(a.out.size() == rows * size, "quantize: {} values into {}", rows * size, a.out.size());
  if (a.out.f32 && a.out.f32.data != a.x.data) device_.copy(a.out.f32.data, a.x.data, rows * size * 4, s);
  if (rows == 0) return;
  device_.run("quantize", s, [&](Stream stream) {
    if (a.out.bf16) bf16_copy(a.x.data, rows, size, a.out.bf16.data, size, nullptr, stream);
    if (a.out.fp8) fp8_quantize({.x = a.x.data, .type = DType::kF32, .out = fp8_rows(a.out.fp8)}, stream);
  });
}

void CudaOps::gather(const GatherArgs& a, Stream s) {
  device_.run("gather", s, [&](Stream stream) { cuda::gather(a, stream); });
}

void CudaOps::concat_columns(const ConcatColumnsArgs& a, Stream s) {
  device_.run("concat_columns", s, [&](Stream stream) { cuda::concat_columns(a, stream); });
}

void CudaOps::rope_table(const RopeTableArgs& a, Stream s) {
  device_.run("rope_table", s, [&](Stream stream) { cuda::rope_table(a, stream); });
}

void CudaOps::rope(const RopeArgs& a, Stream s) {
  device_.run("rope", s, [&](Stream stream) { cuda::rope(a, stream); });
}

void CudaOps::gqa_cache_write(const GqaCacheWriteArgs& a, Stream s) {
  device_.run("gqa_cache_write", s, [&](Stream stream) { cuda::gqa_cache_write(a, stream); });
}

AttentionScratch CudaOps::attention_scratch() const {
  AttentionScratch scratch = {.deterministic = deterministic_, .portable = precise_};
  if (regions_) {
    scratch.data = scratch_.get() + regions_->attention;
    scratch.num_bytes = regions_->attention_bytes;
    scratch.counters = reinterpret_cast<int32_t*>(scratch_.get() + regions_->counters);
    scratch.num_counters = regions_->num_counters;
  }
  return scratch;
}

void CudaOps::gqa_attention(const GqaAttentionArgs& a, Stream s) {
  device_.run("gqa_attention", s, [&](Stream stream) { cuda::gqa_attention(a, attention_scratch(), stream); });
}

// bf16 where the kernels of all three operations take it.
MlaForm CudaOps::mla_form(const Weight& w_uk, const Weight& w_uv, const KvView& cache) const {
  if (precise_ || !regions_ || !hopper_) return {};
  const Matrix &uk = matrix_of(w_uk), &uv = matrix_of(w_uv);
  MlaAttentionArgs a;
  a.q.dtype = DType::kBF16;
  a.q.rank = 3;
  a.q.shape = {scratch_shape_.max_tokens, w_uk.batch, cache.dim(2), 0};
  a.cache = cache;
  a.kv_lora_rank = int(uk.n);
  const bool fits = mla_project_in_fits(uk) && mla_project_out_fits(uv) && uk.n == uv.k && w_uk.batch == w_uv.batch &&
                    mla_attention_sm90_fits(a, attention_scratch());
  return {.latent = fits ? DType::kBF16 : DType::kF32, .output_operands = fits};
}

void CudaOps::mla_query(const MlaQueryArgs& a, Stream s) {
  device_.run("mla_query", s, [&](Stream stream) {
    a.out.dtype == DType::kBF16 ? mla_query_bf16(a, stream) : cuda::mla_query(a, numerics(), stream);
  });
}

void CudaOps::mla_cache_write(const MlaCacheWriteArgs& a, Stream s) {
  device_.run("mla_cache_write", s, [&](Stream stream) { cuda::mla_cache_write(a, stream); });
}

void CudaOps::mla_attention(const MlaAttentionArgs& a, Stream s) {
  device_.run("mla_attention", s, [&](Stream stream) { cuda::mla_attention(a, attention_scratch(), stream); });
}

// Latents of f32: the kernel writes f32 rows alone.
void CudaOps::mla_output(const MlaOutputArgs& a, Stream s) {
  device_.run("mla_output", s, [&](Stream stream) {
    a.latent.dtype == DType::kBF16 ? mla_output_bf16(a, stream) : cuda::mla_output(a, numerics(), stream);
  });
}

int64_t CudaOps::min_rows() const {
  return kMinExpandedRows;
}

bool CudaOps::takes(const MlaPrefillArgs& a) const {
  const int64_t n = a.q.dim(0), heads = a.q.dim(1);
  return regions_ && mla_prefill_sm90_scratch_bytes(n, heads) <= regions_->prefill_bytes && mla_prefill_sm90_fits(a) &&
         mla_prefill_sm90_pays(n, heads, a.first_position + n);
}

void CudaOps::mla_prefill(const MlaPrefillArgs& a, Stream s) {
  device_.run("mla_prefill", s,
              [&](Stream stream) { mla_prefill_sm90(a, scratch_.get() + regions_->prefill, stream); });
}

void CudaOps::moe_gate(const MoeGateArgs& a, Stream s) {
  device_.run("moe_gate", s, [&](Stream stream) { cuda::moe_gate(a, stream); });
}

int32_t* CudaOps::permute_counts(const MoePermuteArgs& a) const {
  CHECK(regions_ && a.expert_offsets.dim(0) - 1 <= scratch_shape_.num_experts, "moe_permute of {} experts: no scratch",
        a.expert_offsets.dim(0) - 1);
  return reinterpret_cast<int32_t*>(scratch_.get() + regions_->counts);
}

void CudaOps::moe_permute(const MoePermuteArgs& a, Stream s) {
  int32_t* counts = permute_counts(a);
  device_.run("moe_permute", s, [&](Stream stream) { cuda::moe_permute(a, counts, stream); });
}

void CudaOps::dispatch(const DispatchArgs& a, Stream s) {
  int32_t* counts = permute_counts(a.permute);
  device_.run("dispatch", s, [&](Stream stream) {
    const bool numbers = a.low_latency && can_number_rows(a);
    all_to_all_dispatch(a, numbers, stream);
    if (!numbers) moe_number(a.permute, counts, stream);
    cuda::moe_copy_rows(a.permute, stream);
  });
}

void CudaOps::combine(const CombineArgs& a, Stream s) {
  device_.run("combine", s, [&](Stream stream) { all_to_all_combine(a, stream); });
}

void CudaOps::moe_experts(const MoeExpertsArgs& a, Stream s) {
  CHECK(!a.weight_idx, "moe_experts: a GPU holds the weights of its own experts, in order");
  device_.run("moe_experts", s, [&](Stream stream) {
    switch (a.x.dtype) {
      case DType::kF8E4M3:
        return experts_fp8(a, stream);
      case DType::kBF16:
        return experts_bf16(a, stream);
      default:
        return cuda::moe_experts(a, numerics(), stream);
    }
  });
}

void CudaOps::moe_locate(const MoeLocateArgs& a, Stream s) {
  device_.run("moe_locate", s, [&](Stream stream) { cuda::moe_locate(a, stream); });
}

void CudaOps::moe_combine(const MoeCombineArgs& a, Stream s) {
  device_.run("moe_combine", s, [&](Stream stream) { cuda::moe_combine(a, stream); });
}

void CudaOps::sample_rows(const SampleRowsArgs& a, Stream s) {
  CHECK(regions_ && a.logits.dim(0) <= scratch_shape_.max_sampled_rows &&
            a.logits.row_size() <= scratch_shape_.vocab_size,
        "sample_rows of [{}, {}]: scratch for [{}, {}]", a.logits.dim(0), a.logits.row_size(),
        scratch_shape_.max_sampled_rows, scratch_shape_.vocab_size);
  device_.run("sample_rows", s,
              [&](Stream stream) { cuda::sample_rows(a, scratch_.get() + regions_->sampling, stream); });
}

}  // namespace moectl::cuda
