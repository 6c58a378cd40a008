// gpt-oss as transformers computes it: sinks, windows in every other layer, biases everywhere, clamped SwiGLU, YaRN.
#include <fmt/core.h>

#include "core/model/config_readers.h"

namespace moectl {

void read_gpt_oss(const Fields& f, Config& c) {
  read_gqa(f, c);
  c.gqa.qkv_bias = c.gqa.o_bias = f.boolean_or("attention_bias", true);
  c.gqa.sinks = true;
  if (!rope_object(f)) f.fail("rope_parameters", "an object, or no such field for gpt-oss's own YaRN");
  c.rope = read_rope(f, read_whole_rotary_dim(f, c.gqa.head_dim), c.max_position_embeddings);
  MoeConfig& moe = c.moe;
  read_experts(f, f.either({"num_experts_per_tok", "experts_per_token"}), moe);
  moe.moe_intermediate_size = int(f.integer("intermediate_size", 1, limits::kMoeIntermediate));
  moe.normalize_topk = true;  // softmax over the chosen logits is the same
  moe.has_router_bias = moe.has_expert_bias = true;
  constexpr double kLimit = 7.0;  // transformers has it as a constant, OpenAI's code reads the field
  if (f.number_or("swiglu_limit", kLimit, 0.0, 1e6) != kLimit)
    f.fail("swiglu_limit", "7.0: implementations differ in whether another value counts");
  moe.activation = {.kind = Activation::Kind::kClampedSwiGlu, .limit = float(kLimit), .alpha = 1.702f};
  c.names.router = "router";
  c.names.experts = TensorNames::Experts::kFusedInterleaved;
  const int window = int(f.integer_or("sliding_window", 0, 1, limits::kPositions));
  for (int w : read_windows(f, window, c.num_layers, [](int layer) { return layer % 2 == 0; }))
    c.layers.push_back({.attention = AttentionKind::kGqa, .feed_forward = FeedForwardKind::kMoe, .window = w});
}

}  // namespace moectl
