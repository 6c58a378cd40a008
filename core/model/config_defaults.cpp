// What transformers 5.17 takes for a field that config.json does not have, by model_type. The sizes that every
// published config.json states have no default here: a file without them is damaged, and the reader says which one is
// missing.
#include <map>
#include <nlohmann/json.hpp>

#include "core/model/config_readers.h"

namespace moectl {

namespace {

constexpr const char* kDefaults = R"({
  "deepseek_v2": {
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048, 
    "n_shared_experts": 2, "first_k_dense_replace": 0, "topk_method": "greedy", "norm_topk_prob": false,
    "routed_scaling_factor": 1.0
  },
  "deepseek_v3": {
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 4096, 
    "n_shared_experts": 1, "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8,
    "norm_topk_prob": true, "routed_scaling_factor": 2.5
  },
  "dots1": {
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048, "num_key_value_heads": 32,
    "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "norm_topk_prob": false, "routed_scaling_factor": 1.0,
    "sliding_window": 4096, "max_window_layers": 62
  },
  "ernie4_5_moe": {
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131072,
    "tie_word_embeddings": true, "num_key_value_heads": 4, "moe_k": 6, "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1, "moe_norm_min": 1e-12
  },
  "glm4_moe": {
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 131072, "num_key_value_heads": 8,
    "partial_rotary_factor": 0.5, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "num_experts_per_tok": 8, "norm_topk_prob": true, "routed_scaling_factor": 1.0
  },
  "gpt_oss": {
    "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "max_position_embeddings": 131072, "num_key_value_heads": 8,
    "head_dim": 64, "sliding_window": 128, "num_experts_per_tok": 4, "attention_bias": true,
    "rope_parameters": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                        "original_max_position_embeddings": 4096}
  },
  "hunyuan_v1_moe": {
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048
  },
  "llama4_text": {
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131072,
    "num_key_value_heads": 8, "head_dim": 128, "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1, "use_qk_norm": true, "no_rope_layer_interval": 4, "attention_chunk_size": 8192,
    "attn_temperature_tuning": true, "floor_scale": 8192, "attn_scale": 0.1
  },
  "minimax_m2": {
    "rms_norm_eps": 1e-6, "rope_theta": 5000000.0, "max_position_embeddings": 196608,
    "num_key_value_heads": 8, "head_dim": 128, "num_experts_per_tok": 8
  },
  "mixtral": {
    "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "max_position_embeddings": 131072,
    "num_key_value_heads": 8, "num_experts_per_tok": 2
  },
  "olmoe": {
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096, 
    "num_experts_per_tok": 8, "norm_topk_prob": false
  },
  "qwen2_moe": {
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32768, "num_key_value_heads": 16,
    "sliding_window": 4096, "max_window_layers": 28, "decoder_sparse_step": 1, "num_experts_per_tok": 4,
    "norm_topk_prob": false, "qkv_bias": true
  },
  "qwen3_moe": {
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32768, "num_key_value_heads": 4,
    "sliding_window": 4096, "decoder_sparse_step": 1, "num_experts_per_tok": 8, "norm_topk_prob": false
  }
})";

}  // namespace

const nlohmann::json& config_defaults(const std::string& model_type) {
  static const nlohmann::json all = nlohmann::json::parse(kDefaults);
  static const nlohmann::json none = nlohmann::json::object();
  const auto it = all.find(model_type == "kimi_k2" ? "deepseek_v3" : model_type);
  return it == all.end() ? none : *it;
}

}  // namespace moectl
