#include "core/model/model.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/model/rope.h"
#include "core/model/step.h"
#include "core/model/tensor_names.h"

namespace moectl {

// ------------------------------------------------------------------------------------------------ cache and buffers

KvCache::KvCache(const Config& config, Ops& ops, int64_t num_pages_, DType dtype) : num_pages(num_pages_) {
  const int64_t values = config.kv_values_per_token();
  shape_.dtype = dtype;
  if (config.attention() == AttentionKind::kMla)
    shape_.shape = {num_pages, kPageSize, values, 0};
  else
    shape_.shape = {num_pages, config.gqa.num_kv_heads, 2 * kPageSize, config.gqa.head_dim};
  const int64_t num_bytes = num_pages * kPageSize * values * dtype_bytes(dtype);
  for (int i = 0; i < config.num_layers + config.num_mtp_layers; ++i) layers.push_back(ops.alloc(num_bytes));
}

int64_t KvCache::bytes_per_token(const Config& config, DType dtype) {
  return int64_t{config.kv_values_per_token()} * dtype_bytes(dtype) * (config.num_layers + config.num_mtp_layers);
}

KvView KvCache::layer(int layer_idx) const {
  KvView view = shape_;
  view.data = layers[size_t(layer_idx)].get();
  return view;
}

Buffers::Buffers(const Config& config, const ModelLimits& limits, Ops& ops) {
  auto make = [&]<class T>(View<T>& view, std::initializer_list<int64_t> dims) {
    View<T> shape(nullptr, dims);
    storage_.push_back(ops.alloc(shape.size() * int64_t(sizeof(T))));
    view = View<T>(reinterpret_cast<T*>(storage_.back().get()), dims);
  };
  const int64_t tokens = limits.max_tokens, hidden_size = config.hidden_size, heads_n = config.num_heads;
  const MlaConfig& mla = config.mla;
  const MoeConfig& moe = config.moe;
  const int64_t latent_size = mla.kv_lora_rank + mla.qk_rope_head_dim;
  make(token_ids, {tokens});
  make(positions, {tokens});
  make(seq_idx, {tokens});
  make(slots, {tokens});
  make(page_table, {limits.max_seqs * ((limits.max_model_len + kPageSize - 1) / kPageSize)});
  make(logits_rows, {limits.max_logits});
  make(cos_sin, {tokens, config.rope.dim});
  make(residual, {tokens, hidden_size});
  make(normed, {tokens, hidden_size});
  make(delta, {tokens, hidden_size});
  make(hidden, {tokens, hidden_size});
  if (config.attention() == AttentionKind::kMla) {
    make(q, {tokens, heads_n, mla.qk_nope_head_dim + mla.qk_rope_head_dim});
    make(heads, {tokens, heads_n, mla.v_head_dim});
    make(q_a, {tokens, std::max(mla.q_lora_rank, 1)});
    make(kv_a, {tokens, latent_size});
    make(q_latent, {tokens, heads_n, latent_size});
    make(latent, {tokens, heads_n, mla.kv_lora_rank});
  } else {
    const int64_t kv_heads = config.gqa.num_kv_heads, head_dim = config.gqa.head_dim;
    make(q, {tokens, heads_n, head_dim});
    make(heads, {tokens, heads_n, head_dim});
    make(k, {tokens, kv_heads, head_dim});
    make(v, {tokens, kv_heads, head_dim});
  }
  make(gate_logits, {tokens, std::max(moe.num_experts, 1)});
  make(expert_idx, {tokens, std::max(moe.num_experts_per_tok, 1)});
  make(expert_weight, {tokens, std::max(moe.num_experts_per_tok, 1)});
  make(shared, {tokens, hidden_size});
  make(shared_gate, {tokens, 1});
  make(logits_hidden, {limits.max_logits, hidden_size});
  make(logits, {limits.max_logits, config.vocab_size});
  make(one_expert, {2});
}

// ------------------------------------------------------------------------------------------------ decoder

void decoder_layer(Step& step, const LayerWeights& w, int layer_idx, View<const float> delta) {
  Buffers& b = step.buffers;
  const float eps = step.config.rms_norm_eps;
  const View<float> residual = b.residual.first(step.num_tokens), normed = b.normed.first(step.num_tokens);
  const View<float> out = b.delta.first(step.num_tokens);
  if (delta)
    step.ops.rms_norm({delta, residual, w.input_norm, normed, eps}, step.stream);
  else
    step.ops.rms_norm({.x = residual, .weight = w.input_norm, .out = normed, .eps = eps}, step.stream);
  if (step.config.layers[size_t(layer_idx)].attention == AttentionKind::kMla)
    mla_layer(step, w.mla, layer_idx, normed, out);
  else
    gqa_layer(step, w.gqa, layer_idx, normed, out);
  step.ops.rms_norm({out, residual, w.post_attention_norm, normed, eps}, step.stream);
  feed_forward(step, w, step.config.layers[size_t(layer_idx)].feed_forward, normed, out);
}

int leave_out_absent_mtp(Config& config, const Checkpoint& checkpoint) {
  const int num = config.num_mtp_layers;
  for (int i = 0; i < num; ++i) {
    const std::string prefix = layer_prefix(config, config.num_layers + i);
    const auto first = checkpoint.tensors().lower_bound(prefix);
    if (first != checkpoint.tensors().end() && first->first.starts_with(prefix)) return 0;
  }
  config.num_mtp_layers = 0;
  config.layers.resize(size_t(config.num_layers));
  return num;
}

struct Model::Impl {
  const Config& config;
  std::shared_ptr<const ModelWeights> weights;
  Ops& ops;
  Communicator& comm;
  KvCache& cache;
  const ModelLimits limits;
  Buffers buffers;
  std::unique_ptr<ExpertExchange> exchange;
  Buffer inv_freq_storage, expert_hidden;
  View<const float> inv_freq;
  std::vector<int64_t> host_slots;
  int64_t num_hidden = 0;

