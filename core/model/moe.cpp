// Feed-forward: one dense SwiGLU, or routed experts plus the shared expert (DeepSeek-V3 report, section 2.1.2).
//
// Dense layers and the shared expert are split over the TP group. Routed experts are placed on all ranks (expert
// parallel): each TP rank sends its share of the group's tokens to them. Or each TP rank holds a part of every expert.
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

template <class T>
View<T> rows_of(View<T> view, const TensorParallel::Share& share) {
  if (!view) return view;
  view.data = view.row(share.begin);
  return view.first(share.num);
}

// Of the gate's choices for the rank's share: each token is counted by one TP rank.
ExpertCounting count_choices(const Step& step, int layer_idx, const TensorParallel::Share& share) {
  if (!step.tp.shares_tokens() && !step.tp.is_first()) return {};
  return step.expert_counts->of_layer(layer_idx, rows_of(step.in.positions, share));
}

// The rank's share of x, in a buffer of its own: peers read tokens at the same place in every step, and the rows of FP8
// operands cannot be cut off.
Operands share_of(Step& step, const LayerWeights& w, const LayerOperands& operands, const Operands& x) {
  if (!step.tp.shares_tokens()) return x;
  const TensorParallel::Share share = step.tp.share(step.num_tokens);
  const int64_t hidden_size = step.config.hidden_size;
  const Operands routed = step.buffers.routed.rows(share.num, hidden_size, operands.ffn_input);
  step.ops.rms_norm({.x = rows_of(step.buffers.residual, share),
                     .weight = w.post_attention_norm,
                     .out = routed,
                     .eps = step.config.rms_norm_eps},
                    step.stream);
  return routed;
}

// Experts of the rank's share of the tokens: buffers.expert_idx and expert_weight.
void choose_experts(Step& step, const LayerWeights& w, int layer_idx, const Operands& x, TensorParallel::Share share) {
  const MoeConfig& moe = step.config.moe;
  const View<float> logits = step.buffers.gate_logits.first(share.num);
  step.ops.linear({x.get(w.gate.operand), w.gate, logits, w.gate_bias}, step.stream);
  step.ops.moe_gate({.logits = logits,
                     .bias = w.correction_bias,
                     .expert_idx = step.buffers.expert_idx.first(share.num),
                     .expert_weight = step.buffers.expert_weight.first(share.num),
                     .sigmoid = moe.scoring == GateScoring::kSigmoid,
                     .normalize = moe.normalize_topk,
                     .num_groups = moe.select == GateSelect::kGreedy ? 1 : moe.num_groups,
                     .num_topk_groups = moe.select == GateSelect::kGreedy ? 1 : moe.num_topk_groups,
                     .group_score_top2 = moe.select == GateSelect::kGroupTop2,
                     .scale = moe.routed_scaling_factor,
                     .norm_min = moe.norm_min,
                     .count = count_choices(step, layer_idx, share)},
                    step.stream);
}

void moe_layer(Step& step, const LayerWeights& w, const LayerOperands& operands, int layer_idx, const Operands& x,
               View<float> out) {
  const MoeConfig& moe = step.config.moe;
  Buffers& b = step.buffers;
  const TensorParallel::Share share = step.tp.share(step.num_tokens);
  const Operands routed = share_of(step, w, operands, x);
  const View<float> shared = b.shared.first(step.num_tokens), expert_weight = b.expert_weight.first(share.num);
  MoeCombineArgs combine = {.out = rows_of(out, share)};
  if (w.shared_gate) {
    const View<float> gate = b.shared_gate.first(share.num);
    step.ops.linear({routed.get(w.shared_gate.operand), w.shared_gate, gate}, step.stream);
    combine.shared_gate = View<const float>(gate.data, {share.num});
  }
  if (moe.num_shared_experts > 0) {
    step.ops.device().fork([&] { dense(step, w.shared, operands.shared, x, b.shared_hidden, shared); });
    combine.shared = rows_of(shared, share);
  }
  if (!moe.scale_input) combine.expert_weight = expert_weight;
  choose_experts(step, w, layer_idx, routed, share);

  MoeExpertsArgs experts = {.w_gate = w.experts.gate,
                            .w_up = w.experts.up,
                            .w_down = w.experts.down,
                            .activation = moe.activation,
                            .gate_bias = w.experts.gate_bias,
                            .up_bias = w.experts.up_bias};
  if (step.tp.shares_tokens() || step.tp.is_first()) experts.down_bias = w.experts.down_bias;
  ExpertDispatch& dispatch = *step.experts;
  // Ranks that share the weights of all experts pick theirs; others hold their own, in order.
  if (w.experts.gate.batch == moe.num_experts) experts.weight_idx = dispatch.logical_experts();
  const ExpertDispatch::Tokens tokens = {.x = routed.get(operands.experts.x),
                                         .expert_idx = b.expert_idx.first(share.num),
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
    if (round == 0) {
      step.ops.device().join();  // the shared expert
      if (combine.shared) step.tp.reduce_scatter_shares(shared, step.stream);
    }
    dispatch.combine(combine, round);
  }
  if (step.tp.shares_tokens())
    step.tp.all_gather_shares(out, step.stream);
  else
    step.tp.all_reduce(out, step.stream);
}

}  // namespace

void feed_forward(Step& step, const LayerWeights& w, const LayerOperands& operands, int layer_idx, const Operands& x,
                  View<float> out) {
  if (step.config.layers[size_t(layer_idx)].feed_forward == FeedForwardKind::kMoe)
    return moe_layer(step, w, operands, layer_idx, x, out);
  dense(step, w.mlp, operands.mlp, x, step.buffers.mlp_hidden, out);
  step.tp.all_reduce(out, step.stream);
}

}  // namespace moectl
