#include "kernels/cpu/rope.h"

#include <cmath>

#include "kernels/cpu/cpu_ops.h"

#include "kernels/cpu/path_begin.h"

void CpuOps::rope_table(const RopeTableArgs& a, Stream) {
  const int64_t half = a.inv_freq.dim(0);
  for (int64_t t = 0; t < a.positions.dim(0); ++t) {
    float* row = a.cos_sin.row(t);
    for (int64_t i = 0; i < half; ++i) {
      // The angle is rounded to f32 as in the reference implementation; cosine and sine of it are then exact to f32.
      double angle = float(a.positions(t)) * a.inv_freq(i);
      row[i] = float(std::cos(angle)) * a.factor;
      row[half + i] = float(std::sin(angle)) * a.factor;
    }
  }
}

void CpuOps::rope(const RopeArgs& a, Stream) {
  const int64_t num_heads = a.x.dim(1), head_dim = a.x.dim(2), rope_dim = a.cos_sin.row_size();
  for (int64_t t = 0; t < a.x.dim(0); ++t) {
    const float* cos_sin = a.cos_sin.row(t);
    for (int64_t h = 0; h < num_heads; ++h) {
      float* x = a.x.row(t) + h * head_dim;
      rotate(x, cos_sin, rope_dim, a.interleaved, x);
    }
  }
}

#include "kernels/cpu/path_end.h"
