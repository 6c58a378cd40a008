#include "core/model/model.h"

#include <algorithm>
#include <map>

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

void Buffers::visit(const Config& config, const ModelLimits& limits, int64_t expert_rows, auto&& make) {
  const int64_t tokens = limits.max_tokens, hidden_size = config.hidden_size, heads_n = config.num_heads;
  const MlaConfig& mla = config.mla;
  const MoeConfig& moe = config.moe;
  const int64_t latent_size = mla.kv_lora_rank + mla.qk_rope_head_dim;
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
  make(mlp_hidden, {std::max(config.intermediate_size * tokens, expert_rows * moe.moe_intermediate_size)});
  make(shared_hidden, {tokens, std::max(moe.shared_intermediate_size, 1)});
  make(gate_logits, {tokens, std::max(moe.num_experts, 1)});
  make(expert_idx, {tokens, std::max(moe.num_experts_per_tok, 1)});
  make(expert_weight, {tokens, std::max(moe.num_experts_per_tok, 1)});
  make(shared, {tokens, hidden_size});
  make(shared_gate, {tokens, 1});
  make(logits_hidden, {limits.max_logits, hidden_size});
  make(logits, {limits.max_logits, config.vocab_size});
  make(sampled, {limits.max_logits});
}

Buffers::Buffers(const Config& config, const ModelLimits& limits, int64_t expert_rows, Ops& ops) {
  visit(config, limits, expert_rows, [&]<class T>(View<T>& view, std::initializer_list<int64_t> dims) {
    View<T> shape(nullptr, dims);
    storage_.push_back(ops.alloc(shape.size() * int64_t(sizeof(T))));
    view = View<T>(reinterpret_cast<T*>(storage_.back().get()), dims);
  });
}

