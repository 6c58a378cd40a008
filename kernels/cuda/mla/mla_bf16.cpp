// mla_query and mla_output with compressed KV in bf16, by the Hopper projections (mla_project_sm90.h).
#include "core/base/check.h"
#include "kernels/cuda/mla/mla_project_sm90.h"

namespace moectl::cuda {

void mla_query_bf16(const MlaQueryArgs& a, Stream stream) {
  const Matrix& w = matrix_of(a.w_uk);
  const int64_t tokens = a.q.dim(0), heads = a.q.dim(1), head_dim = a.q.dim(2), rope_dim = head_dim - w.k;
  CHECK(a.w_uk.batch == heads && a.cos_sin.row_size() == rope_dim && a.out.dim(2) == w.n + rope_dim,
        "mla_query: {} heads of {}, a weight of {} x [{}, {}], {} rotated, rows of {}", heads, head_dim, a.w_uk.batch,
        w.n, w.k, a.cos_sin.row_size(), a.out.dim(2));
  mla_project_in({.w = w,
                  .x = a.q.data,
                  .x_row = heads * head_dim,
                  .x_head = head_dim,
                  .out = a.out.data,
                  .out_row = heads * a.out.dim(2),
                  .out_head = a.out.dim(2),
                  .num_tokens = tokens,
                  .num_heads = heads},
                 {a.cos_sin.data, rope_dim, a.interleaved}, stream);
}

void mla_output_bf16(const MlaOutputArgs& a, Stream stream) {
  const Matrix& w = matrix_of(a.w_uv);
  const int64_t tokens = a.latent.dim(0), heads = a.latent.dim(1), rank = a.latent.dim(2), size = heads * w.n;
  CHECK(a.w_uv.batch == heads && w.k == rank && a.out.size() == tokens * size,
        "mla_output: {} heads of {}, a weight of {} x [{}, {}], {} values for {} tokens", heads, rank, a.w_uv.batch,
        w.n, w.k, a.out.size(), tokens);
  mla_project_out({.w = w,
                   .x = a.latent.data,
                   .x_row = heads * rank,
                   .x_head = rank,
                   .out = a.out.f32.data,
                   .out_row = size,
                   .out_head = w.n,
                   .num_tokens = tokens,
                   .num_heads = heads},
                  a.out.bf16.data, fp8_rows(a.out.fp8), stream);
}

}  // namespace moectl::cuda
