// Launchers of kernels/cuda/comm/expert_all_to_all.cu. They may be captured in a graph; a call returns before the
// kernel is done.
#pragma once

#include "kernels/expert_all_to_all.h"

namespace moectl::cuda {

// Stores the caller's tokens and waits for its peers'; numbers the rows of `args.permute` meanwhile (moe_number) if
// `number_rows`.
void all_to_all_dispatch(const DispatchArgs& args, bool number_rows, Stream stream);
bool can_number_rows(const DispatchArgs& args);
void all_to_all_combine(const CombineArgs& args, Stream stream);

}  // namespace moectl::cuda
