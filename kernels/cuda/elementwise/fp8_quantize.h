// FP8 activations: rows of f32 or bf16 to e4m3 with one f32 scale per 128 columns, in the layout of Fp8Rows
// (kernels/cuda/gemm/fp8_gemm.h). Launchers of kernels/cuda/elementwise/fp8_quantize.cu.
//
// For a row's columns 128 b .. 128 b + 127: amax = max |x|; scale = amax / 448 (448 is e4m3's largest number), 1 where
// amax < 1e-30; number = e4m3(x / scale), computed as x * (1 / scale), rounded to nearest even, saturating. NaN stays
// NaN.
#pragma once

#include "kernels/cuda/gemm/fp8_gemm.h"

namespace moectl::cuda {

// num_rows: null, or on the device: rows from *num_rows on are skipped (the end of expert_offsets).

// x [rows, k], f32 or bf16.
struct Fp8QuantizeArgs {
  const void* x = nullptr;
  DType type = DType::kF32;
  Fp8Rows out;
  const int32_t* num_rows = nullptr;
};
void fp8_quantize(const Fp8QuantizeArgs& args, Stream stream);

}  // namespace moectl::cuda
