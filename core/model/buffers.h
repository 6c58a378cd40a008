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

// Memory for rows of one activation in several dtypes. Each dtype has its own place in it, whatever the number of rows:
// peers may know the addresses.
class OperandBuffer {
 public:
  // [max_rows, row_size] in each dtype of the set. `alternatives`: at a time in f32 or in the others, which share
  // memory.
  struct Shape {
    int64_t max_rows = 0, row_size = 0;
    DTypeSet dtypes;
    bool alternatives = false;
  };
  static int64_t num_bytes(const Shape& shape) { return layout(shape).num_bytes; }
  void set_memory(Buffer memory, const Shape& shape);
  // [n, row_size], n * row_size at most as many as in the shape. Throws Error{kInternal} where they do not fit.
  Operands rows(int64_t n, int64_t row_size, DTypeSet dtypes) const;

 private:
  struct Layout {
    int64_t offset[3] = {}, capacity[3] = {};  // of f32, bf16, f8_e4m3
    int64_t num_bytes = 0;
  };
  static Layout layout(const Shape& shape);
  Buffer memory_;
  Layout layout_;
};

// A View is cut to the rows of the step with first(), an OperandBuffer with rows(). Heads and intermediate sizes are
// the rank's (LocalDims).
struct Buffers {
  // `expert_rows`: the most rows that the rank's experts get at a time.
  Buffers(const Config& config, const LocalDims& dims, const ModelLimits& limits, int64_t expert_rows, Ops& ops);
  static int64_t num_bytes(const Config& config, const LocalDims& dims, const ModelLimits& limits, int64_t expert_rows,
                           const Capabilities& capabilities);

  View<float> cos_sin;          // [max_tokens, rope_dim]
  View<float> residual, delta;  // [max_tokens, hidden_size]; delta has TensorParallel::padded_rows
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
  View<float> k, v;         // [max_tokens, num_kv_heads, head_dim]
  View<float> square_sums;  // [max_tokens]: of norms over the heads of several ranks
  // Feed-forward
  OperandBuffer mlp_hidden;     // dense, [max_tokens, intermediate], or routed experts, [expert_rows, moe_intermediate]
  OperandBuffer shared_hidden;  // [max_tokens, shared_intermediate_size]
  View<float> gate_logits;      // [max_tokens, num_experts]
  View<int32_t> expert_idx;     // [max_tokens, top_k]
  View<float> expert_weight;    // [max_tokens, top_k]
  OperandBuffer routed;         // [max_share, hidden_size]: TensorParallel::share of the tokens, normed
  View<float> shared;           // [max_tokens, hidden_size], TensorParallel::padded_rows of them
  View<float> shared_gate;      // [max_tokens, 1]
  OperandBuffer logits_hidden;  // [max_logits, hidden_size]
  View<float> logits_parts;     // [tp_size, max_logits * part of the vocabulary]; a rank alone: empty
  View<float> logits;           // [max_logits, vocab_size]
  View<int32_t> sampled;        // [max_logits]: tokens chosen from the logits, for the next step

 private:
  Buffers() = default;
  // make(view, dims) or make(operand buffer, shape) for each of the members above.
  void visit(const Config& config, const LocalDims& dims, const ModelLimits& limits, int64_t expert_rows,
             const Capabilities& capabilities, auto&& make);
  std::vector<Buffer> storage_;
};

}  // namespace moectl