int64_t Buffers::num_bytes(const Config& config, const ModelLimits& limits, int64_t expert_rows) {
  int64_t sum = 0;
  Buffers().visit(config, limits, expert_rows, [&]<class T>(View<T>&, std::initializer_list<int64_t> dims) {
    sum += View<T>(nullptr, dims).size() * int64_t(sizeof(T));
  });
  return sum;
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

namespace {

bool has_moe(const Config& c) {
  return std::any_of(c.layers.begin(), c.layers.end(),
                     [](const LayerConfig& x) { return x.feed_forward == FeedForwardKind::kMoe; });
}

int64_t max_expert_rows(const Config& c, const ModelLimits& limits, int num_ranks) {
  if (!has_moe(c)) return 0;
  return int64_t{num_ranks} * limits.max_tokens *
         std::min<int64_t>(c.moe.num_experts_per_tok, c.moe.num_experts / num_ranks);
}

ScratchShape scratch_shape(const Config& c, const ModelLimits& limits, int num_ranks) {
  const bool mla = c.attention() == AttentionKind::kMla;
  const int64_t q_head = mla ? c.mla.qk_nope_head_dim + c.mla.qk_rope_head_dim : c.gqa.head_dim;
  const int64_t v_head = mla ? c.mla.v_head_dim : c.gqa.head_dim;
  return {
      .max_tokens = limits.max_tokens,
      .max_expert_rows = max_expert_rows(c, limits, num_ranks),
      .max_linear_k = std::max<int64_t>({c.hidden_size, c.mla.q_lora_rank, c.intermediate_size, c.num_heads * v_head,
                                         c.moe.shared_intermediate_size, c.moe.moe_intermediate_size}),
      .max_linear_n = std::max<int64_t>({c.hidden_size, c.vocab_size, c.intermediate_size, c.num_heads * q_head,
                                         c.moe.shared_intermediate_size, c.moe.moe_intermediate_size}),
      .max_expert_k = std::max<int64_t>(c.hidden_size, c.moe.moe_intermediate_size),
      .num_heads = c.num_heads,
      .q_head_size = mla ? c.kv_values_per_token() : q_head,
      .out_head_size = mla ? c.mla.kv_lora_rank : v_head,
      .num_experts = c.moe.num_experts,
      .top_k = c.moe.num_experts_per_tok,
      .num_ranks = num_ranks,
      .max_sampled_rows = limits.max_logits,
      .vocab_size = c.vocab_size};
}

// Decode steps are recorded for few sizes; a step takes the next larger one.
int64_t rounded_rows(int64_t n, int64_t limit) {
  int64_t rows = 1;
  while (rows < n && rows < 8) rows *= 2;
  const int64_t step = n <= 64 ? 8 : n <= 256 ? 16 : 32;
  if (n > 8) rows = (n + step - 1) / step * step;
  return std::min(rows, limit);
}

}  // namespace

struct Model::Impl {
  const Config& config;
  std::shared_ptr<const ModelWeights> weights;
  Ops& ops;
  KvCache& cache;
  const ModelLimits limits;
  Buffers buffers;
  StepInputs inputs;
  std::unique_ptr<ExpertExchange> exchange;
  Buffer inv_freq_storage;
  View<const float> inv_freq;
  int64_t num_hidden = 0;
  // Recorded decode steps by (rows, columns of the page table); null: run once, so that all is warm, not recorded yet.
  std::map<std::pair<int64_t, int64_t>, Graph> graphs;

  Impl(const Config& c, std::shared_ptr<const ModelWeights> w, Ops& o, Communicator& comm, KvCache& ca, ModelLimits l)
      : config(c),
        weights(std::move(w)),
        ops(o),
        cache(ca),
        limits(l),
        buffers(c, l, max_expert_rows(c, l, comm.size()), o),
        inputs(l, o) {
    if (has_moe(c))
      exchange = std::make_unique<ExpertExchange>(comm, ops, c.moe.num_experts, c.moe.num_experts_per_tok,
                                                  c.hidden_size, l.max_tokens);
    const int64_t scratch_bytes = ops.scratch_bytes(scratch_shape(c, l, comm.size()));
    if (scratch_bytes > 0) ops.set_scratch(ops.alloc(scratch_bytes), scratch_bytes);
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
    inputs.set(batch, batch.num_tokens(), batch.num_logits(), batch.max_pages, ops.stream());
    return step_of(batch.num_tokens());
  }

  Step step_of(int64_t num_rows) {
    return {.config = config,
            .ops = ops,
            .buffers = buffers,
            .cache = cache,
            .exchange = exchange.get(),
            .stream = ops.stream(),
            .in = inputs,
            .num_tokens = num_rows};
  }

  void rope_table(Step& step) {
    ops.rope_table({step.in.positions, inv_freq, config.rope.attention_factor.value_or(1.0f),
                    buffers.cos_sin.first(step.num_tokens)},
                   step.stream);
  }

  std::atomic<int64_t>* layers_done = nullptr;

  // Inputs to logits: all that a step computes on the device.
  View<const float> layers(Step& step) {
    const ModelWeights& w = *weights;
    const View<float> residual = buffers.residual.first(step.num_tokens),
                      hidden = buffers.hidden.first(step.num_tokens);
    View<const float> delta;  // the last sub-layer's contribution, not yet added to the residual stream
    rope_table(step);
    ops.embed({step.in.token_ids, w.embed, residual, buffers.sampled}, step.stream);
    for (int i = 0; i < config.num_layers; ++i) {
      decoder_layer(step, w.layers[size_t(i)], i, delta);
      delta = buffers.delta.first(step.num_tokens);
      if (layers_done) ++*layers_done;
    }
    ops.rms_norm({delta, residual, w.norm, hidden, config.rms_norm_eps}, step.stream);
    return logits(step, hidden, w.head);
  }

  // A step of one token a sequence, each with its logits, where the backend can record: the number of rows is rounded
  // up, and what it puts into the stream is recorded at the second time and replayed from then on.
  bool can_replay(const Batch& batch) const {
    return !ops.host_memory() && batch.num_tokens() > 0 && batch.num_tokens() == batch.num_seqs() &&
           batch.num_logits() == batch.num_tokens();
  }
  View<const float> replay(const Batch& batch) {
    check(batch);
    const int64_t rows = rounded_rows(batch.num_tokens(), std::min(limits.max_logits, limits.max_seqs));
    const int64_t page_stride = StepInputs::page_stride(batch.max_pages);
    inputs.set(batch, rows, rows, page_stride, ops.stream());
    Step step = step_of(rows);
    const auto [place, is_new] = graphs.try_emplace({rows, page_stride});
    if (is_new) return layers(step).first(batch.num_tokens());
    if (!place->second) place->second = ops.capture([&] { layers(step); });
    if (!place->second) return layers(step).first(batch.num_tokens());
    ops.replay(place->second, ops.stream());
    return buffers.logits.first(batch.num_tokens());
  }

  // The MTP module's input x = eh_proj [enorm(embedding); hnorm(state)]: its two halves stand in the residual stream
  // and in buffers.delta, and meet in the layer's first norm.
  Step begin_mtp(const Batch& batch, View<const float> hidden) {
    CHECK(!weights->mtp.empty(), "the checkpoint has no MTP module");
    CHECK(hidden.dim(0) == batch.num_tokens(), "{} states for {} tokens", hidden.dim(0), batch.num_tokens());
    const MtpWeights& w = weights->mtp[0];
    const float eps = config.rms_norm_eps;
    Step step = begin_step(batch);
    rope_table(step);
    const int64_t n = step.num_tokens;
    const View<float> residual = buffers.residual.first(n), normed = buffers.normed.first(n),
                      delta = buffers.delta.first(n);
    ops.embed({step.in.token_ids, w.embed ? w.embed : weights->embed, delta}, step.stream);
    ops.rms_norm({.x = delta, .weight = w.enorm, .out = normed, .eps = eps}, step.stream);
    ops.linear({normed, w.eh_proj_e, residual}, step.stream);
    ops.rms_norm({.x = hidden, .weight = w.hnorm, .out = normed, .eps = eps}, step.stream);
    ops.linear({normed, w.eh_proj_h, delta}, step.stream);
    return step;
  }

  View<const float> logits(Step& step, View<const float> normed, const Weight& head) {
    const int64_t n = step.in.logits_rows.dim(0);
    const View<float> rows = buffers.logits_hidden.first(n), out = buffers.logits.first(n);
    ops.gather({normed, step.in.logits_rows, rows}, step.stream);
    ops.linear({rows, head, out}, step.stream);
    return out;
  }
};

Model::Model(const Config& config, std::shared_ptr<const ModelWeights> weights, Ops& ops, Communicator& comm,
             KvCache& cache, ModelLimits limits)
    : impl_(std::make_unique<Impl>(config, std::move(weights), ops, comm, cache, limits)) {}
Model::~Model() = default;

void Model::count_layers(std::atomic<int64_t>* done) {
  impl_->layers_done = done;
}

View<const float> Model::forward(const Batch& batch) {
  Impl& m = *impl_;
  m.num_hidden = batch.num_tokens();
  if (m.can_replay(batch)) return m.replay(batch);
  Step step = m.begin_step(batch);
  return m.layers(step);
}

int64_t Model::workspace_bytes(const Config& config, const ModelLimits& limits, int num_ranks, const Ops& ops) {
  int64_t sum = Buffers::num_bytes(config, limits, max_expert_rows(config, limits, num_ranks)) +
                StepInputs::num_bytes(limits) + ops.scratch_bytes(scratch_shape(config, limits, num_ranks));
  if (has_moe(config))
    sum += ExpertExchange::num_bytes(num_ranks, config.moe.num_experts, config.moe.num_experts_per_tok,
                                     config.hidden_size, limits.max_tokens);
  return sum;
}

View<int32_t> Model::sampled() const {
  return impl_->buffers.sampled;
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
