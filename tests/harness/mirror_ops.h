// MirrorOps: lets tests that hold everything in host memory drive a backend whose memory is elsewhere. Every operation
// copies its arguments to that backend's memory, runs there, and copies what it wrote back. Owns the backend and one
// arena, which each operation takes anew; results that a test prefills (with NaN) are prefilled there, too.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace moectl::test {

class MirrorOps final : public Ops {
 public:
  explicit MirrorOps(std::unique_ptr<Ops> ops) : ops_(std::move(ops)), arena_(ops_->alloc(kArenaBytes)) {
    const ScratchShape shape = {.max_tokens = 1024,
                                .max_expert_rows = 1024,
                                .max_linear_k = 2048,
                                .max_linear_n = 2048,
                                .num_heads = 64,
                                .q_head_size = 640,
                                .out_head_size = 640,
                                .num_experts = 2048,
                                .top_k = 16};
    const int64_t num_bytes = ops_->scratch_bytes(shape);
    if (num_bytes > 0) ops_->set_scratch(ops_->alloc(num_bytes), num_bytes);
  }

  Ops& device() { return *ops_; }
  std::string numerics_id() const override { return ops_->numerics_id(); }
  bool host_memory() const override { return ops_->host_memory(); }
  Buffer alloc(int64_t num_bytes) override {
    return {static_cast<std::byte*>(std::calloc(size_t(num_bytes), 1)), std::free};
  }
  void upload(void* to, const void* from, int64_t num_bytes) override { std::memcpy(to, from, size_t(num_bytes)); }
  void copy(void* to, const void* from, int64_t num_bytes, Stream) override { upload(to, from, num_bytes); }
  Weight pack(std::span<const MatrixSpec> batch) override { return ops_->pack(batch); }
  Weight pack_rows(const MatrixSpec& table) override { return ops_->pack_rows(table); }
  DType latent_dtype(const Weight& w_uk, const Weight& w_uv, const KvView& cache) const override {
    return ops_->latent_dtype(w_uk, w_uv, cache);
  }

