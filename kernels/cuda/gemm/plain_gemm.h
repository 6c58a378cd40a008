// plain_gemm: rows of f32 activations times a Matrix of any dtype, f32 accumulation; the portable matrix product behind
// linear, mla_query, mla_output and moe_experts, and the reference of the tensor-core kernels.
#pragma once

#include "kernels/cuda/gemm/weight.h"

namespace moectl::cuda {

struct PlainGemm {
  enum class Epilogue {
    kStore,  // out = value
    kGate,   // out = gate factor of the activation
    kUp,     // out = out * up factor of the activation
  };

  Matrix w;
  int64_t w_begin = 0, num_batches = 1;  // batch i multiplies entry w_begin + i of w
  const float* x = nullptr;              // row r of batch i: x + i * x_batch + r * x_row, k floats
  int64_t x_row = 0, x_batch = 0;
  float* out = nullptr;  // likewise, n floats
  int64_t out_row = 0, out_batch = 0;
  // Null: every batch has num_rows rows. Else batch i has rows offsets[i] .. offsets[i + 1], at most num_rows in all,
  // and x_batch and out_batch are 0.
  const int32_t* offsets = nullptr;
  int64_t num_rows = 0;

  // mma_gemm: batch-invariant, a row's bits depend on nothing but the row and w (plain_gemm always is).
  bool deterministic = false;

  Epilogue epilogue = Epilogue::kStore;
  Activation activation = {};
  const float* row_scale = nullptr;  // [rows]: value = value * row_scale[row]; null: ones
  const float* bias = nullptr;       // [entries of w, n]: value = value + bias; null: none
};

void plain_gemm(const PlainGemm& p, Stream stream);

// The same on tensor cores, with x and the scaled elements of w rounded to bf16. Not every w fits.
bool mma_gemm_fits(const Matrix& w);
void mma_gemm(const PlainGemm& p, Stream stream);

// On tensor cores where `tensor_cores` is set and w fits.
struct Numerics {
  bool tensor_cores = false, deterministic = false;
};
void any_gemm(PlainGemm p, Numerics numerics, Stream stream);

// out [rows, n] += bias [n].
void add_bias(float* out, int64_t rows, int64_t n, const float* bias, Stream stream);

}  // namespace moectl::cuda
