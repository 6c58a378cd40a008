// CpuOps: the CPU backend of one instruction-set path. One object per rank; operations run on the rank's thread and its
// team. Every operand is f32.
#pragma once

#include "core/base/parallel.h"
#include "kernels/cpu/expert_all_to_all.h"
#include "kernels/cpu/weight.h"
#include "kernels/cpu_device.h"
#include "kernels/ops.h"

#include "kernels/cpu/path_begin.h"

class CpuOps final : public Ops {
 public:
  CpuOps(int num_threads, bool spin) : pool_(num_threads, spin) {}
  std::string numerics_id() const override;
  Device& device() override { return device_; }
  const Capabilities& capabilities() const override { return capabilities_; }
  ExpandedMla* expanded_mla() override { return nullptr; }
  ExpertAllToAll* expert_all_to_all() override { return &all_to_all_; }
  DeviceSampling* device_sampling() override { return nullptr; }
  int64_t scratch_bytes(const ScratchShape&) const override { return 0; }
  void set_scratch(Buffer, const ScratchShape&) override {}
  ExpertOperands expert_operands(const MoeExpertsArgs&) const override { return {}; }
  MlaForm mla_form(const Weight&, const Weight&, const KvView&) const override { return {}; }
  Weight pack(std::span<const MatrixSpec> batch) override;
  Weight pack_rows(const MatrixSpec& table) override;
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
  // Pointers to the rows of x, for the GEMM kernels; the storage is reused.
  const float* const* row_pointers(const float* x, int64_t num_rows, int64_t stride);

  CpuDevice device_;
  const Capabilities capabilities_;  // the defaults
  CpuExpertAllToAll all_to_all_;
  ThreadPool pool_;
  std::vector<const float*> row_pointers_;
};

#include "kernels/cpu/path_end.h"