  void embed(const EmbedArgs& a, Stream) override {
    run([&](Ops& o) { o.embed({in(a.token_ids), a.table, out(a.out)}, {}); });
  }
  void rms_norm(const RmsNormArgs& a, Stream) override {
    run([&](Ops& o) {
      const View<float> to = out(a.out);
      const View<const float> x = a.x.data == a.out.data ? View<const float>(to) : in(a.x);
      o.rms_norm({x, out(a.residual), in(a.weight), to, a.eps}, {});
    });
  }
  void linear(const LinearArgs& a, Stream) override {
    run([&](Ops& o) { o.linear({in(a.x), a.weight, out(a.out), in(a.bias)}, {}); });
  }
  void gather(const GatherArgs& a, Stream) override {
    run([&](Ops& o) { o.gather({in(a.x), in(a.row_idx), out(a.out)}, {}); });
  }
  void rope_table(const RopeTableArgs& a, Stream) override {
    run([&](Ops& o) { o.rope_table({in(a.positions), in(a.inv_freq), a.factor, out(a.cos_sin)}, {}); });
  }
  void rope(const RopeArgs& a, Stream) override {
    run([&](Ops& o) { o.rope({out(a.x), in(a.cos_sin), a.interleaved}, {}); });
  }
  void gqa_cache_write(const GqaCacheWriteArgs& a, Stream) override {
    run([&](Ops& o) { o.gqa_cache_write({in(a.k), in(a.v), in(a.slots), a.page_size, typed(a.cache)}, {}); });
  }
  void gqa_attention(const GqaAttentionArgs& a, Stream) override {
    run([&](Ops& o) {
      GqaAttentionArgs d = a;
      d.q = in(a.q);
      d.cache = typed(a.cache);
      d.page_table = in(a.page_table);
      d.seq_idx = in(a.seq_idx);
      d.positions = in(a.positions);
      d.sinks = in(a.sinks);
      d.out = out(a.out);
      o.gqa_attention(d, {});
    });
  }
  void mla_query(const MlaQueryArgs& a, Stream) override {
    run([&](Ops& o) { o.mla_query({in(a.q), a.w_uk, in(a.cos_sin), typed(a.out), a.interleaved}, {}); });
  }
  void mla_cache_write(const MlaCacheWriteArgs& a, Stream) override {
    run([&](Ops& o) {
      o.mla_cache_write({in(a.kv), in(a.norm_weight), a.eps, in(a.cos_sin), in(a.slots), typed(a.cache), a.interleaved},
                        {});
    });
  }
  void mla_attention(const MlaAttentionArgs& a, Stream) override {
    run([&](Ops& o) {
      o.mla_attention({typed(a.q), typed(a.cache), in(a.page_table), in(a.seq_idx), in(a.positions), a.kv_lora_rank,
                       a.scale, typed(a.out)},
                      {});
    });
  }
  void mla_output(const MlaOutputArgs& a, Stream) override {
    run([&](Ops& o) { o.mla_output({typed(a.latent), a.w_uv, out(a.out)}, {}); });
  }
  void moe_gate(const MoeGateArgs& a, Stream) override {
    run([&](Ops& o) {
      MoeGateArgs d = a;
      d.logits = in(a.logits);
      d.bias = in(a.bias);
      d.expert_idx = out(a.expert_idx);
      d.expert_weight = out(a.expert_weight);
      o.moe_gate(d, {});
    });
  }
  void moe_permute(const MoePermuteArgs& a, Stream) override {
    run([&](Ops& o) {
      std::vector<MoeSource> sources;
      for (const MoeSource& s : a.sources)
        sources.push_back({in(s.x), in(s.expert_idx), in(s.expert_weight), out(s.row_of)});
      o.moe_permute({sources, a.expert_begin, out(a.expert_offsets), out(a.x), out(a.scale)}, {});
    });
  }
  void moe_experts(const MoeExpertsArgs& a, Stream) override {
    run([&](Ops& o) {
      MoeExpertsArgs d = a;
      d.x = in(a.x);
      d.expert_offsets = in(a.expert_offsets);
      d.hidden = out(a.hidden);
      d.out = out(a.out);
      d.gate_bias = in(a.gate_bias);
      d.up_bias = in(a.up_bias);
      d.down_bias = in(a.down_bias);
      d.row_scale = in(a.row_scale);
      o.moe_experts(d, {});
    });
  }
  // The owners' results stay where they are: their addresses are computed with, and nobody reads them.
  void moe_locate(const MoeLocateArgs& a, Stream) override {
    run([&](Ops& o) {
      std::vector<MoeOwner> owners;
      for (const MoeOwner& owner : a.owners)
        owners.push_back({owner.out, in(View<const int32_t>(owner.row_of, {a.expert_idx.size()})).data});
      o.moe_locate({in(a.expert_idx), owners, a.num_local_experts, a.hidden_size, out(a.expert_rows)}, {});
    });
  }
  void moe_combine(const MoeCombineArgs& a, Stream) override {
    run([&](Ops& o) {
      std::vector<const float*> rows;
      for (int64_t i = 0; i < a.expert_rows.size(); ++i) {
        const float* row = a.expert_rows.data[i];
        rows.push_back(row ? in(View<const float>(row, {a.out.row_size()})).data : nullptr);
      }
      MoeCombineArgs d = a;
      d.expert_rows = in(View<const float* const>(rows.data(), {a.expert_rows.dim(0), a.expert_rows.dim(1)}));
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
    ops_->synchronize({});
    for (const auto& [host, device, num_bytes] : results_) ops_->copy(host, device, num_bytes, {});
    ops_->synchronize({});
  }
  void* take(const void* host, int64_t num_bytes) {
    CHECK(used_ + num_bytes <= kArenaBytes, "{} bytes in an arena of {}", used_ + num_bytes, kArenaBytes);
    std::byte* p = arena_.get() + used_;
    used_ += (num_bytes + 255) / 256 * 256;
    if (num_bytes > 0) ops_->upload(p, host, num_bytes);
    return p;
  }
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
  TypedView typed(TypedView v) {
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
  Buffer arena_;
  int64_t used_ = 0;
  std::vector<Result> results_;
};

}  // namespace moectl::test
