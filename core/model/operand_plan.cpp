#include "core/model/operand_plan.h"

namespace moectl {
namespace {

ExpertOperands expert_operands(const Ops& ops, const MlpWeights& w, int64_t num_experts, const Activation& activation,
                               bool scales_input) {
  static float none = 1.0f;
  MoeExpertsArgs args = {.w_gate = w.gate,
                         .w_up = w.up,
                         .w_down = w.down,
                         .activation = activation,
                         .gate_bias = w.gate_bias,
                         .up_bias = w.up_bias,
                         .down_bias = w.down_bias};
  args.expert_offsets.rank = 1;
  args.expert_offsets.shape[0] = num_experts + 1;
  if (scales_input) args.row_scale = View<const float>(&none, {1});  // whether there is one is all that counts
  return ops.expert_operands(args);
}

LayerOperands plan_layer(const Config& config, const LayerWeights& w, FeedForwardKind kind, const Ops& ops,
                         const KvView& cache, int64_t num_local_experts) {
  LayerOperands plan;
  if (config.attention() == AttentionKind::kMla) {
    plan.attention_input = {w.mla.q_a ? w.mla.q_a.operand : w.mla.q_b.operand, w.mla.kv_a.operand};
    plan.mla = ops.mla_form(w.mla.w_uk, w.mla.w_uv, cache);
  } else {
    plan.attention_input = {w.gqa.q.operand, w.gqa.k.operand, w.gqa.v.operand};
  }
  if (kind == FeedForwardKind::kDense) {
    plan.mlp = expert_operands(ops, w.mlp, 1, {}, false);
    plan.ffn_input = {plan.mlp.x};
    return plan;
  }
  plan.experts = expert_operands(ops, w.experts, num_local_experts, config.moe.activation, config.moe.scale_input);
  plan.ffn_input = {w.gate.operand, plan.experts.x};
  if (w.shared_gate) plan.ffn_input.add(w.shared_gate.operand);
  if (config.moe.num_shared_experts > 0) {
    plan.shared = expert_operands(ops, w.shared, 1, {}, false);
    plan.ffn_input.add(plan.shared.x);
  }
  return plan;
}

}  // namespace

OperandPlan plan_operands(const Config& config, const ModelWeights& weights, const Ops& ops, const KvView& cache,
                          int64_t num_local_experts) {
  OperandPlan plan;
  const auto layer = [&](const LayerWeights& w, size_t i) {
    return plan_layer(config, w, config.layers[i].feed_forward, ops, cache, num_local_experts);
  };
  for (size_t i = 0; i < weights.layers.size(); ++i) plan.layers.push_back(layer(weights.layers[i], i));
  for (size_t i = 0; i < weights.mtp.size(); ++i)
    plan.mtp.push_back(layer(weights.mtp[i].layer, size_t(config.num_layers) + i));
  return plan;
}

}  // namespace moectl
