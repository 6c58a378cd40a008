// Qwen2-MoE and Qwen3-MoE as transformers computes them.
#include <fmt/core.h>

#include <algorithm>

#include "core/model/config_readers.h"

namespace moectl {

namespace {

// A layer is MoE when it is not in mlp_only_layers and its number, from 1, is a multiple of decoder_sparse_step.
void read_layers(const Fields& f, const std::vector<int>& windows, Config& c) {
  const std::vector<int32_t> dense = f.integers("mlp_only_layers", 0, limits::kLayers);
  const int64_t step = f.integer("decoder_sparse_step", 1, limits::kLayers);
  for (int i = 0; i < c.num_layers; ++i) {
    const bool moe = std::find(dense.begin(), dense.end(), i) == dense.end() && (i + 1) % step == 0;
    c.layers.push_back({.attention = AttentionKind::kGqa,
                        .feed_forward = moe ? FeedForwardKind::kMoe : FeedForwardKind::kDense,
                        .window = windows[size_t(i)]});
  }
}

void read_qwen(const Fields& f, Config& c) {
  read_gqa(f, c);
  c.rope = read_rope(f, read_whole_rotary_dim(f, c.gqa.head_dim), c.max_position_embeddings);
  read_experts(f, "num_experts_per_tok", c.moe);
  read_moe_intermediate_size(f, c.moe);
  c.moe.normalize_topk = f.boolean_or("norm_topk_prob", false);
}

int read_window(const Fields& f) {
  if (f.boolean_or("use_sliding_window", false)) return int(f.integer("sliding_window", 1, limits::kPositions));
  f.ignore({"sliding_window", "max_window_layers"});
  return 0;
}

}  // namespace

// Windows in layers 0, 2, 4, ... below max_window_layers, unless layer_types says otherwise.
void read_qwen2_moe(const Fields& f, Config& c) {
  read_qwen(f, c);
  c.gqa.qkv_bias = f.boolean_or("qkv_bias", true);
  c.moe.num_shared_experts = 1;
  c.moe.shared_intermediate_size = int(f.integer("shared_expert_intermediate_size", 1, limits::kIntermediate));
  c.moe.has_shared_gate = true;
  c.names.shared = "shared_expert.";
  const int window = read_window(f);
  const int64_t first_full = f.integer_or("max_window_layers", 0, 0, limits::kLayers);
  std::vector<int> windows = read_windows(f, window, c.num_layers, [](int) { return false; });
  if (!f.has("layer_types"))
    for (int i = 0; i < c.num_layers; ++i)
      if (i % 2 == 0 && i < first_full) windows[size_t(i)] = window;
  read_layers(f, windows, c);
}

// One window in all layers.
void read_qwen3_moe(const Fields& f, Config& c) {
  read_qwen(f, c);
  c.gqa.qkv_bias = c.gqa.o_bias = f.boolean_or("attention_bias", false);
  c.gqa.qk_norm = QkNorm::kHeadBeforeRope;
  read_layers(f, read_one_window(f, read_window(f), c.num_layers), c);
}

}  // namespace moectl
