#include "core/model/model.h"

#include <algorithm>
#include <map>
#include <optional>

#include "core/base/check.h"
#include "core/model/rope.h"
#include "core/model/step.h"
#include "core/model/tensor_names.h"

namespace moectl {

// ------------------------------------------------------------------------------------------------ cache

KvCache::KvCache(const Config& config, const LocalDims& dims, Ops& ops, int64_t num_pages_, DType dtype)
    : num_pages(num_pages_) {
  const int64_t values = values_per_token(config, dims);
  shape_.dtype = dtype;
  if (config.attention() == AttentionKind::kMla)
    shape_.shape = {num_pages, kPageSize, values, 0};
  else
    shape_.shape = {num_pages, dims.num_kv_heads, 2 * kPageSize, config.gqa.head_dim};
  const int64_t num_bytes = num_pages * kPageSize * values * dtype_bytes(dtype);
  for (int i = 0; i < config.num_layers + config.num_mtp_layers; ++i) layers.push_back(ops.device().alloc(num_bytes));
}

// Compressed KV and the rotary key, which no rank shares with others, or keys and values of the rank's heads.
int64_t KvCache::values_per_token(const Config& config, const LocalDims& dims) {
  if (config.attention() == AttentionKind::kMla) return config.mla.kv_lora_rank + config.mla.qk_rope_head_dim;
  return int64_t{2} * dims.num_kv_heads * config.gqa.head_dim;
}

int64_t KvCache::bytes_per_token(const Config& config, const LocalDims& dims, DType dtype) {
  return values_per_token(config, dims) * dtype_bytes(dtype) * (config.num_layers + config.num_mtp_layers);
}

KvView KvCache::layer(int layer_idx) const {
  KvView view = shape_;
  view.data = layers[size_t(layer_idx)].get();
  return view;
}

// ------------------------------------------------------------------------------------------------ decoder

void decoder_layer(Step& step, const LayerWeights& w, const LayerOperands& operands, int layer_idx,
                   View<const float> delta) {
  Buffers& b = step.buffers;
  const int64_t n = step.num_tokens, hidden_size = step.config.hidden_size;
  const float eps = step.config.rms_norm_eps;
  const LayerConfig& layer = step.config.layers[size_t(layer_idx)];
  const View<float> residual = b.residual.first(n), out = b.delta.first(n);
  const Operands attention_input = b.normed.rows(n, hidden_size, operands.attention_input);
  if (delta)
    step.ops.rms_norm({delta, residual, w.input_norm, attention_input, eps}, step.stream);
  else
    step.ops.rms_norm({.x = residual, .weight = w.input_norm, .out = attention_input, .eps = eps}, step.stream);
  if (layer.attention == AttentionKind::kMla)
    mla_layer(step, w.mla, operands, layer_idx, attention_input, out);
  else
    gqa_layer(step, w.gqa, layer_idx, attention_input, out);
  step.tp.all_reduce(out, step.stream);
  const Operands ffn_input = b.normed.rows(n, hidden_size, operands.ffn_input);
  step.ops.rms_norm({out, residual, w.post_attention_norm, ffn_input, eps}, step.stream);
  feed_forward(step, w, operands, layer_idx, ffn_input, out);
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
  return !moe_layers(c).empty();
}

ScratchShape scratch_shape(const Config& c, const LocalDims& dims, const ModelLimits& limits) {
  const bool mla = c.attention() == AttentionKind::kMla;
  return {.max_tokens = limits.max_tokens,
          .num_heads = dims.num_heads,
          .q_head_size = mla ? KvCache::values_per_token(c, dims) : c.gqa.head_dim,
          .out_head_size = mla ? c.mla.kv_lora_rank : c.gqa.head_dim,
          .num_experts = c.moe.num_experts,
          .max_sampled_rows = limits.max_logits,
          .vocab_size = c.vocab_size};
}

ExpertDispatchConfig dispatch_config(const Config& c, const LocalDims& dims, const ModelLimits& limits) {
  return {.top_k = c.moe.num_experts_per_tok,
          .hidden_size = c.hidden_size,
          .backend = limits.all2all_backend,
          .deterministic = limits.deterministic_combine,
          .peers_addressable = limits.peers_addressable,
          .max_tokens = int(TensorParallel::max_share(limits.max_tokens, dims))};
}

int64_t max_expert_rows(const Config& c, const LocalDims& dims, const ModelLimits& limits,
                        const ExpertPlacement& placement) {
  return has_moe(c) ? ExpertDispatch::max_rows(placement, dispatch_config(c, dims, limits)) : 0;
}

int64_t min_expanded_chunk(Ops& ops) {
  return ops.expanded_mla() ? ops.expanded_mla()->min_rows() : 0;
}

}  // namespace

