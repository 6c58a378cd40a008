// The Hopper path of gqa_attention (gqa_attention_sm90.cu).
#pragma once

#include "kernels/cuda/attention/attention.h"

namespace moectl::cuda {

// What it supports: heads of 64, 128 or 256, at most 16 query heads per KV head, pages of 64, a bf16 cache.
bool gqa_attention_sm90_fits(const GqaAttentionArgs& args, const AttentionScratch& scratch);
void gqa_attention_sm90(const GqaAttentionArgs& args, const AttentionScratch& scratch, Stream stream);
int64_t gqa_attention_sm90_scratch_bytes();

}  // namespace moectl::cuda
