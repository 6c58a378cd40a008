// Expanded MLA of a prefill chunk on Hopper (mla_prefill_sm90.cu).
#pragma once

#include "kernels/ops.h"

namespace moectl::cuda {

// Whether it supports these sizes and dtypes.
bool mla_prefill_sm90_fits(const ScratchShape& shape);  // sizes alone
bool mla_prefill_sm90_fits(const MlaPrefillArgs& args);
// Whether a chunk is so long that expanding keys and values of all its context costs less than it saves.
bool mla_prefill_sm90_pays(int64_t num_tokens, int64_t num_heads, int64_t context);

// Its scratch memory, for chunks of up to max_tokens; contents do not matter between two calls.
int64_t mla_prefill_sm90_scratch_bytes(int64_t max_tokens, int64_t num_heads);
void mla_prefill_sm90(const MlaPrefillArgs& args, void* scratch, Stream stream);

}  // namespace moectl::cuda
