// Rotation of one vector in pairs (2i, 2i + 1) by the row's cosines and sines (RopeTableArgs).
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

#include "kernels/cpu/path_end.h"
