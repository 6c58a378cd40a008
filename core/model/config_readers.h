// The readers behind config.h: one function an architecture, and what they share. Private to core/model/config*.cpp.
#pragma once

#include "core/model/config.h"
#include "core/model/json_fields.h"

namespace moectl {

// Upper bounds on dimensions. Far above any published model, and low enough that bytes of all weights (layers x experts
// x three matrices of f32) stay below 2^61, so that no product of them overflows int64.
namespace limits {
inline constexpr int64_t kVocab = 1 << 24, kHidden = 1 << 17, kIntermediate = 1 << 20, kMoeIntermediate = 1 << 17;
inline constexpr int64_t kLayers = 1000, kMtpLayers = 16, kHeads = 4096, kHeadDim = 4096, kLoraRank = 1 << 17;
inline constexpr int64_t kExperts = 8192, kSharedExperts = 64, kPositions = 1 << 30;
inline constexpr int64_t kExpertsOfAllLayers = 1 << 18;  // what lists every tensor must end; Kimi K2 has 23,040
}  // namespace limits

// Each fills what its architecture's config.json says: attention, rope, moe, layers, softmax_scale.
void read_deepseek_v2(const Fields& fields, Config& config);
void read_deepseek_v3(const Fields& fields, Config& config);  // V3, R1, V3.1, and kimi_k2, which is the same arithmetic
void read_dots1(const Fields& fields, Config& config);
void read_ernie4_5_moe(const Fields& fields, Config& config);
void read_glm4_moe(const Fields& fields, Config& config);
void read_gpt_oss(const Fields& fields, Config& config);
void read_hunyuan_v1_moe(const Fields& fields, Config& config);
void read_llama4_text(const Fields& fields, Config& config);
void read_minimax_m2(const Fields& fields, Config& config);
void read_mixtral(const Fields& fields, Config& config);
void read_olmoe(const Fields& fields, Config& config);
void read_qwen2_moe(const Fields& fields, Config& config);
void read_qwen3_moe(const Fields& fields, Config& config);

// What a field of `model_type` is where config.json does not have it: the default of transformers' config class. Sizes
// of the model have none.
const nlohmann::json& config_defaults(const std::string& model_type);

// Throws Error{kBadData} for the first field that no reader asked for, unless it is known not to change the arithmetic,
// or has the value with which it does not (config_fields.cpp).
void require_understood(const Fields& fields, const std::string& model_type);

// ------------------------------------------------------------------------------------------------ attention

// num_key_value_heads, head_dim (absent: hidden_size / num_attention_heads), and the softmax scale head_dim^-0.5.
void read_gqa(const Fields& fields, Config& config);
// quantization_config.
QuantConfig read_quant(const Fields& fields);
// For each layer its window: `window` where layer_types says sliding_attention, 0 where it says full_attention. Without
// layer_types, `is_windowed(layer)` decides.
std::vector<int> read_windows(const Fields& fields, int window, int num_layers, bool (*is_windowed)(int layer));
// The same window in all layers; layer_types, where present, must agree.
std::vector<int> read_one_window(const Fields& fields, int window, int num_layers);

// ------------------------------------------------------------------------------------------------ RoPE

// How many components of a head RoPE rotates: head_dim * partial_rotary_factor.
int read_rotary_dim(const Fields& fields, int head_dim);
// All of head_dim: for architectures whose code knows no other.
int read_whole_rotary_dim(const Fields& fields, int head_dim);
// rope_theta + rope_scaling, or rope_parameters, for `dim` rotated components a head.
RopeConfig read_rope(const Fields& fields, int dim, int max_position_embeddings);
// rope_parameters or rope_scaling, whichever is there.
std::optional<Fields> rope_object(const Fields& fields);

// YaRN's length correction: 0.1 * mscale * ln(factor) + 1, or 1 without extension.
double yarn_mscale(double factor, double mscale);

// ------------------------------------------------------------------------------------------------ experts

// num_experts under one of its names, and num_experts_per_tok under `top_k`.
void read_experts(const Fields& fields, std::string_view top_k, MoeConfig& moe);
void read_moe_intermediate_size(const Fields& fields, MoeConfig& moe);
// n_shared_experts: a shared MLP of so many times moe_intermediate_size.
void read_shared_experts(const Fields& fields, std::string_view name, MoeConfig& moe);
// n_group and topk_group, for a gate that selects by groups.
void read_groups(const Fields& fields, MoeConfig& moe);
// DeepSeek-V3's gate (noaux_tc): sigmoid scores, a correction bias, groups by their two best, norm_topk_prob,
// routed_scaling_factor.
void read_noaux_gate(const Fields& fields, MoeConfig& moe);
// Main layers and MTP modules: MoE from first_k_dense_replace on, every moe_layer_freq-th.
void read_layers_from_first_k(const Fields& fields, AttentionKind attention, Config& config);

// ------------------------------------------------------------------------------------------------ refusal

// Refuses a field that changes the arithmetic unless it is absent, null or `understood`.
void require_false(const Fields& fields, std::string_view name, std::string_view meaning);
void require_absent(const Fields& fields, std::string_view name, std::string_view meaning);
// Refuses every value but `value` (and absence).
void require_integer(const Fields& fields, std::string_view name, int64_t value, std::string_view meaning);
void require_text(const Fields& fields, std::string_view name, std::string_view value, std::string_view meaning);

}  // namespace moectl
