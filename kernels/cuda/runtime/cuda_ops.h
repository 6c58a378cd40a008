// CudaOps: the CUDA backend of one rank. One object a card and rank, used on the rank's thread (loading may be on
// another before). It owns the rank's stream, the staging memory of loads, the scratch memory of operations and the
// copies of operands that the tensor-core kernels read; kernels are elsewhere, and this knows no model.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/gemm/fp8_gemm.h"
#include "kernels/cuda/gemm/plain_gemm.h"
#include "kernels/cuda/gemm/weight.h"
#include "kernels/cuda/runtime/kernels.h"
#include "kernels/cuda/runtime/operand_cache.h"
#include "kernels/cuda/runtime/staging.h"
#include "kernels/ops.h"

namespace moectl::cuda {

class CudaOps final : public Ops {
 public:
  explicit CudaOps(const OpsOptions& options);
  ~CudaOps() override;

  std::string numerics_id() const override;
  Buffer alloc(int64_t num_bytes) override;
  Buffer alloc_host(int64_t num_bytes) override;
  void upload(void* device, const void* host, int64_t num_bytes) override;
  void copy(void* to, const void* from, int64_t num_bytes, Stream) override;
  void synchronize(Stream) override;
  Mark mark(Stream) override;
  void wait(const Mark&) override;
  double seconds_between(const Mark& begin, const Mark& end) override;
  bool host_memory() const override { return false; }
  Stream stream() override { return {stream_}; }
  void beside(const std::function<void()>& work) override;
  void rejoin() override;
  Graph capture(const std::function<void()>& work) override;
  void replay(const Graph&, Stream) override;
  Memory memory() const override;
  std::vector<DType> kv_dtypes() const override;
  DType latent_dtype(const Weight& w_uk, const Weight& w_uv, const KvView& cache) const override;
  int64_t scratch_bytes(const ScratchShape&) const override;
  void set_scratch(Buffer, int64_t) override;
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
  bool mla_prefill(const MlaPrefillArgs&, Stream) override;
  void moe_gate(const MoeGateArgs&, Stream) override;
  void moe_permute(const MoePermuteArgs&, Stream) override;
  void moe_experts(const MoeExpertsArgs&, Stream) override;
  void moe_locate(const MoeLocateArgs&, Stream) override;
  void moe_combine(const MoeCombineArgs&, Stream) override;
  void sample_rows(const SampleRowsArgs&, Stream) override;

 private:
  // Makes the card the calling thread's.
  void activate() const;
  void set_side(bool on_side);
  void check_done(cudaError_t status) const;
  Error lost(cudaError_t status, const char* operation) const;
  Buffer allocate(int64_t num_bytes);  // not cleared
  Staging& staging();
  AttentionScratch attention_scratch() const;
  Numerics numerics() const { return {!precise_, deterministic_}; }
  bool has_f8_nan(const std::byte* data, int64_t num_bytes);

  // cuda_ops_fast.cpp: false when the product is none of theirs.
  bool fast_norm(const RmsNormArgs&, Stream);
  bool fast_linear(const LinearArgs&, Stream);
  bool fast_experts(const MoeExpertsArgs&, Stream);
  // What fast_experts multiplies with; none: they are not its.
  std::optional<OperandCache::Kind> expert_operand(const MoeExpertsArgs&) const;
  bool fast_mla_query(const MlaQueryArgs&, Stream);
  bool fast_mla_output(const MlaOutputArgs&, Stream);
  // The copy of x [rows, k], made now unless it is there; num_rows as in Fp8QuantizeArgs.
  Fp8Rows fp8_operand(OperandCache::Pool pool, const void* x, DType type, int64_t rows, int64_t k,
                      const int32_t* num_rows, Stream stream);
  const void* bf16_operand(OperandCache::Pool pool, const float* x, int64_t rows, int64_t k, const int32_t* num_rows,
                           Stream stream);
  RowCopies expert_copies(const MoePermuteArgs&);
  RowCopies copies_of(OperandCache::Pool pool, const float* x, int64_t rows, int64_t k);
  static int64_t operand_bytes(int64_t rows, int64_t k);  // that either copy takes

  // Runs launch(stream) and puts the operation's name before what fails. What is at `out` is no cached operand any
  // more.
  template <class Launch>
  void run(const char* name, Stream stream, const void* out, int64_t out_bytes, Launch&& launch);

  const int device_;
  const bool precise_, deterministic_, portable_;
  std::string card_;       // "sm90"
  bool hopper_ = false;    // its kernels are taken
  bool blocking_ = false;  // CUDA_LAUNCH_BLOCKING=1: every launch waits for its kernel
  int load_threads_ = 1;
  cudaStream_t stream_ = nullptr;
  // beside(): its stream, where the two part and where they meet again, and whether it is issuing or not yet met.
  cudaStream_t side_ = nullptr;
  cudaEvent_t parted_ = nullptr, met_ = nullptr;
  bool on_side_ = false, apart_ = false;
  std::unique_ptr<Staging> staging_;
  Buffer flag_;  // of has_f8_nan
  const char* last_operation_ = "none";

  mutable ScratchShape scratch_shape_;  // of the last scratch_bytes()
  Buffer scratch_;
  // Where in scratch_ what lies.
  struct Regions {
    int64_t counters = 0, num_counters = 0;  // of attention
    int64_t attention = 0, attention_bytes = 0;
    int64_t prefill = 0, prefill_bytes = 0;  // of mla_prefill; no bytes: it is not used
    int64_t counts = 0;                      // of moe_permute
    int64_t sampling = 0;
    int64_t lt_workspace[2] = {};                     // of each stream
    int64_t operands[2] = {}, operand_bytes[2] = {};  // by pool: begin, and of one place
    int64_t num_bytes = 0;
  };
  Regions regions(const ScratchShape& shape) const;
  std::unique_ptr<Regions> regions_;
  OperandCache operands_;
  const float* unwritten_ = nullptr;  // rows of experts of which there is a copy alone
};

}  // namespace moectl::cuda
