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

#include "kernels/cpu/path_end.h"
