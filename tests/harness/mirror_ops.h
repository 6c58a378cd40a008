// MirrorOps: lets tests that hold everything in host memory drive a backend whose memory is elsewhere. Every operation
// copies its arguments to that backend's memory, runs there, and copies the results back. Operands are f32 on the host:
// they are quantized on the device to the dtype that the operation asks for, and results that the test wants in f32 are
// written in f32. Owns the backend and one arena, which each operation takes anew; results that a test prefills (with
// NaN) are prefilled there, too.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cpu_device.h"
#include "kernels/expert_all_to_all.h"
#include "kernels/ops.h"

namespace moectl::test {

class MirrorOps final : public Ops {
 public:
  explicit MirrorOps(std::unique_ptr<Ops> ops) : ops_(std::move(ops)), arena_(ops_->device().alloc(kArenaBytes)) {
    const ScratchShape shape = {
        .max_tokens = 1024, .num_heads = 64, .q_head_size = 640, .out_head_size = 640, .num_experts = 2048};
    ops_->set_scratch(ops_->device().alloc(ops_->scratch_bytes(shape)), shape);
  }

  Ops& backend() { return *ops_; }
  std::string numerics_id() const override { return ops_->numerics_id(); }
  Device& device() override { return host_; }
  const Capabilities& capabilities() const override { return ops_->capabilities(); }
  ExpandedMla* expanded_mla() override { return nullptr; }
  ExpertAllToAll* expert_all_to_all() override { return nullptr; }
  DeviceSampling* device_sampling() override { return nullptr; }
  int64_t scratch_bytes(const ScratchShape&) const override { return 0; }
  void set_scratch(Buffer, const ScratchShape&) override {}
  Weight pack(std::span<const MatrixSpec> batch) override { return ops_->pack(batch); }
  Weight pack_rows(const MatrixSpec& table) override { return ops_->pack_rows(table); }
  ExpertOperands expert_operands(const MoeExpertsArgs& a) const override { return ops_->expert_operands(a); }
  MlaForm mla_form(const Weight& w_uk, const Weight& w_uv, const KvView& cache) const override {
    return ops_->mla_form(w_uk, w_uv, cache);
  }

