// DeepSeek-V2 and -V3 (R1, V3.1, Kimi K2) as transformers 5 computes them. Where that differs from DeepSeek's own code:
// V2 always multiplies routing weights by routed_scaling_factor and never normalises them, whatever norm_topk_prob
// says, while DeepSeek's code normalises instead of scaling when it is true (no published V2 sets it). In both,
// mscale_all_dim enters the softmax scale squared, and cos and sin are multiplied by mscale over mscale_all_dim.
#include <fmt/core.h>

#include <cmath>

#include "core/base/log.h"
#include "core/model/config_readers.h"

namespace moectl {

namespace {

void read_mla(const Fields& f, Config& c) {
  MlaConfig& mla = c.mla;
  if (!f.contains("q_lora_rank"))
    f.fail("q_lora_rank", fmt::format("an integer from 1 to {}, or null for one full query matrix", limits::kLoraRank));
  mla.q_lora_rank = int(f.integer_or("q_lora_rank", 0, 1, limits::kLoraRank));
  mla.kv_lora_rank = int(f.integer("kv_lora_rank", 1, limits::kLoraRank));
  mla.qk_nope_head_dim = int(f.integer("qk_nope_head_dim", 1, limits::kHeadDim));
  mla.qk_rope_head_dim = int(f.integer("qk_rope_head_dim", 2, limits::kHeadDim));
  mla.v_head_dim = int(f.integer("v_head_dim", 1, limits::kHeadDim));
  if (f.integer_or("num_key_value_heads", c.num_heads, 0, limits::kHeads) != c.num_heads)
    f.fail("num_key_value_heads", fmt::format("num_attention_heads ({}): MLA has one latent for all", c.num_heads));

  // What transformers writes beside them when it saves a model.
  require_integer(f, "head_dim", mla.qk_rope_head_dim, "qk_rope_head_dim");
  require_integer(f, "qk_head_dim", mla.qk_nope_head_dim + mla.qk_rope_head_dim, "qk_nope_head_dim + qk_rope_head_dim");
  if (mla.qk_rope_head_dim % 2 != 0) f.fail("qk_rope_head_dim", "an even number: RoPE rotates pairs");
  c.rope = read_rope(f, read_whole_rotary_dim(f, mla.qk_rope_head_dim), c.max_position_embeddings);
  mla.bias = f.boolean_or("attention_bias", false);
  double mscale = c.rope.mscale_all_dim != 0.0f ? yarn_mscale(c.rope.factor, c.rope.mscale_all_dim) : 1.0;
  c.softmax_scale = float(mscale * mscale / std::sqrt(double(mla.qk_nope_head_dim + mla.qk_rope_head_dim)));
}

// Known from DeepSeek's code alone: transformers' V2 has no noaux_tc and no sigmoid scores.
void read_v2_gate(const Fields& f, MoeConfig& moe) {
  const std::string scoring = f.text_or("scoring_func", "softmax");
  if (scoring != "softmax" && scoring != "sigmoid") f.fail("scoring_func", "\"softmax\" or \"sigmoid\"");
  const std::string method = f.text_or("topk_method", "greedy");
  if (method == "noaux_tc") {
    read_noaux_gate(f, moe);
  } else {
    if (method != "greedy" && method != "group_limited_greedy")
      f.fail("topk_method", "\"greedy\", \"group_limited_greedy\" or \"noaux_tc\"");
    moe.select = method == "greedy" ? GateSelect::kGreedy : GateSelect::kGroupMax;
    moe.routed_scaling_factor = float(f.number("routed_scaling_factor", 1e-6, 1e6));
    if (method == "group_limited_greedy")
      read_groups(f, moe);
    else
      f.ignore({"n_group", "topk_group"});  // one group, always chosen
    if (f.boolean_or("norm_topk_prob", false))
      log::warn(
          "{}: norm_topk_prob is true, which DeepSeek's code and transformers read differently for deepseek_v2; "
          "routing weights are not normalised, as in transformers",
          f.origin());
  }
  moe.scoring = scoring == "sigmoid" ? GateScoring::kSigmoid : GateScoring::kSoftmax;
}

void read_deepseek(const Fields& f, void (*read_gate)(const Fields&, MoeConfig&), Config& c) {
  require_false(f, "mlp_bias", "biases in the feed-forward layers");
  require_absent(f, "sliding_window", "attention windows");
  require_false(f, "use_sliding_window", "attention windows");
  read_mla(f, c);
  read_experts(f, "num_experts_per_tok", c.moe);
  read_moe_intermediate_size(f, c.moe);
  read_shared_experts(f, "n_shared_experts", c.moe);
  read_gate(f, c.moe);
  read_layers_from_first_k(f, AttentionKind::kMla, c);
}

}  // namespace

void read_deepseek_v2(const Fields& f, Config& c) {
  read_deepseek(f, read_v2_gate, c);
  c.rope.interleaved = true;
}

void read_deepseek_v3(const Fields& f, Config& c) {
  require_text(f, "scoring_func", "sigmoid", "the scores of DeepSeek-V3's router");
  require_text(f, "topk_method", "noaux_tc", "the selection of DeepSeek-V3's router");
  read_deepseek(f, read_noaux_gate, c);
  c.rope.interleaved = f.boolean_or("rope_interleave", true);
}

}  // namespace moectl