  Impl(const Config& c, std::shared_ptr<const ModelWeights> w, Ops& o, Communicator& co, KvCache& ca, ModelLimits l)
      : config(c), weights(std::move(w)), ops(o), comm(co), cache(ca), limits(l), buffers(c, l, o) {
    const bool has_moe = std::any_of(c.layers.begin(), c.layers.end(),
                                     [](const LayerConfig& x) { return x.feed_forward == FeedForwardKind::kMoe; });
    int64_t dense_size = c.intermediate_size, rows = 0;
    if (has_moe) {
      exchange = std::make_unique<ExpertExchange>(comm, ops, c.moe.num_experts, c.moe.num_experts_per_tok,
                                                  c.hidden_size, l.max_tokens);
      dense_size = std::max<int64_t>(dense_size, c.moe.shared_intermediate_size);
      rows = int64_t{comm.size()} * l.max_tokens *
             std::min<int64_t>(c.moe.num_experts_per_tok, exchange->num_local_experts());
    }
    const int64_t floats = std::max(dense_size * l.max_tokens, rows * c.moe.moe_intermediate_size);
    expert_hidden = ops.alloc(floats * int64_t(sizeof(float)));
    buffers.mlp_hidden = View<float>(reinterpret_cast<float*>(expert_hidden.get()), {floats});
    const std::vector<float> freq = rope_inv_freq(c.rope);
    inv_freq_storage = ops.alloc(int64_t(freq.size() * sizeof(float)));
    ops.upload(inv_freq_storage.get(), freq.data(), int64_t(freq.size() * sizeof(float)));
    inv_freq = View<const float>(reinterpret_cast<const float*>(inv_freq_storage.get()), {int64_t(freq.size())});
  }

  void check(const Batch& batch) const {
    const int n = batch.num_tokens(), seqs = batch.num_seqs();
    CHECK(n <= limits.max_tokens && seqs <= limits.max_seqs && batch.num_logits() <= limits.max_logits,
          "a batch of {} tokens, {} sequences, {} logits; the limits are {}, {}, {}", n, seqs, batch.num_logits(),
          limits.max_tokens, limits.max_seqs, limits.max_logits);
    CHECK(int(batch.positions.size()) == n && int(batch.seq_idx.size()) == n, "batch columns differ in length");
    for (int i = 0; i < n; ++i) {
      CHECK(batch.seq_idx[size_t(i)] >= 0 && batch.seq_idx[size_t(i)] < seqs, "sequence {} of {}",
            batch.seq_idx[size_t(i)], seqs);
      CHECK(batch.positions[size_t(i)] >= 0 && batch.positions[size_t(i)] / kPageSize < batch.max_pages,
            "position {} in {} pages", batch.positions[size_t(i)], batch.max_pages);
    }
    for (int32_t row : batch.logits_rows) CHECK(row >= 0 && row < n, "logits of row {} of {}", row, n);
  }

  Step begin_step(const Batch& batch) {
    check(batch);
    Buffers& b = buffers;
    const int64_t n = batch.num_tokens();
    host_slots.clear();
    for (int64_t i = 0; i < n; ++i) {
      const int32_t position = batch.positions[size_t(i)];
      const int64_t page =
          batch.page_table[size_t(batch.seq_idx[size_t(i)]) * size_t(batch.max_pages) + size_t(position / kPageSize)];
      host_slots.push_back(page * kPageSize + position % kPageSize);
    }
    auto upload = [&]<class T>(const View<T>& to, const std::vector<T>& from) {
      CHECK(int64_t(from.size()) <= to.size(), "{} values in a buffer of {}", from.size(), to.size());
      ops.upload(to.data, from.data(), int64_t(from.size() * sizeof(T)));
      return View<const T>(to.data, {int64_t(from.size())});
    };
    Step step{.config = config,
              .ops = ops,
              .buffers = b,
              .cache = cache,
              .exchange = exchange.get(),
              .stream = {},
              .inv_freq = inv_freq};
    step.num_tokens = n;
    step.num_logits = batch.num_logits();
    step.token_ids = upload(b.token_ids, batch.token_ids);
    step.positions = upload(b.positions, batch.positions);
    step.seq_idx = upload(b.seq_idx, batch.seq_idx);
    step.logits_rows = upload(b.logits_rows, batch.logits_rows);
    step.slots = upload(b.slots, host_slots);
    upload(b.page_table, batch.page_table);
    step.page_table = View<const int32_t>(b.page_table.data, {batch.num_seqs(), batch.max_pages});
    upload(b.one_expert, std::vector<int32_t>{0, int32_t(n)});
    ops.rope_table({step.positions, inv_freq, config.rope.attention_factor.value_or(1.0f), b.cos_sin.first(n)},
                   step.stream);
    return step;
  }