// A captured decode step serves batches of as many rows, with as many rows per sequence and columns of the page table.
struct GraphKey {
  int64_t rows = 0, rows_per_seq = 1, page_stride = 0;
  auto operator<=>(const GraphKey&) const = default;
};

struct Model::Impl {
  const Config& config;
  std::shared_ptr<const ModelWeights> weights;
  Ops& ops;
  Communicator& comm;   // the ranks that the experts are placed on
  Communicator& peers;  // the ranks whose steps this rank's wait for: those of `comm`, or of its TP group
  KvCache& cache;
  const ModelLimits limits;
  TensorParallel tp;
  Buffers buffers;
  std::unique_ptr<StepInputs> inputs;
  std::unique_ptr<ExpertDispatch> experts;
  std::unique_ptr<ExpertCounts> expert_counts;  // where there are experts
  OperandPlan operands;
  Buffer inv_freq_storage;
  View<const float> inv_freq;
  int64_t num_hidden = 0;
  std::map<GraphKey, Graph> graphs;  // null: run once, so that everything is loaded, and not captured yet

  Impl(const Config& c, std::shared_ptr<const ModelWeights> w, Ops& o, Communicator& co,
       const ExpertPlacement& placement, KvCache& ca, ModelLimits l, Communicator* tp_group)
      : config(c),
        weights(std::move(w)),
        ops(o),
        comm(co),
        peers(comm.size() == 1 && tp_group ? *tp_group : comm),
        cache(ca),
        limits(l),
        tp(tp_group, weights->dims),
        buffers(c, weights->dims, l, max_expert_rows(c, weights->dims, l, placement), o) {
    Device& device = ops.device();
    for (const View<float>& buffer :
         {buffers.residual, buffers.delta, buffers.shared, buffers.square_sums, buffers.logits_parts})
      tp.register_buffer(buffer);
    if (has_moe(c)) {
      experts = make_expert_dispatch(comm, ops, placement, dispatch_config(c, weights->dims, l));
      expert_counts = std::make_unique<ExpertCounts>(c, placement, comm.rank(), device);
    }
    const ScratchShape scratch = scratch_shape(c, weights->dims, l);
    ops.set_scratch(device.alloc(ops.scratch_bytes(scratch)), scratch);
    inputs = std::make_unique<StepInputs>(l, device, min_expanded_chunk(ops));
    operands = plan_operands(c, *weights, ops, cache.layer(0), placement.num_local());
    const std::vector<float> freq = rope_inv_freq(c.rope);
    inv_freq_storage = device.alloc(int64_t(freq.size() * sizeof(float)));
    device.upload(inv_freq_storage.get(), freq.data(), int64_t(freq.size() * sizeof(float)));
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
    inputs->set(batch, batch.num_tokens(), batch.num_logits(), batch.max_pages, ops.device().stream());
    return step_of(batch.num_tokens());
  }

  Step step_of(int64_t num_rows) {
    return {.config = config,
            .ops = ops,
            .buffers = buffers,
            .cache = cache,
            .tp = tp,
            .experts = experts.get(),
            .expert_counts = expert_counts.get(),
            .stream = ops.device().stream(),
            .in = *inputs,
            .num_tokens = num_rows};
  }

  void rope_table(Step& step) {
    ops.rope_table({step.in.positions, inv_freq, config.rope.attention_factor.value_or(1.0f),
                    buffers.cos_sin.first(step.num_tokens)},
                   step.stream);
  }

  // Each TP rank holds a part of the table, and zeros stand for the tokens of other parts.
  void embed(Step& step, const Weight& table, View<float> out, View<const int32_t> sampled) {
    ops.embed({.token_ids = step.in.token_ids,
               .table = table,
               .out = out,
               .sampled = sampled,
               .first_id = weights->dims.vocab_begin,
               .vocab_size = config.vocab_size},
              step.stream);
    tp.all_reduce(out, step.stream);
  }

