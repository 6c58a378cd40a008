// Launchers of the attention kernels: MLA, absorbed (mla/mla_attention.cu), and GQA (gqa/gqa_attention.cu). Views point
// to device memory; a call returns before its kernel is done, allocates nothing and may be captured in a CUDA graph.
#pragma once

#include "kernels/ops.h"

namespace moectl::cuda {

// Device memory that the attention kernels of one stream share; its contents matter to nobody between two calls, but
// for `counters`.
struct AttentionScratch {
  void* data = nullptr;  // 256-byte aligned
  int64_t num_bytes = 0;
  // Zeros before the first call; every kernel leaves zeros. [attention_counters(num_tokens, num_heads)]
  int32_t* counters = nullptr;
  int64_t num_counters = 0;
  // A row's bits depend on nothing but the row and its own sequence: no split that depends on the rest of the batch.
  bool deterministic = false;
  bool plain = false;  // never the fast kernels; for tests and comparisons
};

// For steps of up to `max_tokens` rows of `num_heads` heads with `value_size` output values a head, of MLA or GQA. The
// fast kernels are left out (never wrong) where less scratch is given.
int64_t attention_scratch_bytes(int64_t max_tokens, int64_t num_heads, int64_t value_size);
int64_t attention_counters(int64_t max_tokens, int64_t num_heads);

// Rows of one sequence stand together in a step, at ascending positions (GQA takes runs of consecutive ones as tiles).
// Throw Error{kInternal} for shapes that do not fit each other, Error{kUnavailable} when a launch fails.
void mla_attention(const MlaAttentionArgs& args, const AttentionScratch& scratch, Stream stream);
void gqa_attention(const GqaAttentionArgs& args, const AttentionScratch& scratch, Stream stream);

}  // namespace moectl::cuda
