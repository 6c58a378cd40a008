// Feed-forward: one dense SwiGLU, or routed experts over all ranks plus the shared expert (DeepSeek-V3 report,
// section 2.1.2).
#include "core/model/step.h"

namespace moectl {
namespace {

void dense(Step& step, const MlpWeights& w, View<const float> x, View<float> hidden_rows, View<float> out) {
  if (step.num_tokens == 0) return;
  const View<float> hidden(hidden_rows.data, {step.num_tokens, w.gate.n});
  step.ops.moe_experts({x, step.in.one_expert, w.gate, w.up, w.down, 0, hidden, out}, step.stream);
}

}  // namespace

void feed_forward(Step& step, const LayerWeights& w, FeedForwardKind kind, View<const float> x, View<float> out) {
  if (kind == FeedForwardKind::kDense) return dense(step, w.mlp, x, step.buffers.mlp_hidden, out);

  const MoeConfig& moe = step.config.moe;
  Buffers& b = step.buffers;
  const int64_t n = step.num_tokens;
  const View<float> logits = b.gate_logits.first(n), expert_weight = b.expert_weight.first(n),
                    shared = b.shared.first(n);
  const View<int32_t> expert_idx = b.expert_idx.first(n);
  step.ops.linear({x, w.gate, logits, w.gate_bias}, step.stream);
  MoeCombineArgs combine = {.out = out};
  if (w.shared_gate) {
    const View<float> gate = b.shared_gate.first(n);
    step.ops.linear({x, w.shared_gate, gate}, step.stream);
    combine.shared_gate = View<const float>(gate.data, {n});
  }
  if (moe.num_shared_experts > 0) {
    step.ops.beside([&] { dense(step, w.shared, x, b.shared_hidden, shared); });
    combine.shared = shared;
  }
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
                     .norm_min = moe.norm_min},
                    step.stream);

  MoeExpertsArgs experts = {.w_gate = w.experts.gate,
                            .w_up = w.experts.up,
                            .w_down = w.experts.down,
                            .expert_begin = step.exchange->expert_begin(),
                            .activation = moe.activation,
                            .gate_bias = w.experts.gate_bias,
                            .up_bias = w.experts.up_bias,
                            .down_bias = w.experts.down_bias};
  const ExpertExchange::Received rows = moe.scale_input ? step.exchange->dispatch(x, expert_idx, expert_weight)
                                                        : step.exchange->dispatch(x, expert_idx, {}, &experts);
  experts.x = rows.x;
  experts.expert_offsets = rows.expert_offsets;
  experts.hidden = View<float>(b.mlp_hidden.data, {rows.x.dim(0), moe.moe_intermediate_size});
  experts.out = rows.out;
  experts.row_scale = rows.scale;
  step.ops.moe_experts(experts, step.stream);
  if (!moe.scale_input) combine.expert_weight = expert_weight;
  combine.expert_rows = step.exchange->collect();
  step.ops.rejoin();
  step.ops.moe_combine(combine, step.stream);
}

}  // namespace moectl
