// DeepSeek-V2 and -V3 (R1, V3.1, Kimi K2) as transformers 5 computes them. Where that differs from DeepSeek's own code:
// V2 always multiplies routing weights by routed_scaling_factor and never normalises them, whatever norm_topk_prob
// says, while DeepSeek's code normalises instead of scaling when it is true (no published V2 sets it). In both,
// mscale_all_dim enters the softmax scale squared, and cos and sin are multiplied by mscale over mscale_all_dim.
#include <fmt/format.h>

#include <cmath>

#include "core/base/log.h"
#include "core/model/config_readers.h"

namespace moectl {

namespace {

struct GateDefaults {
  const char* scoring;
  const char* topk_method;
  bool normalize;
  double scaling;
};

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

  if (mla.qk_rope_head_dim % 2 != 0) f.fail("qk_rope_head_dim", "an even number: RoPE rotates pairs");
  if (read_rotary_dim(f, mla.qk_rope_head_dim) != mla.qk_rope_head_dim)
    f.fail("partial_rotary_factor", "1: MLA rotates qk_rope_head_dim components");
  c.rope = read_rope(f, mla.qk_rope_head_dim, c.max_position_embeddings);
  if (!f.boolean_or("rope_interleave", true)) f.fail("rope_interleave", "true: MLA rotates pairs (2i, 2i+1)");
  c.rope.interleaved = true;
  double mscale = c.rope.mscale_all_dim != 0.0f ? yarn_mscale(c.rope.factor, c.rope.mscale_all_dim) : 1.0;
  c.softmax_scale = float(mscale * mscale / std::sqrt(double(mla.qk_nope_head_dim + mla.qk_rope_head_dim)));
}

void read_gate(const Fields& f, const GateDefaults& defaults, MoeConfig& moe) {
  const std::string scoring = f.text_or("scoring_func", defaults.scoring);
  if (scoring == "softmax")
    moe.scoring = GateScoring::kSoftmax;
  else if (scoring == "sigmoid")
    moe.scoring = GateScoring::kSigmoid;
  else
    f.fail("scoring_func", "\"softmax\" or \"sigmoid\"");

  const std::string method = f.text_or("topk_method", defaults.topk_method);
  if (method == "greedy")
    moe.select = GateSelect::kGreedy;
  else if (method == "group_limited_greedy")
    moe.select = GateSelect::kGroupMax;
  else if (method == "noaux_tc")
    moe.select = GateSelect::kGroupTop2;
  else
    f.fail("topk_method", "\"greedy\", \"group_limited_greedy\" or \"noaux_tc\"");
  moe.has_correction_bias = moe.select == GateSelect::kGroupTop2;

  moe.routed_scaling_factor = float(f.number_or("routed_scaling_factor", defaults.scaling, 1e-6, 1e6));
  moe.normalize_topk = f.boolean_or("norm_topk_prob", defaults.normalize);

  if (moe.select == GateSelect::kGreedy) return;  // groups play no part: one group, always chosen
  moe.num_groups = int(f.integer("n_group", 1, moe.num_experts));
  moe.num_topk_groups = int(f.integer("topk_group", 1, moe.num_groups));
  if (moe.num_experts % moe.num_groups != 0)
    f.fail("n_group", fmt::format("a divisor of n_routed_experts ({})", moe.num_experts));
  const int group_size = moe.num_experts / moe.num_groups;
  if (moe.select == GateSelect::kGroupTop2 && group_size < 2)
    f.fail("n_group", "groups of at least two experts: noaux_tc ranks groups by their two best");
  if (moe.num_experts_per_tok > moe.num_topk_groups * group_size)
    f.fail("num_experts_per_tok", fmt::format("at most the {} experts of {} chosen groups",
                                              moe.num_topk_groups * group_size, moe.num_topk_groups));
}

void read_moe(const Fields& f, const GateDefaults& defaults, MoeConfig& moe) {
  const std::string_view experts = f.either({"n_routed_experts", "num_local_experts", "num_experts"});
  moe.num_experts = int(f.integer(experts, 1, limits::kExperts));
  moe.num_experts_per_tok = int(f.integer("num_experts_per_tok", 1, moe.num_experts));
  moe.moe_intermediate_size = int(f.integer("moe_intermediate_size", 1, limits::kMoeIntermediate));
  moe.num_shared_experts = int(f.integer_or("n_shared_experts", 0, 0, limits::kSharedExperts));
  moe.shared_intermediate_size = moe.num_shared_experts * moe.moe_intermediate_size;
  read_gate(f, defaults, moe);
}

// A layer is MoE from first_k_dense_replace on, every moe_layer_freq-th; the MTP modules' layers follow the same rule.
void read_layers(const Fields& f, Config& c) {
  c.num_mtp_layers =
      int(f.integer_or(f.either({"num_nextn_predict_layers", "num_mtp_layers"}), 0, 0, limits::kMtpLayers));
  const int64_t first = f.integer("first_k_dense_replace", 0, limits::kLayers);
  const int64_t freq = f.integer_or("moe_layer_freq", 1, 1, limits::kLayers);
  for (int i = 0; i < c.num_layers + c.num_mtp_layers; ++i)
    c.layers.push_back(
        {AttentionKind::kMla, i >= first && i % freq == 0 ? FeedForwardKind::kMoe : FeedForwardKind::kDense});
}

void read_deepseek(const Fields& f, const GateDefaults& defaults, Config& c) {
  require_false(f, "attention_bias", "biases in the attention projections");
  require_false(f, "mlp_bias", "biases in the feed-forward layers");
  require_absent(f, "sliding_window", "attention windows");
  require_false(f, "use_sliding_window", "attention windows");
  read_mla(f, c);
  read_moe(f, defaults, c.moe);
  read_layers(f, c);
}

}  // namespace

void read_deepseek_v2(const Fields& fields, Config& config) {
  read_deepseek(fields, {.scoring = "softmax", .topk_method = "greedy", .normalize = false, .scaling = 1.0}, config);
  if (config.moe.normalize_topk && config.moe.select != GateSelect::kGroupTop2) {
    log::warn(
        "{}: norm_topk_prob is true, which DeepSeek's code and transformers read differently for deepseek_v2; "
        "routing weights are not normalised, as in transformers",
        fields.origin());
    config.moe.normalize_topk = false;
  }
}

void read_deepseek_v3(const Fields& fields, Config& config) {
  read_deepseek(fields, {.scoring = "sigmoid", .topk_method = "noaux_tc", .normalize = true, .scaling = 2.5}, config);
}

}  // namespace moectl
