// ERNIE 4.5 (ernie4_5_moe) as transformers computes it: rotation in pairs, softmax scores with a correction bias.
#include <fmt/core.h>

#include "core/model/config_readers.h"

namespace moectl {

void read_ernie4_5_moe(const Fields& f, Config& c) {
  require_false(f, "use_bias", "biases");
  require_absent(f, "sliding_window", "attention windows");
  read_gqa(f, c);
  c.rope = read_rope(f, read_whole_rotary_dim(f, c.gqa.head_dim), c.max_position_embeddings);
  c.rope.interleaved = true;
  MoeConfig& moe = c.moe;
  moe.num_experts = int(f.integer(f.either({"moe_num_experts", "num_experts"}), 1, limits::kExperts));
  moe.num_experts_per_tok = int(f.integer(f.either({"moe_k", "num_experts_per_tok"}), 1, moe.num_experts));
  read_moe_intermediate_size(f, moe);
  read_shared_experts(f, "moe_num_shared_experts", moe);
  moe.has_correction_bias = true;
  moe.normalize_topk = true;
  moe.norm_min = float(f.number("moe_norm_min", 0.0, 1.0));
  c.names.correction_bias = "moe_statics.e_score_correction_bias";
  c.names.correction_bias_is_matrix = true;

  const int64_t first = f.integer("moe_layer_start_index", 0, limits::kLayers);
  const int64_t end = f.integer("moe_layer_end_index", -1, limits::kLayers), last = end == -1 ? c.num_layers - 1 : end;
  const int64_t interval = f.integer("moe_layer_interval", 1, limits::kLayers);
  for (int i = 0; i < c.num_layers; ++i) {
    const bool moe_layer = (i + 1) % interval == 0 && i >= first && i <= last;
    c.layers.push_back({.attention = AttentionKind::kGqa,
                        .feed_forward = moe_layer ? FeedForwardKind::kMoe : FeedForwardKind::kDense});
  }
  read_one_window(f, 0, c.num_layers);  // layer_types
}

}  // namespace moectl
