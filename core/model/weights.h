// ModelWeights: the tensors of a checkpoint, or one rank's shard of them, packed for the backend. Plain data, read-only
// after loading: CPU ranks share one object with all experts. Sizes below are the shard's.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/model/config.h"
#include "core/model/safetensors.h"
#include "core/model/shard.h"
#include "kernels/ops.h"

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
  LocalDims dims;                    // of the shard that these are
  std::vector<int32_t> experts;      // logical expert of each batch entry of LayerWeights::experts
  std::vector<Buffer> vectors;       // what the views point into
  int64_t num_bytes = 0;             // as packed
};

// Bytes read so far and in total, of all shards together; `done` never falls and ends at `total`.
using LoadProgress = std::function<void(int64_t done, int64_t total)>;

// Packs the whole model on the calling thread. Throws Error{kResourceExhausted} before anything is allocated when
// memory does not suffice, Error{kBadData} that names the tensor otherwise.
std::shared_ptr<const ModelWeights> load_weights(const Config& config, const Checkpoint& checkpoint, Ops& ops,
                                                 const LoadProgress& progress = {});

// A rank's device and what it gets.
struct ShardTarget {
  Ops& ops;  // used on a loader thread until load_shards() returns
  Shard shard;
};
// Packs several shards at the same time, one thread per target. `progress` is called on these threads, one at a time.
// Throws as load_weights() does; the first failure ends the other threads.
std::vector<std::shared_ptr<const ModelWeights>> load_shards(const Config& config, const Checkpoint& checkpoint,
                                                             std::span<const ShardTarget> targets,
                                                             const LoadProgress& progress = {});

// Bytes of the checkpoint that a shard takes, each use of a tensor counted (tied embeddings twice), as stored.
int64_t shard_bytes(const Config& config, const Checkpoint& checkpoint, const Shard& shard);

}  // namespace moectl
