// Feed-forward: one dense SwiGLU, or routed experts over all ranks plus the shared expert (DeepSeek-V3 report,
// section 2.1.2).
#include "core/model/step.h"

namespace moectl {
namespace {

void dense(Step& step, const MlpWeights& w, const ExpertOperands& operands, const Operands& x,
           const OperandBuffer& hidden, View<float> out) {
  if (step.num_tokens == 0) return;
  step.ops.moe_experts({.x = x.get(operands.x),
                        .expert_offsets = step.in.one_expert,
                        .w_gate = w.gate,
                        .w_up = w.up,
                        .w_down = w.down,
                        .hidden = hidden.rows(step.num_tokens, w.gate.n, operands.hidden),
                        .out = out},
                       step.stream);
}

}  // namespace

void feed_forward(Step& step, const LayerWeights& w, const LayerOperands& operands, int layer_idx, const Operands& x,
                  View<float> out) {
  if (step.config.layers[size_t(layer_idx)].feed_forward == FeedForwardKind::kDense)
    return dense(step, w.mlp, operands.mlp, x, step.buffers.mlp_hidden, out);

  const MoeConfig& moe = step.config.moe;
  Buffers& b = step.buffers;
  const int64_t n = step.num_tokens;
  const View<float> logits = b.gate_logits.first(n), expert_weight = b.expert_weight.first(n),
                    shared = b.shared.first(n);
  const View<int32_t> expert_idx = b.expert_idx.first(n);
  step.ops.linear({x.get(w.gate.operand), w.gate, logits, w.gate_bias}, step.stream);
  MoeCombineArgs combine = {.out = out};
  if (w.shared_gate) {
    const View<float> gate = b.shared_gate.first(n);
    step.ops.linear({x.get(w.shared_gate.operand), w.shared_gate, gate}, step.stream);
    combine.shared_gate = View<const float>(gate.data, {n});
  }
  if (moe.num_shared_experts > 0) {
    step.ops.device().fork([&] { dense(step, w.shared, operands.shared, x, b.shared_hidden, shared); });
    combine.shared = shared;
  }
  if (!moe.scale_input) combine.expert_weight = expert_weight;
  step.ops.moe_gate({.logits = logits,
                     .bias = w.correction_bias,
                     .expert_idx = expert_idx,
                     .expert_weight = expert_weight,
                     .sigmoid = moe.scoring == GateScoring::kSigmoid,
                     .normalize = moe.normalize_topk,
                     .num_groups = moe.select == GateSelect::kGreedy ? 1 : moe.num_groups,
                     .num_topk_groups = moe.select == GateSelect::kGreedy ? 1 : moe.num_topk_groups,
                     .group_score_top2 = moe.select == GateSelect::kGroupTop2,
                     .scale = moe.routed_scaling_factor,
                     .norm_min = moe.norm_min,
                     .count = step.expert_counts->of_layer(layer_idx, step.in.positions)},
                    step.stream);

  MoeExpertsArgs experts = {.w_gate = w.experts.gate,
                            .w_up = w.experts.up,
                            .w_down = w.experts.down,
                            .activation = moe.activation,
                            .gate_bias = w.experts.gate_bias,
                            .up_bias = w.experts.up_bias,
                            .down_bias = w.experts.down_bias};
  ExpertDispatch& dispatch = *step.experts;
  // Ranks that share the weights of all experts pick theirs; others hold their own, in order.
  if (w.experts.gate.batch == moe.num_experts) experts.weight_idx = dispatch.logical_experts();
  const ExpertDispatch::Tokens tokens = {.x = x.get(operands.experts.x),
                                         .expert_idx = expert_idx,
                                         .expert_weight = expert_weight,
                                         .scale_rows = moe.scale_input,
                                         .results = operands.experts.out,
                                         .layer = layer_idx};
  for (int round = 0; round < dispatch.num_rounds(); ++round) {
    const ExpertDispatch::Received rows = dispatch.dispatch(tokens, round);
    experts.x = rows.x;
    experts.expert_offsets = rows.expert_offsets;
    experts.hidden = b.mlp_hidden.rows(rows.x.dim(0), w.experts.gate.n, operands.experts.hidden);
    experts.out = rows.out;
    experts.row_scale = rows.scale;
    step.ops.moe_experts(experts, step.stream);
    if (round == 0) step.ops.device().join();  // the shared expert
    dispatch.combine(combine, round);
  }
}

}  // namespace moectl