  void embed(const EmbedArgs& a, Stream) override {
    run([&](Ops& o) { o.embed({in(a.token_ids), a.table, out(a.out), {}, a.first_id, a.vocab_size}, {}); });
  }
  void rms_norm(const RmsNormArgs& a, Stream) override {
    run([&](Ops& o) {
      const View<float> host = a.out.f32.f32(), to = out(host);
      const View<const float> x = a.x.data == host.data ? View<const float>(to) : in(a.x);
      o.rms_norm({x, out(a.residual), in(a.weight), to, a.eps, in(a.square_sums), a.whole_size}, {});
    });
  }
  void sum_squares(const SumSquaresArgs& a, Stream) override {
    run([&](Ops& o) { o.sum_squares({in(a.x), out(a.out)}, {}); });
  }
  void linear(const LinearArgs& a, Stream) override {
    run([&](Ops& o) { o.linear({operand(a.x, a.weight.operand), a.weight, out(a.out), in(a.bias)}, {}); });
  }
  void quantize(const QuantizeArgs& a, Stream) override {
    run([&](Ops& o) { o.quantize({in(a.x), out(a.out.f32.f32())}, {}); });
  }
  void gather(const GatherArgs& a, Stream) override {
    run([&](Ops& o) { o.gather({in(a.x.f32()), in(a.row_idx), out(a.out.f32())}, {}); });
  }
  void concat_columns(const ConcatColumnsArgs& a, Stream) override {
    run([&](Ops& o) { o.concat_columns({in(a.parts), a.width, out(a.out)}, {}); });
  }
  void rope_table(const RopeTableArgs& a, Stream) override {
    run([&](Ops& o) { o.rope_table({in(a.positions), in(a.inv_freq), a.factor, out(a.cos_sin)}, {}); });
  }
  void rope(const RopeArgs& a, Stream) override {
    run([&](Ops& o) { o.rope({out(a.x), in(a.cos_sin), a.interleaved}, {}); });
  }
  void gqa_cache_write(const GqaCacheWriteArgs& a, Stream) override {
    run([&](Ops& o) { o.gqa_cache_write({in(a.k), in(a.v), in(a.slots), a.page_size, cache(a.cache)}, {}); });
  }
  void gqa_attention(const GqaAttentionArgs& a, Stream) override {
    run([&](Ops& o) {
      GqaAttentionArgs d = a;
      d.q = in(a.q);
      d.cache = cache(a.cache);
      d.page_table = in(a.page_table);
      d.seq_idx = in(a.seq_idx);
      d.positions = in(a.positions);
      d.sinks = in(a.sinks);
      d.out = out(a.out);
      o.gqa_attention(d, {});
    });
  }
  void mla_query(const MlaQueryArgs& a, Stream) override {
    run([&](Ops& o) { o.mla_query({in(a.q), a.w_uk, in(a.cos_sin), out(a.out.f32()), a.interleaved}, {}); });
  }
  void mla_cache_write(const MlaCacheWriteArgs& a, Stream) override {
    run([&](Ops& o) {
      o.mla_cache_write({in(a.kv), in(a.norm_weight), a.eps, in(a.cos_sin), in(a.slots), cache(a.cache), a.interleaved},
                        {});
    });
  }
  void mla_attention(const MlaAttentionArgs& a, Stream) override {
    run([&](Ops& o) {
      o.mla_attention({in(a.q.f32()), cache(a.cache), in(a.page_table), in(a.seq_idx), in(a.positions), a.kv_lora_rank,
                       a.scale, out(a.out.f32())},
                      {});
    });
  }
  void mla_output(const MlaOutputArgs& a, Stream) override {
    run([&](Ops& o) { o.mla_output({in(a.latent.f32()), a.w_uv, out(a.out.f32.f32())}, {}); });
  }
  void moe_gate(const MoeGateArgs& a, Stream) override {
    run([&](Ops& o) {
      MoeGateArgs d = a;
      d.logits = in(a.logits);
      d.bias = in(a.bias);
      d.expert_idx = out(a.expert_idx);
      d.expert_weight = out(a.expert_weight);
      d.count.counts = out(a.count.counts);
      d.count.positions = in(a.count.positions);
      d.count.replica_begin = in(a.count.replica_begin);
      o.moe_gate(d, {});
    });
  }
  void moe_permute(const MoePermuteArgs& a, Stream) override {
    run([&](Ops& o) {
      std::vector<MoeSource> sources;
      for (const MoeSource& s : a.sources)
        sources.push_back({.x = s.packed ? packed_rows(s.x) : Operand(in(s.x.f32())),
                           .packed = s.packed,
                           .expert_idx = in(s.expert_idx),
                           .expert_weight = in(s.expert_weight),
                           .row_of = out(s.row_of),
                           .token_begin = s.token_begin});
      o.moe_permute({sources, placement(a.placement), a.rank, out(a.expert_offsets), out(a.x.f32()), out(a.scale)}, {});
    });
  }
  void moe_experts(const MoeExpertsArgs& a, Stream) override {
    run([&](Ops& o) {
      MoeExpertsArgs d = a;
      const ExpertOperands dtypes = o.expert_operands(a);
      d.x = operand(a.x, dtypes.x);
      d.expert_offsets = in(a.expert_offsets);
      d.weight_idx = in(a.weight_idx);
      d.hidden = {};
      for (DType t : {DType::kF32, DType::kBF16, DType::kF8E4M3})
        if (dtypes.hidden.has(t)) d.hidden.set(space(t, a.hidden.dim(0), a.hidden.row_size()));
      d.out = out(a.out.f32());
      d.gate_bias = in(a.gate_bias);
      d.up_bias = in(a.up_bias);
      d.down_bias = in(a.down_bias);
      d.row_scale = in(a.row_scale);
      o.moe_experts(d, {});
    });
  }
  // The results stay where they are: only their addresses are used.
  void moe_locate(const MoeLocateArgs& a, Stream) override {
    run([&](Ops& o) {
      std::vector<MoeResults> results;
      for (const MoeResults& r : a.results)
        results.push_back({r.out, in(View<const int32_t>(r.row_of, {a.expert_idx.size()})).data});
      o.moe_locate(
          {in(a.expert_idx), results, placement(a.placement), a.rank, a.token_begin, a.row_bytes, out(a.expert_rows)},
          {});
    });
  }
  void moe_combine(const MoeCombineArgs& a, Stream) override {
    run([&](Ops& o) {
      std::vector<const void*> rows;
      for (int64_t i = 0; i < a.expert_rows.size(); ++i) {
        const auto* row = static_cast<const float*>(a.expert_rows.data[i]);
        rows.push_back(row ? in(View<const float>(row, {a.out.row_size()})).data : nullptr);
      }
      MoeCombineArgs d = a;
      d.expert_rows = in(View<const void* const>(rows.data(), {a.expert_rows.dim(0), a.expert_rows.dim(1)}));
      d.expert_weight = in(a.expert_weight);
      d.shared = in(a.shared);
      d.shared_gate = in(a.shared_gate);
      d.out = out(a.out);
      o.moe_combine(d, {});
    });
  }

