// Mixtral, and two families that differ from it in a few places: OLMoE (queries and keys are normed over all heads) and
// MiniMax-M2 (so are they here; part of a head is rotated, sigmoid scores with a correction bias). As transformers
// computes them.
#include <fmt/core.h>

#include "core/model/config_readers.h"

namespace moectl {

namespace {

void all_moe_layers(const std::vector<int>& windows, Config& c) {
  for (int window : windows)
    c.layers.push_back({.attention = AttentionKind::kGqa, .feed_forward = FeedForwardKind::kMoe, .window = window});
}

void w1_w2_w3(TensorNames& names) {
  names.moe = "block_sparse_moe.";
  names.expert_gate = "w1";
  names.expert_up = "w3";
  names.expert_down = "w2";
}

}  // namespace

void read_mixtral(const Fields& f, Config& c) {
  read_gqa(f, c);
  c.rope = read_rope(f, read_whole_rotary_dim(f, c.gqa.head_dim), c.max_position_embeddings);
  read_experts(f, "num_experts_per_tok", c.moe);
  c.moe.moe_intermediate_size = int(f.integer("intermediate_size", 1, limits::kMoeIntermediate));
  c.moe.normalize_topk = true;
  w1_w2_w3(c.names);
  all_moe_layers(read_one_window(f, int(f.integer_or("sliding_window", 0, 1, limits::kPositions)), c.num_layers), c);
}

void read_olmoe(const Fields& f, Config& c) {
  require_absent(f, "clip_qkv", "clipped queries, keys and values");
  require_absent(f, "sliding_window", "attention windows");
  read_gqa(f, c);
  if (c.gqa.head_dim * c.num_heads != c.hidden_size)
    f.fail("head_dim", fmt::format("hidden_size / num_attention_heads ({} / {}): OLMoE's norms of queries and keys are "
                                   "as long as that",
                                   c.hidden_size, c.num_heads));
  c.gqa.qkv_bias = c.gqa.o_bias = f.boolean_or("attention_bias", false);
  c.gqa.qk_norm = QkNorm::kAllBeforeRope;
  c.rope = read_rope(f, read_whole_rotary_dim(f, c.gqa.head_dim), c.max_position_embeddings);
  read_experts(f, "num_experts_per_tok", c.moe);
  c.moe.moe_intermediate_size = int(f.integer("intermediate_size", 1, limits::kMoeIntermediate));
  c.moe.normalize_topk = f.boolean_or("norm_topk_prob", false);
  all_moe_layers(read_one_window(f, 0, c.num_layers), c);
}

// rotary_dim is MiniMax's own name of head_dim * partial_rotary_factor.
void read_minimax_m2(const Fields& f, Config& c) {
  require_absent(f, "sliding_window", "attention windows");
  read_gqa(f, c);
  c.gqa.qk_norm = QkNorm::kAllBeforeRope;
  int dim = read_rotary_dim(f, c.gqa.head_dim);
  if (f.has("rotary_dim")) {
    const int rotary_dim = int(f.integer("rotary_dim", 2, c.gqa.head_dim));
    const auto rope = rope_object(f);
    const bool said_twice = f.has("partial_rotary_factor") || (rope && rope->has("partial_rotary_factor"));
    if (rotary_dim % 2 != 0) f.fail("rotary_dim", "an even number: RoPE rotates pairs");
    if (said_twice && rotary_dim != dim)
      f.fail("rotary_dim", fmt::format("{}, which is head_dim * partial_rotary_factor", dim));
    dim = rotary_dim;
  }
  c.rope = read_rope(f, dim, c.max_position_embeddings);
  read_experts(f, "num_experts_per_tok", c.moe);
  c.moe.moe_intermediate_size = int(f.integer("intermediate_size", 1, limits::kMoeIntermediate));
  c.moe.scoring = GateScoring::kSigmoid;
  c.moe.has_correction_bias = true;
  c.moe.normalize_topk = true;
  w1_w2_w3(c.names);
  c.names.correction_bias = "e_score_correction_bias";
  all_moe_layers(read_one_window(f, 0, c.num_layers), c);
}

}  // namespace moectl