  std::function<void(bool captured)> layer_issued = [](bool) {};

  // Inputs to logits: all that a step computes on the device.
  View<const float> layers(Step& step, bool captured = false) {
    const ModelWeights& w = *weights;
    const View<float> residual = buffers.residual.first(step.num_tokens);
    const Operands hidden = buffers.hidden.rows(step.num_tokens, config.hidden_size, {DType::kF32, w.head.operand});
    View<const float> delta;  // the last sub-layer's contribution, not yet added to the residual stream
    rope_table(step);
    embed(step, w.embed, residual, buffers.sampled);
    for (int i = 0; i < config.num_layers; ++i) {
      decoder_layer(step, w.layers[size_t(i)], operands.layers[size_t(i)], i, delta);
      delta = buffers.delta.first(step.num_tokens);
      layer_issued(captured);
    }
    ops.rms_norm({delta, residual, w.norm, hidden, config.rms_norm_eps}, step.stream);
    return logits(step, hidden, w.head);
  }

  // The graph of a decode step whose rows all have logits, its number of rows rounded up; nullopt: the step runs
  // eagerly. Ranks agree: either all replay graphs of the same shape, an idle rank one of padding rows, or none does.
  std::optional<GraphKey> graph_of(const Batch& batch) {
    const bool decodes = batch.num_tokens() == batch.num_seqs() && batch.num_logits() == batch.num_tokens();
    GraphKey key;
    if (!ops.device().graphs() || !peers.capturable()) return std::nullopt;
    if (decodes && batch.num_tokens() > 0) {
      const int64_t limit = std::min(limits.max_logits, limits.max_seqs);
      key.rows = std::min(ops.device().graphs()->graph_rows(batch.num_tokens()), limit);
      key.page_stride = StepInputs::page_stride(batch.max_pages);
    }
    if (peers.size() == 1) return key.rows > 0 ? std::optional(key) : std::nullopt;
    bool all = true;
    for (const int64_t shape : peers.all_gather_host(decodes ? key.rows << 32 | key.page_stride : -1)) {
      all = all && shape >= 0;
      key.rows = std::max(key.rows, shape >> 32);
      key.page_stride = std::max(key.page_stride, shape & 0xffffffff);
    }
    return all && key.rows > 0 ? std::optional(key) : std::nullopt;
  }
  // A graph is captured the second time that its shape comes, and replayed from then on.
  View<const float> replay(const Batch& batch, const GraphKey& key) {
    check(batch);
    const Stream stream = ops.device().stream();
    GraphCapture& graph_capture = *ops.device().graphs();
    begin_experts(key.rows);
    inputs->set(batch, key.rows, key.rows, key.page_stride, stream);
    Step step = step_of(key.rows);
    const auto [place, is_new] = graphs.try_emplace(key);
    if (is_new) return layers(step).first(batch.num_tokens());
    if (!place->second) {
      place->second = graph_capture.capture([&] { layers(step, true); });
      if (peers.size() > 1)
        peers.all_gather_host(0);  // what instantiating a graph waits for must not wait for a replay
    }
    graph_capture.replay(place->second, stream);
    return buffers.logits.first(batch.num_tokens());
  }
  void begin_experts(int64_t num_rows) {
    if (experts) experts->begin_step(tp.share(num_rows).num);
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
    const View<float> residual = buffers.residual.first(n), delta = buffers.delta.first(n);
    // out = proj norm(x).
    const auto project = [&](View<const float> x, View<const float> norm, const Weight& proj, View<float> out) {
      const Operands normed = buffers.normed.rows(n, config.hidden_size, {proj.operand});
      ops.rms_norm({.x = x, .weight = norm, .out = normed, .eps = eps}, step.stream);
      ops.linear({normed.get(proj.operand), proj, out}, step.stream);
    };
    embed(step, w.embed ? w.embed : weights->embed, delta, {});
    project(delta, w.enorm, w.eh_proj_e, residual);
    project(hidden, w.hnorm, w.eh_proj_h, delta);
    return step;
  }

