// gpt-oss as transformers computes it: sinks, windows in every other layer, biases everywhere, clamped SwiGLU, YaRN.
#include <fmt/format.h>

#include "core/model/config_readers.h"

namespace moectl {

namespace {

// layer_types; absent: windows in layers 0, 2, 4, ...
void read_layers(const Fields& f, Config& c) {
  const int window = int(f.integer_or("sliding_window", 128, 1, limits::kPositions));
  const std::vector<std::string> types = f.texts("layer_types");
  if (!types.empty() && int(types.size()) != c.num_layers)
    f.fail("layer_types", fmt::format("one entry for each of {} layers", c.num_layers));
  for (int i = 0; i < c.num_layers; ++i) {
    const std::string type = !types.empty() ? types[size_t(i)] : i % 2 == 0 ? "sliding_attention" : "full_attention";
    if (type != "sliding_attention" && type != "full_attention")
      f.fail("layer_types", "\"sliding_attention\" or \"full_attention\" in each entry");
    c.layers.push_back({.attention = AttentionKind::kGqa,
                        .feed_forward = FeedForwardKind::kMoe,
                        .window = type == "sliding_attention" ? window : 0});
  }
}

}  // namespace

void read_gpt_oss(const Fields& f, Config& c) {
  read_gqa(f, c);
  c.gqa.qkv_bias = c.gqa.o_bias = f.boolean_or("attention_bias", true);
  c.gqa.sinks = true;
  c.rope = read_rope(f, read_rotary_dim(f, c.gqa.head_dim), c.max_position_embeddings);
  MoeConfig& moe = c.moe;
  moe.num_experts = int(f.integer("num_local_experts", 1, limits::kExperts));
  moe.num_experts_per_tok = int(f.integer(f.either({"num_experts_per_tok", "experts_per_token"}), 1, moe.num_experts));
  moe.moe_intermediate_size = c.intermediate_size;
  moe.normalize_topk = true;  // softmax over the chosen logits is the same
  moe.has_router_bias = moe.has_expert_bias = true;
  moe.activation = {.kind = Activation::Kind::kClampedSwiGlu,
                    .limit = float(f.number_or("swiglu_limit", 7.0, 1e-3, 1e6)),
                    .alpha = 1.702f};
  c.names.router = "router";
  c.names.experts = TensorNames::Experts::kFusedInterleaved;
  read_layers(f, c);
}

}  // namespace moectl