  // The MTP module's input x = eh_proj [enorm(embedding); hnorm(state)]: its two halves stand in the residual stream
  // and in buffers.delta, and meet in the layer's first norm.
  Step begin_mtp(const Batch& batch, View<const float> hidden) {
    CHECK(!weights->mtp.empty(), "the checkpoint has no MTP module");
    CHECK(hidden.dim(0) == batch.num_tokens(), "{} states for {} tokens", hidden.dim(0), batch.num_tokens());
    const MtpWeights& w = weights->mtp[0];
    const float eps = config.rms_norm_eps;
    Step step = begin_step(batch);
    const int64_t n = step.num_tokens;
    const View<float> residual = buffers.residual.first(n), normed = buffers.normed.first(n),
                      delta = buffers.delta.first(n);
    ops.embed({step.token_ids, w.embed ? w.embed : weights->embed, delta}, step.stream);
    ops.rms_norm({.x = delta, .weight = w.enorm, .out = normed, .eps = eps}, step.stream);
    ops.linear({normed, w.eh_proj_e, residual}, step.stream);
    ops.rms_norm({.x = hidden, .weight = w.hnorm, .out = normed, .eps = eps}, step.stream);
    ops.linear({normed, w.eh_proj_h, delta}, step.stream);
    return step;
  }

  View<const float> logits(Step& step, View<const float> normed, const Weight& head) {
    const View<float> rows = buffers.logits_hidden.first(step.num_logits), out = buffers.logits.first(step.num_logits);
    ops.gather({normed, step.logits_rows, rows}, step.stream);
    ops.linear({rows, head, out}, step.stream);
    return out;
  }
};

Model::Model(const Config& config, std::shared_ptr<const ModelWeights> weights, Ops& ops, Communicator& comm,
             KvCache& cache, ModelLimits limits)
    : impl_(std::make_unique<Impl>(config, std::move(weights), ops, comm, cache, limits)) {}
Model::~Model() = default;

View<const float> Model::forward(const Batch& batch) {
  Impl& m = *impl_;
  const ModelWeights& w = *m.weights;
  Step step = m.begin_step(batch);
  const View<float> residual = m.buffers.residual.first(step.num_tokens),
                    hidden = m.buffers.hidden.first(step.num_tokens);
  View<const float> delta;  // the last sub-layer's contribution, not yet added to the residual stream
  m.ops.embed({step.token_ids, w.embed, residual}, step.stream);
  for (int i = 0; i < m.config.num_layers; ++i) {
    decoder_layer(step, w.layers[size_t(i)], i, delta);
    delta = m.buffers.delta.first(step.num_tokens);
  }
  m.ops.rms_norm({delta, residual, w.norm, hidden, m.config.rms_norm_eps}, step.stream);
  m.num_hidden = step.num_tokens;
  return m.logits(step, hidden, w.head);
}

View<const float> Model::hidden() const {
  return impl_->buffers.hidden.first(impl_->num_hidden);
}

View<const float> Model::forward_mtp(const Batch& batch, View<const float> hidden) {
  Impl& m = *impl_;
  Step step = m.begin_mtp(batch, hidden);
  const MtpWeights& w = m.weights->mtp[0];
  const int64_t n = step.num_tokens;
  const View<float> residual = m.buffers.residual.first(n), normed = m.buffers.normed.first(n),
                    delta = m.buffers.delta.first(n);
  decoder_layer(step, w.layer, m.config.num_layers, delta);
  m.ops.rms_norm({delta, residual, w.norm, normed, m.config.rms_norm_eps}, step.stream);
  return m.logits(step, normed, w.head ? w.head : m.weights->head);
}

void Model::cache_mtp(const Batch& batch, View<const float> hidden) {
  Impl& m = *impl_;
  Step step = m.begin_mtp(batch, hidden);
  const LayerWeights& w = m.weights->mtp[0].layer;
  const int64_t n = step.num_tokens;
  const View<float> normed = m.buffers.normed.first(n);
  m.ops.rms_norm({m.buffers.delta.first(n), m.buffers.residual.first(n), w.input_norm, normed, m.config.rms_norm_eps},
                 step.stream);
  if (m.config.attention() == AttentionKind::kMla)
    mla_cache(step, w.mla, m.config.num_layers, normed);
  else
    gqa_cache(step, w.gqa, m.config.num_layers, normed);
}

}  // namespace moectl
