// One row of RMSNorm: out = x / sqrt(mean(x^2) + eps) * weight; weight null: ones. Also used by mla_cache_write on the
// latent.
#pragma once

#include <cmath>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/simd.h"

#include "kernels/cpu/path_begin.h"

// `squares`: the sum of the squares of `whole_size` values, of which x is a part or all.
inline void scale_by_rms(const float* x, const float* weight, int64_t size, float squares, int64_t whole_size,
                         float eps, float* out) {
  const float inv = 1.0f / std::sqrt(squares / float(whole_size) + eps);
  if (!weight)
    for (int64_t i = 0; i < size; ++i) out[i] = x[i] * inv;
  else
    for (int64_t i = 0; i < size; ++i) out[i] = x[i] * inv * weight[i];
}

inline void rms_norm_row(const float* x, const float* weight, int64_t size, float eps, float* out) {
  scale_by_rms(x, weight, size, dot(x, x, size), size, eps, out);
}

#include "kernels/cpu/path_end.h"
