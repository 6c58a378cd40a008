// Buffers: the activations of one rank, allocated once for the largest batch.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "core/model/config.h"
#include "core/model/model.h"
#include "kernels/ops.h"

namespace moectl {

// Memory for rows of one activation in several dtypes.
class OperandBuffer {
 public:
  // Bytes of [rows, row_size] in each dtype of the set, side by side.
  static int64_t num_bytes(int64_t rows, int64_t row_size, DTypeSet dtypes);
  // Throws Error{kInternal} where the memory does not hold them.
  Operands rows(int64_t n, int64_t row_size, DTypeSet dtypes) const;
  void set_memory(Buffer memory, int64_t num_bytes) { memory_ = std::move(memory), num_bytes_ = num_bytes; }

 private:
  Buffer memory_;
  int64_t num_bytes_ = 0;
};

// A View is cut to the rows of the step with first(), an OperandBuffer with rows().
struct Buffers {
  // `expert_rows`: the most rows that the rank's experts get at a time.
  Buffers(const Config& config, const ModelLimits& limits, int64_t expert_rows, Ops& ops);
  static int64_t num_bytes(const Config& config, const ModelLimits& limits, int64_t expert_rows,
                           const Capabilities& capabilities);

  View<float> cos_sin;          // [max_tokens, rope_dim]
  View<float> residual, delta;  // [max_tokens, hidden_size]
  OperandBuffer normed;         // [max_tokens, hidden_size]
  OperandBuffer hidden;         // [max_tokens, hidden_size]: the main model's final-normed states, f32 among them
  View<float> q;                // [max_tokens, num_heads, qk_head_dim]
  OperandBuffer heads;          // [max_tokens, num_heads * v_head_dim], f32 among them
  // MLA
  View<float> q_a;           // [max_tokens, q_lora_rank]
  OperandBuffer q_a_normed;  // [max_tokens, q_lora_rank]
  View<float> kv_a;          // [max_tokens, kv_lora_rank + rope_dim]
  OperandBuffer q_latent,
      latent;  // [max_tokens, num_heads * (kv_lora_rank + rope_dim)], [.., num_heads * kv_lora_rank]
  // GQA
  View<float> k, v;  // [max_tokens, num_kv_heads, head_dim]
  // Feed-forward
  OperandBuffer mlp_hidden;     // dense, [max_tokens, intermediate], or routed experts, [expert_rows, moe_intermediate]
  OperandBuffer shared_hidden;  // [max_tokens, shared_intermediate_size]
  View<float> gate_logits;      // [max_tokens, num_experts]
  View<int32_t> expert_idx;     // [max_tokens, top_k]
  View<float> expert_weight;    // [max_tokens, top_k]
  View<float> shared;           // [max_tokens, hidden_size]
  View<float> shared_gate;      // [max_tokens, 1]
  OperandBuffer logits_hidden;  // [max_logits, hidden_size]
  View<float> logits;           // [max_logits, vocab_size]
  View<int32_t> sampled;        // [max_logits]: tokens chosen from the logits, for the next step

 private:
  Buffers() = default;
  // make(view, dims) or make(operand buffer, bytes) for each of the members above.
  void visit(const Config& config, const ModelLimits& limits, int64_t expert_rows, const Capabilities& capabilities,
             auto&& make);
  std::vector<Buffer> storage_;
};

}  // namespace moectl
