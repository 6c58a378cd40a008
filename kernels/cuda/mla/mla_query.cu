// The two products per head of absorbed MLA: queries into the latent space (W_UK), followed by their rotated part, and
// attention outputs from the latent space to values (W_UV). Each head is a batch entry of the portable product.
// (mla_project_sm90.cu: DeepSeek's sizes on Hopper, with bf16 on the latent side.)
#include "kernels/cuda/elementwise/rope.cuh"
#include "kernels/cuda/gemm/plain_gemm.h"
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256;

// q [rows, nope + rope_dim], out [rows, rank + rope_dim]; a row is a (token, head). One thread per pair.
__global__ void mla_rotate_query(const float* q, const float* cos_sin, int64_t num_pairs, int num_heads, int nope,
                                 int rank, int rope_dim, bool interleaved, float* out) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= num_pairs) return;
  const int half = rope_dim / 2, i = int(index % half);
  const int64_t row = index / half;
  const float* in = q + row * (nope + rope_dim) + nope;
  float* to = out + row * (rank + rope_dim) + rank;
  const RopePair pair = rope_pair(i, rope_dim, interleaved);
  const float2 r = rotate(in[pair.a], in[pair.b], cos_sin + row / num_heads * rope_dim, i, rope_dim);
  to[pair.a] = r.x;
  to[pair.b] = r.y;
}

}  // namespace kernel

void mla_query(const MlaQueryArgs& a, Numerics numerics, Stream stream) {
  const Matrix& w = matrix_of(a.w_uk);
  const int64_t num_tokens = a.q.dim(0), num_heads = a.q.dim(1), head_dim = a.q.dim(2);
  const int64_t nope = w.k, rank = w.n, rope_dim = head_dim - nope;
  CHECK(a.out.dtype == DType::kF32, "mla_query: results of {}", dtype_name(a.out.dtype));
  CHECK(a.w_uk.batch == num_heads && a.cos_sin.row_size() == rope_dim && a.out.dim(2) == rank + rope_dim,
        "mla_query: {} heads of {}, a weight of {} x [{}, {}], {} rotated, rows of {}", num_heads, head_dim,
        a.w_uk.batch, rank, nope, a.cos_sin.row_size(), a.out.dim(2));
  any_gemm({.w = w,
            .num_batches = num_heads,
            .x = a.q.data,
            .x_row = num_heads * head_dim,
            .x_batch = head_dim,
            .out = static_cast<float*>(a.out.data),
            .out_row = num_heads * (rank + rope_dim),
            .out_batch = rank + rope_dim,
            .num_rows = num_tokens},
           numerics, stream);
  const int64_t num_pairs = num_tokens * num_heads * (rope_dim / 2);
  if (num_pairs == 0) return;
  kernel::mla_rotate_query<<<blocks_for(num_pairs, kernel::kThreads), kernel::kThreads, 0, handle(stream)>>>(
      a.q.data, a.cos_sin.data, num_pairs, int(num_heads), int(nope), int(rank), int(rope_dim), a.interleaved,
      static_cast<float*>(a.out.data));
  CUDA_CHECK(cudaGetLastError());
}

void mla_output(const MlaOutputArgs& a, Numerics numerics, Stream stream) {
  const Matrix& w = matrix_of(a.w_uv);
  const int64_t num_tokens = a.latent.dim(0), num_heads = a.latent.dim(1), rank = a.latent.dim(2);
  CHECK(a.latent.dtype == DType::kF32, "mla_output: latents of {}", dtype_name(a.latent.dtype));
  CHECK(a.w_uv.batch == num_heads && w.k == rank && a.out.dim(2) == w.n,
        "mla_output: {} heads of {}, a weight of {} x [{}, {}], values of {}", num_heads, rank, a.w_uv.batch, w.n, w.k,
        a.out.dim(2));
  any_gemm({.w = w,
            .num_batches = num_heads,
            .x = static_cast<const float*>(a.latent.data),
            .x_row = num_heads * rank,
            .x_batch = rank,
            .out = a.out.get(DType::kF32).f32().data,
            .out_row = num_heads * w.n,
            .out_batch = w.n,
            .num_rows = num_tokens},
           numerics, stream);
}

}  // namespace moectl::cuda
