// The Hopper path of mla_attention (mla_attention_sm90.cu).
#pragma once

#include "kernels/cuda/attention/attention.h"

namespace moectl::cuda {

// What it supports: rank 512 + rope 64, pages of 64, a bf16 cache.
bool mla_attention_sm90_fits(const MlaAttentionArgs& args, const AttentionScratch& scratch);
void mla_attention_sm90(const MlaAttentionArgs& args, const AttentionScratch& scratch, Stream stream);
int64_t mla_attention_sm90_scratch_bytes();

}  // namespace moectl::cuda
