// BF16 matrix products on Hopper: out = A W^T, A bf16 [rows, k], W bf16 [n, k], sums in f32. Dense and grouped as in
// kernels/cuda/gemm/fp8_gemm.h, by the same kernel. Launchers of kernels/cuda/gemm/bf16_gemm_sm90.cu; no
// scratch.
#pragma once

#include <cstdint>

#include "kernels/cuda/gemm/gemm_config.h"
#include "kernels/ops.h"

namespace moectl::cuda {

// Row-major, 16-byte aligned, k a multiple of 64 (pad with zeros), n a multiple of 8.
struct Bf16GemmArgs {
  const void* a = nullptr;         // bf16 [max_rows, k]
  int64_t rows = 0, n = 0, k = 0;  // max_rows
  const void* w = nullptr;         // bf16 [batch, n, k]
  const void* w_up = nullptr;      // given: out = silu(A w^T) * (A w_up^T)
  int64_t batch = 1;
  const int32_t* expert_offsets = nullptr;  // device, [num_experts + 1]; null: dense
  bool offsets_settled = false;             // they may be read while the kernel launched before this one runs
  int64_t num_experts = 1;
  int64_t expert_begin = 0;
  void* out = nullptr;           // [max_rows, n]
  DType out_type = DType::kF32;  // kF32 or kBF16
  bool deterministic = false;
};

// Throws Error{kInternal} for shapes that do not fit, Error{kUnavailable} when the launch fails.
void bf16_gemm(const Bf16GemmArgs& args, Stream stream);

GemmConfig bf16_gemm_config(const Bf16GemmArgs& args);
void bf16_gemm(const Bf16GemmArgs& args, const GemmConfig& config, Stream stream);

}  // namespace moectl::cuda
