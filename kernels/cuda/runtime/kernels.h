// Launchers of the portable CUDA kernels, one per operation of kernels/ops.h, each in the file of its name. Views point
// to device memory; a call returns before the kernel is done. They throw Error{kInternal} for shapes that do not fit
// each other and Error{kUnavailable} when a launch fails. tensor_cores: operands may be rounded to bf16 (mma_gemm),
// where the weight fits.
#pragma once

#include "kernels/cuda/elementwise/rms_norm.h"
#include "kernels/cuda/gemm/plain_gemm.h"
#include "kernels/ops.h"

namespace moectl::cuda {

void embed(const EmbedArgs& args, Stream stream);  // a token id outside of the table: zeros
void gather(const GatherArgs& args, Stream stream);
void concat_columns(const ConcatColumnsArgs& args, Stream stream);
void linear(const LinearArgs& args, Numerics numerics, Stream stream);
void rope_table(const RopeTableArgs& args, Stream stream);
void rope(const RopeArgs& args, Stream stream);
void gqa_cache_write(const GqaCacheWriteArgs& args, Stream stream);
void mla_query(const MlaQueryArgs& args, Numerics numerics, Stream stream);
void mla_cache_write(const MlaCacheWriteArgs& args, Stream stream);
void mla_output(const MlaOutputArgs& args, Numerics numerics, Stream stream);
void moe_gate(const MoeGateArgs& args, Stream stream);
// `counts` [num_local_experts]: scratch.
void moe_number(const MoePermuteArgs& args, int32_t* counts, Stream stream);
// The second half of moe_permute: row_of holds numbers among the choices of the same expert.
void moe_copy_rows(const MoePermuteArgs& args, Stream stream);
inline void moe_permute(const MoePermuteArgs& args, int32_t* counts, Stream stream) {
  moe_number(args, counts, stream);
  moe_copy_rows(args, stream);
}
void moe_experts(const MoeExpertsArgs& args, Numerics numerics, Stream stream);
void moe_locate(const MoeLocateArgs& args, Stream stream);
void moe_combine(const MoeCombineArgs& args, Stream stream);

}  // namespace moectl::cuda
