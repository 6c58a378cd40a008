// FP8 matrix products with block scales on Hopper (as in DeepSeek-V3): out = A W^T, A e4m3 with one f32 scale per row
// and 128 columns, W e4m3 with one f32 scale per block of 128 x 128; the tensor cores sum 128 products, these sums are
// added in f32. Dense, and grouped: the rows of expert e are expert_offsets[e] .. expert_offsets[e + 1] - 1 of A and
// out, read on the device. Launchers of kernels/cuda/gemm/fp8_gemm_sm90.cu; they encode tensor maps and launch one
// kernel, may be captured in a CUDA graph, and need no scratch.
#pragma once

#include <cstdint>

#include "kernels/cuda/gemm/gemm_config.h"
#include "kernels/ops.h"

namespace moectl::cuda {

// Both operands lie k-block by k-block, so that a tile of 128 columns is contiguous in memory: element (i, k) is byte
// (k / 128 * num_rows + i) * 128 + k % 128. k is a multiple of 128 (pad with zeros).

// Activations [rows, k]: an Operand of f8_e4m3, for kernels.
struct Fp8Rows {
  uint8_t* data = nullptr;  // e4m3 [k / 128, rows, 128], 128-byte aligned
  float* scales = nullptr;  // [k / 128, scale_stride], 16-byte aligned
  int64_t rows = 0, k = 0;
  int64_t scale_stride = 0;  // rows rounded up to a multiple of 4
};
int64_t fp8_rows_bytes(int64_t rows, int64_t k);
// In `memory` (256-byte aligned) of at least fp8_rows_bytes.
Fp8Rows fp8_rows_at(void* memory, int64_t rows, int64_t k);
Fp8Rows fp8_rows(const Operand& operand);  // no data: no data

// `batch` matrices [n, k]. n is a multiple of 8.
struct Fp8Weight {
  const uint8_t* data = nullptr;  // e4m3 [batch, k / 128, n, 128], 128-byte aligned
  const float* scales =
      nullptr;  // [batch, k / 128, scale_stride], 16-byte aligned; column b is the block of rows 128 b ..
  int64_t batch = 0, n = 0, k = 0;
  int64_t scale_stride = 0;  // ceil(n / 128) rounded up to a multiple of 4
};
Fp8Weight fp8_weight_at(const void* data, const void* scales, int64_t batch, int64_t n, int64_t k);

struct Fp8GemmArgs {
  Fp8Rows a;                                // [max_rows, k]
  Fp8Weight w;                              // [n, k]
  Fp8Weight w_up = {};                      // given: out = silu(A w^T) * (A w_up^T), the gated half of a feed-forward
  const int32_t* expert_offsets = nullptr;  // device, [num_experts + 1]; null: dense, one expert of a.rows rows
  bool offsets_settled = false;             // they may be read while the kernel launched before this one runs
  int64_t num_experts = 1;                  // at most kMaxFp8Experts; empty ones cost nothing
  int64_t expert_begin = 0;                 // batch index in w of expert 0
  void* out = nullptr;           // [max_rows, n] row-major, 16-byte aligned; rows of no expert are not written
  DType out_type = DType::kF32;  // kF32 or kBF16
  // Batch invariance: the bits of a row depend on nothing but the row and the weight (no split-K by the number of
  // rows).
  bool deterministic = false;
};
constexpr int64_t kMaxFp8Experts = kMaxGemmExperts;

// Throws Error{kInternal} for shapes that do not fit, Error{kUnavailable} when the launch fails.
void fp8_gemm(const Fp8GemmArgs& args, Stream stream);

// The tiling that fp8_gemm chooses, and the product with another one.
GemmConfig fp8_gemm_config(const Fp8GemmArgs& args);
void fp8_gemm(const Fp8GemmArgs& args, const GemmConfig& config, Stream stream);

}  // namespace moectl::cuda
