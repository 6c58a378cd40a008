// Hunyuan-A13B (hunyuan_v1_moe) as transformers computes it: queries and keys are normed after the rotation, every
// layer is MoE with a shared MLP, and "dynamic" RoPE with an alpha is another theta.
#include <fmt/core.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/model/config_readers.h"

namespace moectl {

namespace {

// A number, or a list with one for each layer: all equal, because one Config has one number.
int64_t same_in_all_layers(const Fields& f, std::string_view name, int64_t min, int64_t max) {
  const std::vector<int32_t> values = f.integers(name, min, max);
  for (int32_t v : values)
    if (v != values.front()) f.fail(name, "one number for all layers");
  return values.empty() ? f.integer(name, min, max) : values.front();
}

void read_hunyuan_rope(const Fields& f, Config& c) {
  const int dim = read_whole_rotary_dim(f, c.gqa.head_dim);
  const std::optional<Fields> scaling = rope_object(f);
  if (!scaling || !scaling->has("alpha") ||
      scaling->text_or(scaling->either({"rope_type", "type"}), "default") != "dynamic") {
    c.rope = read_rope(f, dim, c.max_position_embeddings);
    return;
  }
  // The rest of the object plays no part, up to max_position_embeddings.
  scaling->ignore({"factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "original_max_position_embeddings"});
  if (dim == 2) f.fail("head_dim", "more than 2");
  const double alpha = scaling->number("alpha", 1.0, 1e9);
  const double theta = scaling->number_or("rope_theta", f.number("rope_theta", 1.001, 1e12), 1.001, 1e12);
  c.rope.dim = dim;
  c.rope.theta = float(theta * std::pow(alpha, double(dim) / (dim - 2)));
}

}  // namespace

void read_hunyuan_v1_moe(const Fields& f, Config& c) {
  require_absent(f, "sliding_window", "attention windows");
  read_gqa(f, c);
  require_integer(f, "attention_head_dim", c.gqa.head_dim, "head_dim");
  c.gqa.qkv_bias = c.gqa.o_bias = f.boolean_or("attention_bias", false);
  c.gqa.qk_norm = QkNorm::kHeadAfterRope;
  c.names.q_norm = "query_layernorm";
  c.names.k_norm = "key_layernorm";
  read_hunyuan_rope(f, c);
  MoeConfig& moe = c.moe;
  moe.num_experts = int(same_in_all_layers(f, f.either({"num_experts", "num_local_experts"}), 1, limits::kExperts));
  moe.num_experts_per_tok =
      int(same_in_all_layers(f, f.either({"moe_topk", "num_experts_per_tok"}), 1, moe.num_experts));
  moe.moe_intermediate_size = int(f.integer("intermediate_size", 1, limits::kMoeIntermediate));
  if (f.has("moe_intermediate_size") &&
      same_in_all_layers(f, "moe_intermediate_size", 1, limits::kMoeIntermediate) != c.intermediate_size)
    f.fail("moe_intermediate_size", fmt::format("intermediate_size ({}), as transformers has it", c.intermediate_size));
  if (f.has("num_shared_expert") && same_in_all_layers(f, "num_shared_expert", 0, limits::kSharedExperts) != 1)
    f.fail("num_shared_expert", "1: other numbers are not supported");
  moe.num_shared_experts = 1;
  moe.shared_intermediate_size = c.intermediate_size;
  moe.normalize_topk = true;
  c.names.router = "gate.wg";
  c.names.shared = "shared_mlp.";
  for (int i = 0; i < c.num_layers; ++i)
    c.layers.push_back({.attention = AttentionKind::kGqa, .feed_forward = FeedForwardKind::kMoe});
  read_one_window(f, 0, c.num_layers);  // layer_types
}

}  // namespace moectl
