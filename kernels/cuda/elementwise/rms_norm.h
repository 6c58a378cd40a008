// Launchers of kernels/cuda/elementwise/rms_norm.cu. Views point to device memory; a call returns before the kernel is
// done.
#pragma once

#include "kernels/ops.h"

namespace moectl::cuda {

// They throw Error{kInternal} for shapes that do not fit each other, Error{kUnavailable} when a launch fails.
void rms_norm(const RmsNormArgs& args, Stream stream);
void sum_squares(const SumSquaresArgs& args, Stream stream);

}  // namespace moectl::cuda