  View<const float> logits(Step& step, const Operands& normed, const Weight& head) {
    const int64_t n = step.in.logits_rows.dim(0);
    const Operand rows = buffers.logits_hidden.rows(n, config.hidden_size, {head.operand}).get(head.operand);
    const View<float> out = buffers.logits.first(n);
    ops.gather({normed.get(head.operand), step.in.logits_rows, rows}, step.stream);
    if (tp.size() == 1) {
      ops.linear({rows, head, out}, step.stream);
      return out;
    }
    // Every TP rank gets whole rows, so that samplers need not know of parts of the vocabulary, and each rank whose
    // device samples has the tokens of its next step without a further exchange.
    const int64_t width = vocab_part(config.vocab_size, tp.size());
    const View<float> parts(buffers.logits_parts.data, {tp.size(), n * width});
    ops.linear({rows, head, View<float>(parts.row(tp.rank()), {n, head.n})}, step.stream);
    tp.all_gather(parts, step.stream);
    ops.concat_columns({parts, width, out}, step.stream);
    return out;
  }
};

Model::Model(const Config& config, std::shared_ptr<const ModelWeights> weights, Ops& ops, Communicator& comm,
             const ExpertPlacement& placement, KvCache& cache, ModelLimits limits, Communicator* tp)
    : impl_(std::make_unique<Impl>(config, std::move(weights), ops, comm, placement, cache, limits, tp)) {}
Model::~Model() = default;

void Model::on_layer(std::function<void(bool captured)> issued) {
  impl_->layer_issued = std::move(issued);
}

View<const float> Model::forward(const Batch& batch) {
  Impl& m = *impl_;
  m.num_hidden = batch.num_tokens();
  if (const std::optional<GraphKey> key = m.graph_of(batch)) return m.replay(batch, *key);
  m.begin_experts(batch.num_tokens());
  Step step = m.begin_step(batch);
  return m.layers(step);
}

int64_t Model::workspace_bytes(const Config& config, const LocalDims& dims, const ModelLimits& limits,
                               const ExpertPlacement& placement, const Ops& ops) {
  const Capabilities& capabilities = ops.capabilities();
  int64_t sum =
      Buffers::num_bytes(config, dims, limits, max_expert_rows(config, dims, limits, placement), capabilities) +
      StepInputs::num_bytes(limits) + ops.scratch_bytes(scratch_shape(config, dims, limits));
  if (has_moe(config))
    sum += ExpertDispatch::num_bytes(placement, dispatch_config(config, dims, limits), capabilities) +
           ExpertCounts::num_bytes(config, placement);
  return sum;
}

View<const int64_t> Model::expert_counts() const {
  return impl_->expert_counts ? impl_->expert_counts->view() : View<const int64_t>();
}

View<int32_t> Model::sampled() const {
  return impl_->buffers.sampled;
}

View<const float> Model::hidden() const {
  return impl_->buffers.hidden.rows(impl_->num_hidden, impl_->config.hidden_size, {DType::kF32}).f32.f32();
}

View<const float> Model::forward_mtp(const Batch& batch, View<const float> hidden) {
  Impl& m = *impl_;
  m.begin_experts(batch.num_tokens());
  Step step = m.begin_mtp(batch, hidden);
  const MtpWeights& w = m.weights->mtp[0];
  const Weight& head = w.head ? w.head : m.weights->head;
  const int64_t n = step.num_tokens;
  const View<float> residual = m.buffers.residual.first(n), delta = m.buffers.delta.first(n);
  decoder_layer(step, w.layer, m.operands.mtp[0], m.config.num_layers, delta);
  const Operands normed = m.buffers.normed.rows(n, m.config.hidden_size, {head.operand});
  m.ops.rms_norm({delta, residual, w.norm, normed, m.config.rms_norm_eps}, step.stream);
  return m.logits(step, normed, head);
}

void Model::cache_mtp(const Batch& batch, View<const float> hidden) {
  Impl& m = *impl_;
  Step step = m.begin_mtp(batch, hidden);
  const LayerWeights& w = m.weights->mtp[0].layer;
  const int64_t n = step.num_tokens;
  const Operands normed = m.buffers.normed.rows(n, m.config.hidden_size, m.operands.mtp[0].attention_input);
  m.ops.rms_norm({m.buffers.delta.first(n), m.buffers.residual.first(n), w.input_norm, normed, m.config.rms_norm_eps},
                 step.stream);
  if (m.config.attention() == AttentionKind::kMla)
    mla_cache(step, w.mla, m.config.num_layers, normed);
  else
    gqa_cache(step, w.gqa, m.config.num_layers, normed);
}

}  // namespace moectl
