#include "core/model/shapes.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "core/base/error.h"

namespace moectl {
namespace {

struct Shape {
  std::string_view name, config;
};

constexpr std::array kShapes = {
    Shape{"deepseek-r1", R"({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
      "torch_dtype": "bfloat16", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
      "moe_intermediate_size": 2048, "num_hidden_layers": 61, "first_k_dense_replace": 3, "moe_layer_freq": 1,
      "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
      "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256,
      "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc",
      "scoring_func": "sigmoid", "norm_topk_prob": true, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-06,
      "max_position_embeddings": 163840, "rope_theta": 10000, "rope_scaling": {"type": "yarn", "factor": 40,
      "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
      "bos_token_id": 0, "eos_token_id": 1, "quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
      "activation_scheme": "dynamic", "weight_block_size": [128, 128]}})"},
    Shape{"ds-v2-lite", R"({"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
      "torch_dtype": "bfloat16", "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
      "moe_intermediate_size": 1408, "num_hidden_layers": 27, "first_k_dense_replace": 1, "moe_layer_freq": 1,
      "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": null, "kv_lora_rank": 512,
      "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64,
      "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
      "scoring_func": "softmax", "norm_topk_prob": false, "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-06,
      "max_position_embeddings": 163840, "rope_theta": 10000, "rope_scaling": {"type": "yarn", "factor": 40,
      "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707,
      "mscale_all_dim": 0.707}, "bos_token_id": 100000, "eos_token_id": 100001})"},
    Shape{"qwen3-30b-a3b", R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
      "torch_dtype": "bfloat16", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
      "moe_intermediate_size": 768, "num_hidden_layers": 48, "decoder_sparse_step": 1, "mlp_only_layers": [],
      "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
      "num_experts_per_tok": 8, "norm_topk_prob": true, "rms_norm_eps": 1e-06, "max_position_embeddings": 40960,
      "rope_theta": 1000000.0, "bos_token_id": 151643, "eos_token_id": 151645})"},
    // Of no published model: the smallest that has every part of DeepSeek-R1, for tests.
    Shape{"tiny", R"({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
      "torch_dtype": "bfloat16", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 384,
      "moe_intermediate_size": 128, "num_hidden_layers": 3, "first_k_dense_replace": 1, "moe_layer_freq": 1,
      "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 128,
      "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32, "n_routed_experts": 16,
      "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "topk_method": "noaux_tc",
      "scoring_func": "sigmoid", "norm_topk_prob": true, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-06,
      "max_position_embeddings": 4096, "rope_theta": 10000, "bos_token_id": 0, "eos_token_id": 1,
      "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
      "weight_block_size": [128, 128]}})"},
};

const Shape& find_shape(std::string_view name) {
  for (const Shape& shape : kShapes)
    if (shape.name == name) return shape;
  throw Error(Code::kUsage, fmt::format("there is no shape `{}`; there are {}", name, fmt::join(shape_names(), ", ")));
}

}  // namespace

std::vector<std::string_view> shape_names() {
  std::vector<std::string_view> names;
  for (const Shape& shape : kShapes) names.push_back(shape.name);
  return names;
}

Config shape_config(std::string_view text) {
  const size_t colon = text.find(':');
  const Shape& shape = find_shape(text.substr(0, colon));
  nlohmann::json json = nlohmann::json::parse(shape.config);
  if (colon != text.npos) {
    constexpr std::string_view kLayers = "layers=";
    const std::string_view option = text.substr(colon + 1);
    const int most = json.at("num_hidden_layers").get<int>();
    int layers = 0;
    const bool named = option.starts_with(kLayers);
    const char *first = option.data() + (named ? kLayers.size() : 0), *last = option.data() + option.size();
    const auto [end, failed] = std::from_chars(first, last, layers);
    if (!named || failed != std::errc{} || end != last || layers < 1 || layers > most)
      throw Error(Code::kUsage, fmt::format("shape {}: after the colon stands layers=N, N from 1 to {}", text, most));
    json["num_hidden_layers"] = layers;
  }
  return parse_config(json, fmt::format("shape {}", text));
}

}  // namespace moectl
