// WrappedOps: operations of another backend, which each go through around(): for tests that tamper with what a backend
// does, or with when it does it.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "kernels/ops.h"

namespace moectl::test {

class WrappedOps : public Ops {
 public:
  explicit WrappedOps(std::unique_ptr<Ops> real) : real_(std::move(real)) {}
  std::string numerics_id() const override { return real_->numerics_id(); }
  Device& device() override { return real_->device(); }
  const Capabilities& capabilities() const override { return real_->capabilities(); }
  ExpandedMla* expanded_mla() override { return real_->expanded_mla(); }
  ExpertAllToAll* expert_all_to_all() override { return real_->expert_all_to_all(); }
  DeviceSampling* device_sampling() override { return real_->device_sampling(); }
  int64_t scratch_bytes(const ScratchShape& shape) const override { return real_->scratch_bytes(shape); }
  void set_scratch(Buffer memory, const ScratchShape& shape) override { real_->set_scratch(std::move(memory), shape); }
  ExpertOperands expert_operands(const MoeExpertsArgs& a) const override { return real_->expert_operands(a); }
  MlaForm mla_form(const Weight& w_uk, const Weight& w_uv, const KvView& cache) const override {
    return real_->mla_form(w_uk, w_uv, cache);
  }
  Weight pack(std::span<const MatrixSpec> batch) override { return real_->pack(batch); }
  Weight pack_rows(const MatrixSpec& table) override { return real_->pack_rows(table); }

  void embed(const EmbedArgs& a, Stream s) override { pass(&Ops::embed, a, s); }
  void rms_norm(const RmsNormArgs& a, Stream s) override { pass(&Ops::rms_norm, a, s); }
  void sum_squares(const SumSquaresArgs& a, Stream s) override { pass(&Ops::sum_squares, a, s); }
  void linear(const LinearArgs& a, Stream s) override { pass(&Ops::linear, a, s); }
  void quantize(const QuantizeArgs& a, Stream s) override { pass(&Ops::quantize, a, s); }
  void gather(const GatherArgs& a, Stream s) override { pass(&Ops::gather, a, s); }
  void concat_columns(const ConcatColumnsArgs& a, Stream s) override { pass(&Ops::concat_columns, a, s); }
  void rope_table(const RopeTableArgs& a, Stream s) override { pass(&Ops::rope_table, a, s); }
  void rope(const RopeArgs& a, Stream s) override { pass(&Ops::rope, a, s); }
  void gqa_cache_write(const GqaCacheWriteArgs& a, Stream s) override { pass(&Ops::gqa_cache_write, a, s); }
  void gqa_attention(const GqaAttentionArgs& a, Stream s) override { pass(&Ops::gqa_attention, a, s); }
  void mla_query(const MlaQueryArgs& a, Stream s) override { pass(&Ops::mla_query, a, s); }
  void mla_cache_write(const MlaCacheWriteArgs& a, Stream s) override { pass(&Ops::mla_cache_write, a, s); }
  void mla_attention(const MlaAttentionArgs& a, Stream s) override { pass(&Ops::mla_attention, a, s); }
  void mla_output(const MlaOutputArgs& a, Stream s) override { pass(&Ops::mla_output, a, s); }
  void moe_gate(const MoeGateArgs& a, Stream s) override { pass(&Ops::moe_gate, a, s); }
  void moe_permute(const MoePermuteArgs& a, Stream s) override { pass(&Ops::moe_permute, a, s); }
  void moe_locate(const MoeLocateArgs& a, Stream s) override { pass(&Ops::moe_locate, a, s); }
  void moe_experts(const MoeExpertsArgs& a, Stream s) override { pass(&Ops::moe_experts, a, s); }
  void moe_combine(const MoeCombineArgs& a, Stream s) override { pass(&Ops::moe_combine, a, s); }

 protected:
  virtual void around(std::function<void()> operation) { operation(); }
  Ops& real() { return *real_; }

 private:
  template <class Args>
  void pass(void (Ops::*op)(const Args&, Stream), Args args, Stream s) {
    around([=, this] { (real_.get()->*op)(args, s); });
  }

  std::unique_ptr<Ops> real_;
};

}  // namespace moectl::test
