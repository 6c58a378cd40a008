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
};

// SwiGLU feed-forward; `batch` experts in each weight, 1 for a dense or shared one.
struct MlpWeights {
  Weight gate, up, down;
};

struct LayerWeights {
  View<const float> input_norm, post_attention_norm;
  MlaWeights attention;
  MlpWeights mlp;  // dense layers
  Weight gate;     // MoE layers: [num_experts, hidden]
  View<const float> gate_bias;
  MlpWeights experts, shared;
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
