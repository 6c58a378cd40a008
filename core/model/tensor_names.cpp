#include "core/model/tensor_names.h"

#include <fmt/format.h>

namespace moectl {

namespace {

constexpr std::string_view kScaleSuffix = "_scale_inv";

class Walk {
 public:
  Walk(const Config& config, const std::function<void(const TensorSpec&)>& visit) : c_(config), visit_(visit) {}

  void model() {
    table("model.embed_tokens.weight", c_.vocab_size, c_.hidden_size);
    for (int i = 0; i < c_.num_layers; ++i) decoder_layer(i);
    norm("model.norm.weight", c_.hidden_size);
    if (!c_.tie_word_embeddings) linear(TensorRole::kOutputHead, "lm_head.weight", c_.vocab_size, c_.hidden_size);
    for (int i = c_.num_layers; i < c_.num_layers + c_.num_mtp_layers; ++i) mtp_layer(i);
  }

 private:
  void mtp_layer(int layer) {
    decoder_layer(layer);
    const std::string p = layer_prefix(layer);
    layer_ = layer;
    norm(p + "enorm.weight", c_.hidden_size);
    norm(p + "hnorm.weight", c_.hidden_size);
    norm(p + "shared_head.norm.weight", c_.hidden_size);
    linear(TensorRole::kMtp, p + "eh_proj.weight", c_.hidden_size, 2 * int64_t{c_.hidden_size});
    shared_copy_ = true;
    table(p + "embed_tokens.weight", c_.vocab_size, c_.hidden_size);
    linear(TensorRole::kOutputHead, p + "shared_head.head.weight", c_.vocab_size, c_.hidden_size);
    shared_copy_ = false;
    layer_ = -1;
  }

  void decoder_layer(int layer) {
    const std::string p = layer_prefix(layer);
    layer_ = layer;
    norm(p + "input_layernorm.weight", c_.hidden_size);
    norm(p + "post_attention_layernorm.weight", c_.hidden_size);
    mla(p + "self_attn.");
    if (c_.layers[layer].feed_forward == FeedForwardKind::kMoe)
      moe(p + "mlp.");
    else
      mlp(TensorRole::kDenseMlp, p + "mlp.", c_.intermediate_size);
    layer_ = -1;
  }

  void mla(const std::string& p) {
    const MlaConfig& a = c_.mla;
    const int64_t heads = c_.num_heads, query = heads * (a.qk_nope_head_dim + a.qk_rope_head_dim);
    if (a.q_lora_rank > 0) {
      linear(TensorRole::kAttention, p + "q_a_proj.weight", a.q_lora_rank, c_.hidden_size);
      norm(p + "q_a_layernorm.weight", a.q_lora_rank);
      linear(TensorRole::kAttention, p + "q_b_proj.weight", query, a.q_lora_rank);
    } else {
      linear(TensorRole::kAttention, p + "q_proj.weight", query, c_.hidden_size);
    }
    linear(TensorRole::kAttention, p + "kv_a_proj_with_mqa.weight", a.kv_lora_rank + a.qk_rope_head_dim,
           c_.hidden_size);
    norm(p + "kv_a_layernorm.weight", a.kv_lora_rank);
    linear(TensorRole::kAttention, p + "kv_b_proj.weight", heads * (a.qk_nope_head_dim + a.v_head_dim), a.kv_lora_rank);
    linear(TensorRole::kAttention, p + "o_proj.weight", c_.hidden_size, heads * a.v_head_dim);
  }

  void moe(const std::string& p) {
    const MoeConfig& m = c_.moe;
    linear(TensorRole::kGate, p + "gate.weight", m.num_experts, c_.hidden_size);
    if (m.has_correction_bias) emit(TensorRole::kGate, p + "gate.e_score_correction_bias", {m.num_experts}, false);
    for (int e = 0; e < m.num_experts; ++e)
      mlp(TensorRole::kRoutedExpert, fmt::format("{}experts.{}.", p, e), m.moe_intermediate_size);
    if (m.num_shared_experts > 0)
      mlp(TensorRole::kSharedExpert, p + "shared_experts.", int64_t{m.num_shared_experts} * m.moe_intermediate_size);
  }

  void mlp(TensorRole role, const std::string& p, int64_t width) {
    linear(role, p + "gate_proj.weight", width, c_.hidden_size);
    linear(role, p + "up_proj.weight", width, c_.hidden_size);
    linear(role, p + "down_proj.weight", c_.hidden_size, width);
  }

  void norm(std::string name, int64_t n) { emit(TensorRole::kNorm, std::move(name), {n}, false); }
  void table(std::string name, int64_t n, int64_t k) { emit(TensorRole::kEmbedding, std::move(name), {n, k}, false); }
  void linear(TensorRole role, std::string name, int64_t n, int64_t k) { emit(role, std::move(name), {n, k}, true); }
  void emit(TensorRole role, std::string name, std::vector<int64_t> shape, bool linear) {
    visit_({.name = std::move(name),
            .shape = std::move(shape),
            .role = role,
            .layer = layer_,
            .linear = linear,
            .shared_copy = shared_copy_});
  }

  const Config& c_;
  const std::function<void(const TensorSpec&)>& visit_;
  int layer_ = -1;
  bool shared_copy_ = false;
};

}  // namespace

void for_each_tensor(const Config& config, const std::function<void(const TensorSpec&)>& visit) {
  Walk(config, visit).model();
}

std::string layer_prefix(int layer) {
  return fmt::format("model.layers.{}.", layer);
}

std::string scale_name(std::string_view weight_name) {
  return fmt::format("{}{}", weight_name, kScaleSuffix);
}

bool is_scale_name(std::string_view name) {
  return name.ends_with(kScaleSuffix);
}

std::vector<int64_t> scale_shape(const QuantConfig& quant, const std::vector<int64_t>& weight_shape) {
  return {(weight_shape.at(0) + quant.block_n - 1) / quant.block_n,
          (weight_shape.at(1) + quant.block_k - 1) / quant.block_k};
}

}  // namespace moectl
