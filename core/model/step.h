// What the parts of the decoder share during one step.
#pragma once

#include "core/comm/expert_dispatch.h"
#include "core/model/buffers.h"
#include "core/model/expert_counts.h"
#include "core/model/model.h"
#include "core/model/operand_plan.h"
#include "core/model/step_inputs.h"
#include "core/model/tensor_parallel.h"
#include "core/model/weights.h"

namespace moectl {

struct Step {
  const Config& config;
  Ops& ops;
  Buffers& buffers;
  KvCache& cache;
  TensorParallel& tp;
  ExpertDispatch* experts;            // null: no MoE layers
  const ExpertCounts* expert_counts;  // likewise
  Stream stream;
  const StepInputs& in;
  int64_t num_tokens = 0;  // rows, padding included
};

// The part of an attention layer that writes layer `layer_idx` of the cache, from x [num_tokens, hidden_size].
void mla_cache(Step& step, const MlaWeights& w, int layer_idx, const Operands& x);
void gqa_cache(Step& step, const GqaWeights& w, int layer_idx, const Operands& x);
// x [num_tokens, hidden_size] of LayerOperands::attention_input -> out, the contribution of the rank's heads. Reads and
// writes layer `layer_idx` of the cache.
void mla_layer(Step& step, const MlaWeights& w, const LayerOperands& operands, int layer_idx, const Operands& x,
               View<float> out);
void gqa_layer(Step& step, const GqaWeights& w, int layer_idx, const Operands& x, View<float> out);
// Feed-forward of one layer, dense or MoE, of x [num_tokens, hidden_size] of LayerOperands::ffn_input, which is the
// norm of buffers.residual; all ranks' contributions are in `out`. Ranks of a group call it together for MoE layers.
void feed_forward(Step& step, const LayerWeights& w, const LayerOperands& operands, int layer_idx, const Operands& x,
                  View<float> out);
// residual += delta (where given), then one decoder layer; leaves the layer's last contribution in buffers.delta, not
// yet added.
void decoder_layer(Step& step, const LayerWeights& w, const LayerOperands& operands, int layer_idx,
                   View<const float> delta);

}  // namespace moectl
