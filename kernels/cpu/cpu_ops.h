// CpuOps: the CPU backend of one instruction-set path. One object a rank; operations run on the rank's thread and its
// team.
#pragma once

#include "core/base/parallel.h"
#include "kernels/cpu/weight.h"
#include "kernels/ops.h"

#include "kernels/cpu/path_begin.h"

class CpuOps final : public Ops {
 public:
  CpuOps(int num_threads, bool spin) : pool_(num_threads, spin) {}
  std::string numerics_id() const override;
  Buffer alloc(int64_t num_bytes) override;
  void upload(void* device, const void* host, int64_t num_bytes) override;
  void copy(void* to, const void* from, int64_t num_bytes, Stream) override { upload(to, from, num_bytes); }
  Weight pack(std::span<const MatrixSpec> batch) override;
  Weight pack_rows(const MatrixSpec& table) override;
  void embed(const EmbedArgs&, Stream) override;
  void rms_norm(const RmsNormArgs&, Stream) override;
  void linear(const LinearArgs&, Stream) override;
  void gather(const GatherArgs&, Stream) override;
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

  ThreadPool pool_;
  std::vector<const float*> row_pointers_;
};

#include "kernels/cpu/path_end.h"
