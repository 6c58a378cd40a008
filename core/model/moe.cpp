// Feed-forward: one dense SwiGLU, or routed experts over all ranks plus the shared expert (DeepSeek-V3 report,
// section 2.1.2).
#include "core/model/step.h"

namespace moectl {
namespace {

void dense(Step& step, const MlpWeights& w, View<const float> x, View<float> out) {
  if (step.num_tokens == 0) return;
  const View<float> hidden(step.buffers.mlp_hidden.data, {step.num_tokens, w.gate.n});
  step.ops.moe_experts({x, step.buffers.one_expert, w.gate, w.up, w.down, 0, hidden, out}, step.stream);
}

}  // namespace

void feed_forward(Step& step, const LayerWeights& w, FeedForwardKind kind, View<const float> x, View<float> out) {
  if (kind == FeedForwardKind::kDense) return dense(step, w.mlp, x, out);

  const MoeConfig& moe = step.config.moe;
  Buffers& b = step.buffers;
  const int64_t n = step.num_tokens;
  const View<float> logits = b.gate_logits.first(n), expert_weight = b.expert_weight.first(n),
                    shared = b.shared.first(n);
  const View<int32_t> expert_idx = b.expert_idx.first(n);
  step.ops.linear({x, w.gate, logits}, step.stream);
  step.ops.moe_gate({.logits = logits,
                     .bias = w.gate_bias,
                     .expert_idx = expert_idx,
                     .expert_weight = expert_weight,
                     .sigmoid = moe.scoring == GateScoring::kSigmoid,
                     .normalize = moe.normalize_topk,
                     .num_groups = moe.select == GateSelect::kGreedy ? 1 : moe.num_groups,
                     .num_topk_groups = moe.select == GateSelect::kGreedy ? 1 : moe.num_topk_groups,
                     .group_score_top2 = moe.select == GateSelect::kGroupTop2,
                     .scale = moe.routed_scaling_factor},
                    step.stream);

  ExpertExchange::Received rows = step.exchange->dispatch(x, expert_idx);
  step.ops.moe_experts(
      {rows.x, rows.expert_offsets, w.experts.gate, w.experts.up, w.experts.down, step.exchange->expert_begin(),
       View<float>(b.mlp_hidden.data, {rows.x.dim(0), moe.moe_intermediate_size}), rows.out},
      step.stream);
  if (moe.num_shared_experts > 0) dense(step, w.shared, x, shared);
  const View<const float* const> expert_rows = step.exchange->collect();
  step.ops.moe_combine(
      {expert_rows, expert_weight, moe.num_shared_experts > 0 ? View<const float>(shared) : View<const float>(), out},
      step.stream);
}

}  // namespace moectl
