// CudaOps: the CUDA backend of one rank: which kernel runs each operation, and their scratch memory. One object per
// rank, used on the rank's thread (loading may be on another before). Kernels are elsewhere, and this knows no model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/gemm/plain_gemm.h"
#include "kernels/cuda/gemm/weight.h"
#include "kernels/cuda/runtime/cuda_device.h"
#include "kernels/cuda/runtime/kernels.h"
#include "kernels/cuda/runtime/staging.h"
#include "kernels/expert_all_to_all.h"
#include "kernels/ops.h"

namespace moectl::cuda {

class CudaOps final : public Ops, private ExpandedMla, private DeviceSampling, private ExpertAllToAll {
 public:
  explicit CudaOps(const OpsOptions& options);

  std::string numerics_id() const override;
  Device& device() override { return device_; }
  const Capabilities& capabilities() const override { return capabilities_; }
  ExpandedMla* expanded_mla() override { return regions_ && regions_->prefill_bytes > 0 ? this : nullptr; }
  ExpertAllToAll* expert_all_to_all() override { return this; }
  DeviceSampling* device_sampling() override { return this; }
  int64_t scratch_bytes(const ScratchShape&) const override;
  void set_scratch(Buffer, const ScratchShape&) override;
  Weight pack(std::span<const MatrixSpec> batch) override;
  Weight pack_rows(const MatrixSpec& table) override;
  ExpertOperands expert_operands(const MoeExpertsArgs&) const override;
  MlaForm mla_form(const Weight& w_uk, const Weight& w_uv, const KvView& cache) const override;

  void embed(const EmbedArgs&, Stream) override;
  void rms_norm(const RmsNormArgs&, Stream) override;
  void sum_squares(const SumSquaresArgs&, Stream) override;
  void linear(const LinearArgs&, Stream) override;
  void quantize(const QuantizeArgs&, Stream) override;
  void gather(const GatherArgs&, Stream) override;
  void concat_columns(const ConcatColumnsArgs&, Stream) override;
  void rope_table(const RopeTableArgs&, Stream) override;
  void rope(const RopeArgs&, Stream) override;
  void gqa_cache_write(const GqaCacheWriteArgs&, Stream) override;
  void gqa_attention(const GqaAttentionArgs&, Stream) override;
  void mla_query(const MlaQueryArgs&, Stream) override;
  void mla_cache_write(const MlaCacheWriteArgs&, Stream) override;
  void mla_attention(const MlaAttentionArgs&, Stream) override;
  void mla_output(const MlaOutputArgs&, Stream) override;
  void moe_gate(const MoeGateArgs&, Stream) override;
  void moe_permute(const MoePermuteArgs&, Stream) override;
  void moe_experts(const MoeExpertsArgs&, Stream) override;
  void moe_locate(const MoeLocateArgs&, Stream) override;
  void moe_combine(const MoeCombineArgs&, Stream) override;

 private:
  int64_t min_rows() const override;
  bool takes(const MlaPrefillArgs&) const override;
  void mla_prefill(const MlaPrefillArgs&, Stream) override;
  void sample_rows(const SampleRowsArgs&, Stream) override;
  void dispatch(const DispatchArgs&, Stream) override;
  void combine(const CombineArgs&, Stream) override;
  int32_t* permute_counts(const MoePermuteArgs&) const;  // scratch of moe_number

  Staging& staging();
  AttentionScratch attention_scratch() const;
  Numerics numerics() const { return {!precise_, deterministic_}; }
  bool has_f8_nan(const std::byte* data, int64_t num_bytes);

  // tensor_core_ops.cpp: products of bf16 and FP8 operands.
  DType linear_operand(const Matrix& w) const;
  bool uses_library() const;  // cuBLASLt
  bool library_takes(const Matrix& w, int64_t rows) const;
  void linear_fp8(const LinearArgs&, Stream);
  void linear_bf16(const LinearArgs&, Stream);
  void experts_fp8(const MoeExpertsArgs&, Stream);
  void experts_bf16(const MoeExpertsArgs&, Stream);

  const bool precise_, deterministic_, portable_, has_peers_;
  CudaDevice device_;
  std::string architecture_;  // "sm90"
  bool hopper_ = false;       // its kernels are used
  Capabilities capabilities_;
  int load_threads_ = 1;
  std::unique_ptr<Staging> staging_;
  Buffer flag_;  // of has_f8_nan

  ScratchShape scratch_shape_;
  Buffer scratch_;
  // Offsets into scratch_.
  struct Regions {
    int64_t counters = 0, num_counters = 0;  // of attention
    int64_t attention = 0, attention_bytes = 0;
    int64_t prefill = 0, prefill_bytes = 0;  // of mla_prefill; no bytes: it is not used
    int64_t counts = 0;                      // of moe_permute
    int64_t sampling = 0;
    int64_t lt_workspace[2] = {};  // cuBLASLt's, of each stream
    int64_t num_bytes = 0;
  };
  Regions regions(const ScratchShape& shape) const;
  std::unique_ptr<Regions> regions_;
};

}  // namespace moectl::cuda
