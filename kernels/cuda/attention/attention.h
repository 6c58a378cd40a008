// Launchers of the attention kernels: MLA, absorbed (mla/mla_attention.cu), and GQA (gqa/gqa_attention.cu). Views point
// to device memory; a call returns before its kernel is done, allocates nothing and may be captured in a CUDA graph.
#pragma once

#include "kernels/ops.h"

namespace moectl::cuda {

// Device memory for the attention kernels of one stream; between two calls only the contents of `counters` matter.
struct AttentionScratch {
  void* data = nullptr;  // 256-byte aligned
  int64_t num_bytes = 0;
  // Zeros before the first call; every kernel leaves zeros. [attention_counters(num_tokens, num_heads)]
  int32_t* counters = nullptr;
  int64_t num_counters = 0;
  // Batch invariance: a row's bits depend on nothing but the row and its own sequence, so rows are never split.
  bool deterministic = false;
  bool portable = false;  // the portable kernel, whatever the device
};

// For steps of up to `max_tokens` rows of `num_heads` heads with `value_size` output values per head, of MLA or GQA.
// With less scratch the portable kernel runs.
int64_t attention_scratch_bytes(int64_t max_tokens, int64_t num_heads, int64_t value_size);
int64_t attention_counters(int64_t max_tokens, int64_t num_heads);

// Rows of one sequence are adjacent in a step, at ascending positions (GQA takes runs of consecutive ones as tiles).
// Throw Error{kInternal} for shapes that do not fit each other, Error{kUnavailable} when a launch fails.
void mla_attention(const MlaAttentionArgs& args, const AttentionScratch& scratch, Stream stream);
void gqa_attention(const GqaAttentionArgs& args, const AttentionScratch& scratch, Stream stream);

}  // namespace moectl::cuda
