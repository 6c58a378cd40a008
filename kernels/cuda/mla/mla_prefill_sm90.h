// Expanded attention of a prompt's chunk on Hopper (mla_prefill_sm90.cu).
#pragma once

#include "kernels/ops.h"

namespace moectl::cuda {

// Whether sizes and formats are those it takes.
bool mla_prefill_sm90_fits(const ScratchShape& shape);  // sizes alone
bool mla_prefill_sm90_fits(const MlaPrefillArgs& args);
// Whether a chunk is so long that making keys and values of all its context costs less than it saves.
bool mla_prefill_sm90_pays(int64_t num_tokens, int64_t num_heads, int64_t context);

// Device memory that it works in, for chunks of up to max_tokens; contents matter to nobody between two calls.
int64_t mla_prefill_sm90_scratch_bytes(int64_t max_tokens, int64_t num_heads);
void mla_prefill_sm90(const MlaPrefillArgs& args, void* scratch, Stream stream);

}  // namespace moectl::cuda
