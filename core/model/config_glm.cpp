// GLM-4.5 (glm4_moe) and dots.llm1: DeepSeek-V3's experts with grouped-query attention, as transformers computes them.
#include <fmt/core.h>

#include "core/model/config_readers.h"

namespace moectl {

namespace {

void read_noaux_moe(const Fields& f, Config& c) {
  read_experts(f, "num_experts_per_tok", c.moe);
  read_moe_intermediate_size(f, c.moe);
  read_shared_experts(f, "n_shared_experts", c.moe);
  read_noaux_gate(f, c.moe);
  read_layers_from_first_k(f, AttentionKind::kGqa, c);
}

}  // namespace

// q, k and v may have biases, o has none; part of a head is rotated.
void read_glm4_moe(const Fields& f, Config& c) {
  require_absent(f, "sliding_window", "attention windows");
  read_gqa(f, c);
  c.gqa.qkv_bias = f.boolean_or("attention_bias", false);
  if (f.boolean_or("use_qk_norm", false)) c.gqa.qk_norm = QkNorm::kHeadBeforeRope;
  c.rope = read_rope(f, read_rotary_dim(f, c.gqa.head_dim), c.max_position_embeddings);
  read_noaux_moe(f, c);
  read_one_window(f, 0, c.num_layers);  // layer_types
}

// Windows in layers max_window_layers, ..., unless layer_types says otherwise.
void read_dots1(const Fields& f, Config& c) {
  read_gqa(f, c);
  c.gqa.qkv_bias = c.gqa.o_bias = f.boolean_or("attention_bias", false);
  c.gqa.qk_norm = QkNorm::kHeadBeforeRope;
  c.rope = read_rope(f, read_whole_rotary_dim(f, c.gqa.head_dim), c.max_position_embeddings);
  read_noaux_moe(f, c);
  const int window = int(f.integer_or("sliding_window", 0, 1, limits::kPositions));
  const int64_t first_windowed = f.integer_or("max_window_layers", limits::kLayers, 0, limits::kLayers);
  const std::vector<int> windows = read_windows(f, window, c.num_layers, [](int) { return false; });
  for (int i = 0; i < c.num_layers; ++i)
    c.layers[size_t(i)].window = f.has("layer_types") ? windows[size_t(i)] : i >= first_windowed ? window : 0;
}

}  // namespace moectl
