// Rotation of one vector by the row's cosines and sines (RopeTableArgs), in pairs (2i, 2i + 1) or (i, i + dim / 2).
#pragma once

#include <cstdint>

#include "kernels/cpu/path_begin.h"

inline void rotate_pairs(const float* x, const float* cos_sin, int64_t dim, float* out) {
  for (int64_t i = 0; i < dim / 2; ++i) {
    float cos = cos_sin[i], sin = cos_sin[dim / 2 + i], a = x[2 * i], b = x[2 * i + 1];
    out[2 * i] = a * cos - b * sin;
    out[2 * i + 1] = b * cos + a * sin;
  }
}

inline void rotate_halves(const float* x, const float* cos_sin, int64_t dim, float* out) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    float cos = cos_sin[i], sin = cos_sin[half + i], a = x[i], b = x[half + i];
    out[i] = a * cos - b * sin;
    out[half + i] = b * cos + a * sin;
  }
}

inline void rotate(const float* x, const float* cos_sin, int64_t dim, bool interleaved, float* out) {
  if (interleaved)
    rotate_pairs(x, cos_sin, dim, out);
  else
    rotate_halves(x, cos_sin, dim, out);
}

#include "kernels/cpu/path_end.h"
