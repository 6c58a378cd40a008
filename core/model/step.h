// What the parts of the decoder share during one step: the batch on the device, and the buffers every layer reuses.
#pragma once

#include <vector>

#include "core/comm/expert_exchange.h"
#include "core/model/model.h"
#include "core/model/step_inputs.h"
#include "core/model/weights.h"

namespace moectl {

// Activations of one rank, allocated once for the largest batch. A View is cut to the rows of the step with first().
struct Buffers {
  // `expert_rows`: the most rows that the rank's experts may get in a step.
  Buffers(const Config& config, const ModelLimits& limits, int64_t expert_rows, Ops& ops);
  static int64_t num_bytes(const Config& config, const ModelLimits& limits, int64_t expert_rows);

  View<float> cos_sin;                  // [max_tokens, rope_dim]
  View<float> residual, normed, delta;  // [max_tokens, hidden_size]
  View<float> hidden;                   // [max_tokens, hidden_size]: the main model's final-normed states
  View<float> q;                        // [max_tokens, num_heads, qk_head_dim]
  View<float> heads;                    // [max_tokens, num_heads, v_head_dim]
  // MLA
  View<float> q_a;       // [max_tokens, q_lora_rank]
  View<float> kv_a;      // [max_tokens, kv_lora_rank + rope_dim]
  View<float> q_latent;  // [max_tokens, num_heads, kv_lora_rank + rope_dim]
  View<float> latent;    // [max_tokens, num_heads, kv_lora_rank]
  // GQA
  View<float> k, v;  // [max_tokens, num_kv_heads, head_dim]
  // Feed-forward
  View<float> mlp_hidden;     // [max rows of dense or experts * intermediate]
  View<float> shared_hidden;  // [max_tokens, shared_intermediate_size]
  View<float> gate_logits;    // [max_tokens, num_experts]
  View<int32_t> expert_idx;   // [max_tokens, top_k]
  View<float> expert_weight;  // [max_tokens, top_k]
  View<float> shared;         // [max_tokens, hidden_size]
  View<float> shared_gate;    // [max_tokens, 1]
  View<float> logits_hidden;  // [max_logits, hidden_size]
  View<float> logits;         // [max_logits, vocab_size]
  View<int32_t> sampled;      // [max_logits]: tokens chosen from the logits, for the next step

 private:
  Buffers() = default;
  // make(view, dims) for each of the views above.
  void visit(const Config& config, const ModelLimits& limits, int64_t expert_rows, auto&& make);
  std::vector<Buffer> storage_;
};

struct Step {
  const Config& config;
  Ops& ops;
  Buffers& buffers;
  KvCache& cache;
  ExpertExchange* exchange;  // null: no MoE layers
  Stream stream;
  const StepInputs& in;
  int64_t num_tokens = 0;  // rows, padding included
};

// The part of an attention layer that writes layer `layer_idx` of the cache, from x [num_tokens, hidden_size].
void mla_cache(Step& step, const MlaWeights& w, int layer_idx, View<const float> x);
void gqa_cache(Step& step, const GqaWeights& w, int layer_idx, View<const float> x);
// normed [num_tokens, hidden_size] -> delta. Reads and writes layer `layer_idx` of the cache.
void mla_layer(Step& step, const MlaWeights& w, int layer_idx, View<const float> x, View<float> out);
void gqa_layer(Step& step, const GqaWeights& w, int layer_idx, View<const float> x, View<float> out);
// Feed-forward of one layer, dense or MoE. Ranks of a group call it together for MoE layers.
void feed_forward(Step& step, const LayerWeights& w, FeedForwardKind kind, View<const float> x, View<float> out);
// residual += delta (where given), then one decoder layer; leaves the layer's last contribution in buffers.delta, not
// yet added.
void decoder_layer(Step& step, const LayerWeights& w, int layer_idx, View<const float> delta);

}  // namespace moectl
