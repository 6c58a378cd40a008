// ModelWeights: every tensor of a checkpoint, packed for the backend. Plain data, read-only after load_weights().
#pragma once

#include <vector>

#include "core/model/model.h"

namespace moectl {

struct MlaWeights {
  Weight q_a, q_b;  // [q_lora_rank, hidden], [heads * qk_head_dim, q_lora_rank]; q_a empty: q_b is q_proj [.., hidden]
  Weight kv_a;      // [kv_lora_rank + rope, hidden]
  Weight w_uk, w_uv;  // of kv_b_proj, by head: [kv_lora_rank, nope] (transposed), [v_head_dim, kv_lora_rank]
  Weight o;           // [hidden, heads * v_head_dim]
  View<const float> q_a_norm, kv_a_norm;
  View<const float> q_a_bias, kv_a_bias, o_bias;  // empty: none, as below
};

struct GqaWeights {
  Weight q, k, v, o;  // [heads * head_dim, hidden], [kv_heads * head_dim, hidden] twice, [hidden, heads * head_dim]
  View<const float> q_bias, k_bias, v_bias, o_bias;  // empty: none
  View<const float> q_norm, k_norm;                  // [head_dim], or of all heads: [heads * head_dim]
  View<const float> sinks;                           // [heads]
};

// Gated feed-forward; `batch` experts in each weight, 1 for a dense or shared one.
struct MlpWeights {
  Weight gate, up, down;
  View<const float> gate_bias, up_bias, down_bias;  // [batch, outputs]; empty: none
};

struct LayerWeights {
  View<const float> input_norm, post_attention_norm;
  MlaWeights mla;  // one of the two
  GqaWeights gqa;
  MlpWeights mlp;                                // dense layers
  Weight gate;                                   // MoE layers: the router, [num_experts, hidden]
  View<const float> gate_bias, correction_bias;  // [num_experts]; empty: none
  MlpWeights experts, shared;
  Weight shared_gate;  // [1, hidden]; empty: none
};

struct MtpWeights {
  Weight embed;  // empty: the main model's
  View<const float> enorm, hnorm, norm;
  Weight eh_proj_e, eh_proj_h;  // eh_proj by columns: the half for the embedding, the half for the hidden state
  LayerWeights layer;
  Weight head;  // empty: the main model's
};

struct ModelWeights {
  Weight embed, head;
  View<const float> norm;
  std::vector<LayerWeights> layers;  // num_layers
  std::vector<MtpWeights> mtp;       // num_mtp_layers
  std::vector<Buffer> vectors;       // what the views point into
  int64_t num_bytes = 0;
};

}  // namespace moectl
