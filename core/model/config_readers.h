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
}  // namespace limits

// Each fills what its architecture's config.json says: attention, rope, moe, layers, softmax_scale.
void read_deepseek_v2(const Fields& fields, Config& config);
void read_deepseek_v3(const Fields& fields, Config& config);  // V3, R1, V3.1, and kimi_k2, which is the same arithmetic

void read_qwen3_moe(const Fields& fields, Config& config);
void read_gpt_oss(const Fields& fields, Config& config);

// num_key_value_heads, head_dim (absent: hidden_size / num_attention_heads), and the softmax scale head_dim^-0.5.
void read_gqa(const Fields& fields, Config& config);
// How many components of a head RoPE rotates: head_dim * partial_rotary_factor, `fallback` when it is absent.
int read_rotary_dim(const Fields& fields, int head_dim, double fallback = 1.0);
// quantization_config.
QuantConfig read_quant(const Fields& fields);

// rope_theta + rope_scaling, or rope_parameters, for `dim` rotated components a head.
RopeConfig read_rope(const Fields& fields, int dim, int max_position_embeddings);

// YaRN's length correction: 0.1 * mscale * ln(factor) + 1, or 1 without extension.
double yarn_mscale(double factor, double mscale);

// Refuses a field that changes the arithmetic unless it is absent, null or `understood`.
void require_false(const Fields& fields, std::string_view name, std::string_view meaning);
void require_absent(const Fields& fields, std::string_view name, std::string_view meaning);

}  // namespace moectl
