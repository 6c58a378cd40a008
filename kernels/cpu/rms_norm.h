// One row of RMSNorm: out = x / sqrt(mean(x^2) + eps) * weight; weight null: ones. Also used by mla_cache_write on the
// latent.
#pragma once

#include <cmath>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/simd.h"

#include "kernels/cpu/path_begin.h"

inline void rms_norm_row(const float* x, const float* weight, int64_t size, float eps, float* out) {
  float inv = 1.0f / std::sqrt(dot(x, x, size) / float(size) + eps);
  if (!weight)
    for (int64_t i = 0; i < size; ++i) out[i] = x[i] * inv;
  else
    for (int64_t i = 0; i < size; ++i) out[i] = x[i] * inv * weight[i];
}

#include "kernels/cpu/path_end.h"
