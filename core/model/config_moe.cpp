// What the families' routers and experts share.
#include <fmt/core.h>

#include "core/model/config_readers.h"

namespace moectl {

void read_experts(const Fields& f, std::string_view top_k, MoeConfig& moe) {
  const std::string_view experts = f.either({"n_routed_experts", "num_local_experts", "num_experts"});
  moe.num_experts = int(f.integer(experts, 1, limits::kExperts));
  moe.num_experts_per_tok = int(f.integer(top_k, 1, moe.num_experts));
}

void read_moe_intermediate_size(const Fields& f, MoeConfig& moe) {
  moe.moe_intermediate_size = int(f.integer("moe_intermediate_size", 1, limits::kMoeIntermediate));
}

void read_shared_experts(const Fields& f, std::string_view name, MoeConfig& moe) {
  moe.num_shared_experts = int(f.integer_or(name, 0, 0, limits::kSharedExperts));
  moe.shared_intermediate_size = moe.num_shared_experts * moe.moe_intermediate_size;
}

void read_groups(const Fields& f, MoeConfig& moe) {
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

void read_noaux_gate(const Fields& f, MoeConfig& moe) {
  moe.scoring = GateScoring::kSigmoid;
  moe.select = GateSelect::kGroupTop2;
  moe.has_correction_bias = true;
  moe.routed_scaling_factor = float(f.number("routed_scaling_factor", 1e-6, 1e6));
  moe.normalize_topk = f.boolean_or("norm_topk_prob", false);
  read_groups(f, moe);
}

void read_layers_from_first_k(const Fields& f, AttentionKind attention, Config& c) {
  c.num_mtp_layers =
      int(f.integer_or(f.either({"num_nextn_predict_layers", "num_mtp_layers"}), 0, 0, limits::kMtpLayers));
  const int64_t first = f.integer("first_k_dense_replace", 0, limits::kLayers);
  const int64_t freq = f.integer_or("moe_layer_freq", 1, 1, limits::kLayers);
  for (int i = 0; i < c.num_layers + c.num_mtp_layers; ++i)
    c.layers.push_back({.attention = attention,
                        .feed_forward = i >= first && i % freq == 0 ? FeedForwardKind::kMoe : FeedForwardKind::kDense});
}

}  // namespace moectl
