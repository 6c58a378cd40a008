// Qwen3-MoE as transformers computes it.
#include <fmt/format.h>

#include <algorithm>

#include "core/model/config_readers.h"

namespace moectl {

namespace {

// A layer is MoE when it is not in mlp_only_layers and its number, from 1, is a multiple of decoder_sparse_step.
void read_layers(const Fields& f, int window, Config& c) {
  const std::vector<int32_t> dense = f.integers("mlp_only_layers", 0, limits::kLayers);
  const int64_t step = f.integer_or("decoder_sparse_step", 1, 1, limits::kLayers);
  for (int i = 0; i < c.num_layers; ++i) {
    const bool moe = std::find(dense.begin(), dense.end(), i) == dense.end() && (i + 1) % step == 0;
    c.layers.push_back({.attention = AttentionKind::kGqa,
                        .feed_forward = moe ? FeedForwardKind::kMoe : FeedForwardKind::kDense,
                        .window = window});
  }
}

}  // namespace

void read_qwen3_moe(const Fields& f, Config& c) {
  read_gqa(f, c);
  c.gqa.qkv_bias = c.gqa.o_bias = f.boolean_or("attention_bias", false);
  c.gqa.qk_norm = QkNorm::kHeadBeforeRope;
  c.rope = read_rope(f, read_rotary_dim(f, c.gqa.head_dim), c.max_position_embeddings);
  MoeConfig& moe = c.moe;
  moe.num_experts = int(f.integer(f.either({"num_experts", "num_local_experts"}), 1, limits::kExperts));
  moe.num_experts_per_tok = int(f.integer("num_experts_per_tok", 1, moe.num_experts));
  moe.moe_intermediate_size = int(f.integer("moe_intermediate_size", 1, limits::kMoeIntermediate));
  moe.normalize_topk = f.boolean_or("norm_topk_prob", false);
  const bool windows = f.boolean_or("use_sliding_window", false);
  read_layers(f, windows ? int(f.integer_or("sliding_window", 0, 1, limits::kPositions)) : 0, c);
}

}  // namespace moectl
