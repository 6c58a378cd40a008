// The bf16 copy of activations that bf16_gemm reads. Launcher of kernels/cuda/elementwise/bf16_copy.cu.
#pragma once

#include "kernels/ops.h"

namespace moectl::cuda {

// x [rows, k] -> out bf16 [rows, padded_k], zeros behind k. num_rows: null, or on the device: rows from *num_rows on
// are left out (the end of expert_offsets).
void bf16_copy(const float* x, int64_t rows, int64_t k, void* out, int64_t padded_k, const int32_t* num_rows,
               Stream stream);

}  // namespace moectl::cuda