 private:
  static constexpr int64_t kArenaBytes = int64_t{256} << 20;

  void run(const std::function<void(Ops&)>& operation) {
    used_ = 0;
    results_.clear();
    operation(*ops_);
    Device& d = ops_->device();
    d.synchronize({});
    for (const auto& [host, device, num_bytes] : results_) d.copy(host, device, num_bytes, {});
    d.synchronize({});
  }
  void* take(int64_t num_bytes) {
    CHECK(used_ + num_bytes <= kArenaBytes, "{} bytes in an arena of {}", used_ + num_bytes, kArenaBytes);
    std::byte* p = arena_.get() + used_;
    used_ += (num_bytes + 255) / 256 * 256;
    return p;
  }
  void* take(const void* host, int64_t num_bytes) {
    void* p = take(num_bytes);
    if (num_bytes > 0) ops_->device().upload(p, host, num_bytes);
    return p;
  }
  Operand space(DType dtype, int64_t rows, int64_t row_size) {
    return Operand(take(Operand::num_bytes(dtype, rows, row_size)), dtype, {rows, row_size});
  }
  // f32 rows of the host as an operand of the device.
  Operand operand(const Operand& host, DType dtype) {
    const View<float> x = in(host.f32());
    if (dtype == DType::kF32) return x;
    const Operand to = space(dtype, x.dim(0), x.row_size());
    ops_->quantize({View<const float>(x.data, {x.dim(0), x.row_size()}), to}, {});
    return to;
  }
  Operand packed_rows(Operand x) {
    x.data = take(x.data, x.dim(0) * packed_row_bytes(x.dtype, x.row_size()));
    return x;
  }
  PlacementView placement(const PlacementView& p) { return {in(p.replica_begin), in(p.rank), in(p.local)}; }
  template <class T>
  View<T> in(View<T> v) {
    if (v) v.data = static_cast<T*>(take(v.data, v.size() * int64_t(sizeof(T))));
    return v;
  }
  template <class T>
  View<T> out(const View<T>& v) {
    const View<T> device = in(v);
    if (v && v.size() > 0)
      results_.push_back(
          {const_cast<void*>(static_cast<const void*>(v.data)), device.data, v.size() * int64_t(sizeof(T))});
    return device;
  }
  KvView cache(KvView v) {
    void* device = take(v.data, v.num_bytes());
    results_.push_back({v.data, device, v.num_bytes()});
    v.data = device;
    return v;
  }

  struct Result {
    void* host;
    const void* device;
    int64_t num_bytes;
  };
  std::unique_ptr<Ops> ops_;
  CpuDevice host_;
  Buffer arena_;
  int64_t used_ = 0;
  std::vector<Result> results_;
};

}  // namespace moectl::test
