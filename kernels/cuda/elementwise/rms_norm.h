// Launcher of kernels/cuda/elementwise/rms_norm.cu. Views point to device memory; the call returns before the kernel is
// done.
#pragma once

#include "kernels/ops.h"

namespace moectl::cuda {

// Throws Error{kInternal} for shapes that do not fit each other, Error{kUnavailable} when the launch fails.
void rms_norm(const RmsNormArgs& args, Stream stream);

}  // namespace moectl::cuda
