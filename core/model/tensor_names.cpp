#include "core/model/tensor_names.h"

#include <fmt/core.h>

#include <unordered_set>

namespace moectl {

namespace {

// A dimension of a tensor, and the range of it that the shard holds.
struct Axis {
  int64_t size = 0, begin = 0, held = 0;
  Axis(int64_t whole) : size(whole), held(whole) {}  // NOLINT: a size is an axis that is not split
  Axis(int64_t size_, int64_t begin_, int64_t held_) : size(size_), begin(begin_), held(held_) {}
};

class Walk {
 public:
  Walk(const Config& config, const Shard& shard, ModelWeights& weights, TensorVisitor& visitor)
      : c_(config), shard_(shard), d_(shard.dims), w_(weights), visitor_(visitor) {}

  void model() {
    const std::string& root = c_.names.root;
    table(w_.embed, root + "model.embed_tokens.weight");
    w_.layers.resize(size_t(c_.num_layers));
    for (int i = 0; i < c_.num_layers; ++i) decoder_layer(i, w_.layers[size_t(i)]);
    norm(w_.norm, root + "model.norm.weight", c_.hidden_size);
    head(w_.head, root + (c_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight"));
    w_.mtp.resize(size_t(c_.num_mtp_layers));
    for (int i = 0; i < c_.num_mtp_layers; ++i) mtp_layer(c_.num_layers + i, w_.mtp[size_t(i)]);
  }

 private:
  void mtp_layer(int layer, MtpWeights& w) {
    decoder_layer(layer, w.layer);
    const std::string p = layer_prefix(c_, layer);
    const int64_t hidden = c_.hidden_size;
    layer_ = layer;
    norm(w.enorm, p + "enorm.weight", hidden);
    norm(w.hnorm, p + "hnorm.weight", hidden);
    norm(w.norm, p + "shared_head.norm.weight", hidden);
    TensorPart half = matrix(TensorRole::kMtp, p + "eh_proj.weight", hidden, 2 * hidden);
    half.num_cols = hidden;
    visitor_.matrices(w.eh_proj_e, {&half, 1});
    half.col_begin = hidden;
    visitor_.matrices(w.eh_proj_h, {&half, 1});
    shared_copy_ = true;
    table(w.embed, p + "embed_tokens.weight");
    head(w.head, p + "shared_head.head.weight");
    shared_copy_ = false;
    layer_ = -1;
  }

  void decoder_layer(int layer, LayerWeights& w) {
    const std::string p = layer_prefix(c_, layer);
    layer_ = layer;
    norm(w.input_norm, p + "input_layernorm.weight", c_.hidden_size);
    norm(w.post_attention_norm, p + "post_attention_layernorm.weight", c_.hidden_size);
    if (c_.layers[size_t(layer)].attention == AttentionKind::kMla)
      mla(w.mla, p + "self_attn.");
    else
      gqa(w.gqa, p + "self_attn.");
    if (c_.layers[size_t(layer)].feed_forward == FeedForwardKind::kMoe)
      moe(w, p + c_.names.moe);
    else
      mlp(w.mlp, TensorRole::kDenseMlp, p + c_.names.mlp,
          {c_.intermediate_size, d_.intermediate_begin, d_.intermediate_size});
    layer_ = -1;
  }

  void mla(MlaWeights& w, const std::string& p) {
    const MlaConfig& a = c_.mla;
    const int64_t nope = a.qk_nope_head_dim, v = a.v_head_dim;
    const Axis query = heads(nope + a.qk_rope_head_dim);
    if (a.q_lora_rank > 0) {
      linear(w.q_a, TensorRole::kAttention, p + "q_a_proj.weight", a.q_lora_rank, c_.hidden_size);
      if (a.bias) norm(w.q_a_bias, p + "q_a_proj.bias", a.q_lora_rank, TensorRole::kAttention);
      norm(w.q_a_norm, p + "q_a_layernorm.weight", a.q_lora_rank);
      linear(w.q_b, TensorRole::kAttention, p + "q_b_proj.weight", query, a.q_lora_rank);
    } else {
      linear(w.q_b, TensorRole::kAttention, p + "q_proj.weight", query, c_.hidden_size);
    }
    linear(w.kv_a, TensorRole::kAttention, p + "kv_a_proj_with_mqa.weight", a.kv_lora_rank + a.qk_rope_head_dim,
           c_.hidden_size);
    if (a.bias)
      norm(w.kv_a_bias, p + "kv_a_proj_with_mqa.bias", a.kv_lora_rank + a.qk_rope_head_dim, TensorRole::kAttention);
    norm(w.kv_a_norm, p + "kv_a_layernorm.weight", a.kv_lora_rank);
    // By head: the part of the keys, transposed, and the part of the values.
    std::vector<TensorPart> uk, uv;
    for (int64_t h = d_.head_begin; h < d_.head_begin + d_.num_heads; ++h) {
      TensorPart part =
          matrix(TensorRole::kAttention, p + "kv_b_proj.weight", c_.num_heads * (nope + v), a.kv_lora_rank);
      part.row_begin = h * (nope + v);
      part.num_rows = nope;
      part.transpose = true;
      uk.push_back(part);
      part.row_begin += nope;
      part.num_rows = v;
      part.transpose = false;
      uv.push_back(part);
    }
    visitor_.matrices(w.w_uk, uk);
    visitor_.matrices(w.w_uv, uv);
    linear(w.o, TensorRole::kAttention, p + "o_proj.weight", c_.hidden_size, heads(v));
    if (a.bias) norm(w.o_bias, p + "o_proj.bias", c_.hidden_size, TensorRole::kAttention);
  }

  void gqa(GqaWeights& w, const std::string& p) {
    const GqaConfig& a = c_.gqa;
    const Axis q = heads(a.head_dim), kv = kv_heads(a.head_dim);
    auto projection = [&](Weight& to, View<const float>& bias, const char* name, Axis n, Axis k, bool has_bias) {
      linear(to, TensorRole::kAttention, fmt::format("{}{}.weight", p, name), n, k);
      if (has_bias) norm(bias, fmt::format("{}{}.bias", p, name), n, TensorRole::kAttention);
    };
    projection(w.q, w.q_bias, "q_proj", q, c_.hidden_size, a.qkv_bias);
    projection(w.k, w.k_bias, "k_proj", kv, c_.hidden_size, a.qkv_bias);
    projection(w.v, w.v_bias, "v_proj", kv, c_.hidden_size, a.qkv_bias);
    projection(w.o, w.o_bias, "o_proj", c_.hidden_size, q, a.o_bias);
    if (a.qk_norm != QkNorm::kNone && a.qk_norm != QkNorm::kHeadL2AfterRope) {
      const bool all = a.qk_norm == QkNorm::kAllBeforeRope;
      norm(w.q_norm, fmt::format("{}{}.weight", p, c_.names.q_norm), all ? q : Axis(a.head_dim));
      norm(w.k_norm, fmt::format("{}{}.weight", p, c_.names.k_norm), all ? kv : Axis(a.head_dim));
    }
    if (a.sinks) norm(w.sinks, p + "sinks", heads(1), TensorRole::kAttention);
  }

  void moe(LayerWeights& w, const std::string& p) {
    const MoeConfig& m = c_.moe;
    const TensorNames& names = c_.names;
    linear(w.gate, TensorRole::kGate, fmt::format("{}{}.weight", p, names.router), m.num_experts, c_.hidden_size);
    if (m.has_router_bias)
      norm(w.gate_bias, fmt::format("{}{}.bias", p, names.router), m.num_experts, TensorRole::kGate);
    if (m.has_correction_bias) {
      const int64_t n = m.num_experts;
      const std::vector<int64_t> shape = names.correction_bias_is_matrix ? std::vector{int64_t{1}, n} : std::vector{n};
      const TensorPart part = {
          .tensor = spec(TensorRole::kGate, p + names.correction_bias, shape, false), .num_rows = 1, .num_cols = n};
      visitor_.vector(w.correction_bias, {&part, 1});
    }
    if (names.experts == TensorNames::Experts::kEach)
      each_expert(w.experts, p);
    else
      fused_experts(w.experts, p + "experts.");
    if (m.num_shared_experts > 0)
      mlp(w.shared, TensorRole::kSharedExpert, p + names.shared,
          {m.shared_intermediate_size, d_.shared_intermediate_begin, d_.shared_intermediate_size});
    if (m.has_shared_gate)
      linear(w.shared_gate, TensorRole::kSharedExpert, fmt::format("{}{}.weight", p, names.shared_gate), 1,
             c_.hidden_size);
  }

  void each_expert(MlpWeights& w, const std::string& p) {
    auto all = [&](Weight& to, const std::string& name, Axis n, Axis k) {
      std::vector<TensorPart> batch;
      for (int32_t e : shard_.experts)
        batch.push_back(matrix(TensorRole::kRoutedExpert, fmt::format("{}experts.{}.{}.weight", p, e, name), n, k));
      visitor_.matrices(to, batch);
    };
    all(w.gate, c_.names.expert_gate, expert_width(), c_.hidden_size);
    all(w.up, c_.names.expert_up, expert_width(), c_.hidden_size);
    all(w.down, c_.names.expert_down, c_.hidden_size, expert_width());
  }

  // [num_experts, inputs, outputs]; an output is every step-th column from `first` on.
  void fused_experts(MlpWeights& w, const std::string& p) {
    const int64_t hidden = c_.hidden_size, width = c_.moe.moe_intermediate_size, num = c_.moe.num_experts;
    const bool interleaved = c_.names.experts == TensorNames::Experts::kFusedInterleaved;
    auto all = [&](Weight& to, const char* name, Axis k, int64_t cols, Axis n, int64_t first, int64_t step) {
      std::vector<TensorPart> batch;
      for (int32_t e : shard_.experts)
        batch.push_back({.tensor = spec(TensorRole::kRoutedExpert, p + name, {num, k.size, cols}, true),
                         .slice = e,
                         .row_begin = k.begin,
                         .num_rows = k.held,
                         .col_begin = first + n.begin * step,
                         .num_cols = n.held,
                         .col_step = step,
                         .transpose = true});
      visitor_.matrices(to, batch);
    };
    auto bias = [&](View<const float>& to, const char* name, int64_t cols, Axis n, int64_t first, int64_t step) {
      if (!c_.moe.has_expert_bias) return;
      std::vector<TensorPart> parts;
      for (int32_t e : shard_.experts)
        parts.push_back({.tensor = spec(TensorRole::kRoutedExpert, p + name, {num, cols}, false),
                         .row_begin = e,
                         .num_rows = 1,
                         .col_begin = first + n.begin * step,
                         .num_cols = n.held,
                         .col_step = step});
      visitor_.vector(to, parts);
    };
    const int64_t up = interleaved ? 1 : width, step = interleaved ? 2 : 1;
    all(w.gate, "gate_up_proj", hidden, 2 * width, expert_width(), 0, step);
    all(w.up, "gate_up_proj", hidden, 2 * width, expert_width(), up, step);
    all(w.down, "down_proj", expert_width(), hidden, hidden, 0, 1);
    bias(w.gate_bias, "gate_up_proj_bias", 2 * width, expert_width(), 0, step);
    bias(w.up_bias, "gate_up_proj_bias", 2 * width, expert_width(), up, step);
    bias(w.down_bias, "down_proj_bias", hidden, hidden, 0, 1);
  }

  void mlp(MlpWeights& w, TensorRole role, const std::string& p, Axis width) {
    linear(w.gate, role, p + "gate_proj.weight", width, c_.hidden_size);
    linear(w.up, role, p + "up_proj.weight", width, c_.hidden_size);
    linear(w.down, role, p + "down_proj.weight", c_.hidden_size, width);
  }

  Axis heads(int64_t per_head) const {
    return {c_.num_heads * per_head, d_.head_begin * per_head, d_.num_heads * per_head};
  }
  Axis kv_heads(int64_t per_head) const {
    return {c_.gqa.num_kv_heads * per_head, d_.kv_head_begin * per_head, d_.num_kv_heads * per_head};
  }
  Axis expert_width() const {
    return {c_.moe.moe_intermediate_size, d_.moe_intermediate_begin, d_.moe_intermediate_size};
  }
  Axis vocabulary() const { return {c_.vocab_size, d_.vocab_begin, d_.vocab_size}; }

  void norm(View<const float>& to, std::string name, Axis n, TensorRole role = TensorRole::kNorm) {
    const TensorPart part = {.tensor = spec(role, std::move(name), {n.size}, false),
                             .num_rows = 1,
                             .col_begin = n.begin,
                             .num_cols = n.held};
    visitor_.vector(to, {&part, 1});
  }
  void table(Weight& to, std::string name) {
    TensorPart part = matrix(TensorRole::kEmbedding, std::move(name), vocabulary(), c_.hidden_size);
    part.tensor.linear = false;
    visitor_.table(to, part);
  }
  void head(Weight& to, std::string name) {
    linear(to, TensorRole::kOutputHead, std::move(name), vocabulary(), c_.hidden_size);
  }
  void linear(Weight& to, TensorRole role, std::string name, Axis n, Axis k) {
    const TensorPart part = matrix(role, std::move(name), n, k);
    visitor_.matrices(to, {&part, 1});
  }
  TensorPart matrix(TensorRole role, std::string name, Axis n, Axis k) const {
    return {.tensor = spec(role, std::move(name), {n.size, k.size}, true),
            .row_begin = n.begin,
            .num_rows = n.held,
            .col_begin = k.begin,
            .num_cols = k.held};
  }
  TensorSpec spec(TensorRole role, std::string name, std::vector<int64_t> shape, bool linear) const {
    return {.name = std::move(name),
            .shape = std::move(shape),
            .role = role,
            .layer = layer_,
            .linear = linear,
            .shared_copy = shared_copy_};
  }

  const Config& c_;
  const Shard& shard_;
  const LocalDims& d_;
  ModelWeights& w_;
  TensorVisitor& visitor_;
  int layer_ = -1;
  bool shared_copy_ = false;
};

// Of a layer's tensors each is reported once, however many parts of it are used.
class EachOnce final : public TensorVisitor {
 public:
  explicit EachOnce(const std::function<void(const TensorSpec&)>& visit) : visit_(visit) {}
  void vector(View<const float>&, std::span<const TensorPart> parts) override {
    for (const TensorPart& part : parts) once(part.tensor);
  }
  void table(Weight&, const TensorPart& part) override { once(part.tensor); }
  void matrices(Weight&, std::span<const TensorPart> batch) override {
    for (const TensorPart& part : batch) once(part.tensor);
  }

 private:
  void once(const TensorSpec& spec) {
    if (spec.layer >= 0 && spec.layer != layer_) {
      of_layer_.clear();
      layer_ = spec.layer;
    }
    if ((spec.layer >= 0 ? of_layer_ : outside_).insert(spec.name).second) visit_(spec);
  }
  const std::function<void(const TensorSpec&)>& visit_;
  std::unordered_set<std::string> of_layer_, outside_;  // names
  int layer_ = -1;
};

}  // namespace

void visit_weights(const Config& config, const Shard& shard, ModelWeights& weights, TensorVisitor& visitor) {
  Walk(config, shard, weights, visitor).model();
}

void for_each_tensor(const Config& config, const std::function<void(const TensorSpec&)>& visit) {
  ModelWeights weights;
  EachOnce visitor(visit);
  visit_weights(config, whole_model(config), weights, visitor);
}

std::string layer_prefix(const Config& config, int layer) {
  return fmt::format("{}model.layers.{}.", config.names.root, layer);
}

}  // namespace moectl
