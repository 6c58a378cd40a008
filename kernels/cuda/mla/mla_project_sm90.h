// The products per head of absorbed MLA on Hopper at DeepSeek's sizes (128 inputs per query head, a latent dimension of
// 512), f32 on the model's side and bf16 on the latent side. Launchers of kernels/cuda/mla/mla_project_sm90.cu.
#pragma once

#include "kernels/cuda/gemm/fp8_gemm.h"
#include "kernels/cuda/gemm/weight.h"

namespace moectl::cuda {

// Row (token t, head h) of x begins at x + t * x_row + h * x_head, in elements, and out's likewise; all 16-byte
// aligned.
struct MlaProject {
  Matrix w;  // one batch entry per head: FP8 with block scales, or bf16
  const void* x = nullptr;
  int64_t x_row = 0, x_head = 0;
  void* out = nullptr;
  int64_t out_row = 0, out_head = 0;
  int64_t num_tokens = 0, num_heads = 0;
};

bool mla_project_in_fits(const Matrix& w);
bool mla_project_out_fits(const Matrix& w);

// x f32, out bf16. Each head's k inputs are followed by rope_dim more, which are rotated (RopeArgs) to after its n
// outputs.
struct MlaRotation {
  const float* cos_sin = nullptr;  // [num_tokens, rope_dim]
  int64_t rope_dim = 0;
  bool interleaved = false;
};
void mla_project_in(const MlaProject& p, const MlaRotation& rotation, Stream stream);

// x bf16, p.out f32 [num_tokens, num_heads, n] or null; bf16, fp8: the same rows [num_tokens, num_heads * n], or null.
void mla_project_out(const MlaProject& p, void* bf16, const Fp8Rows& fp8, Stream stream);

// mla_query and mla_output by these, with compressed KV in bf16.
void mla_query_bf16(const MlaQueryArgs& args, Stream stream);
void mla_output_bf16(const MlaOutputArgs& args, Stream stream);

}  // namespace moectl::cuda
