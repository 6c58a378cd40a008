// OperandPlan: which dtypes each producer of the decoder writes, from the weights that consume its rows. Made once,
// when the model is built.
#pragma once

#include <vector>

#include "core/model/config.h"
#include "core/model/weights.h"
#include "kernels/ops.h"

namespace moectl {

struct LayerOperands {
  DTypeSet attention_input;             // of the input norm: consumed by q_a or q, by kv_a or k and v
  DTypeSet ffn_input;                   // of the post-attention norm: by the router and by all experts
  MlaForm mla;                          // layers with MLA
  ExpertOperands mlp, experts, shared;  // dense, routed and shared feed-forward, where the layer has them
};

struct OperandPlan {
  std::vector<LayerOperands> layers;  // num_layers
  std::vector<LayerOperands> mtp;     // num_mtp_layers
};

// `cache`: of any layer; `num_local_experts`: routed experts of this rank.
OperandPlan plan_operands(const Config& config, const ModelWeights& weights, const Ops& ops, const KvView& cache,
                          int64_t num_local_experts);

}  // namespace moectl
