#include "kernels/cpu/rms_norm.h"

#include "kernels/cpu/cpu_ops.h"

#include "kernels/cpu/path_begin.h"

void CpuOps::rms_norm(const RmsNormArgs& a, Stream) {
  const int64_t size = a.residual.row_size();
  pool_.parallel_for(a.residual.dim(0), kMinWorkPerThread / (size + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* x = a.residual.row(row);
      if (a.delta) {
        const float* delta = a.delta.row(row);
        for (int64_t i = 0; i < size; ++i) x[i] = x[i] + delta[i];
      }
      rms_norm_row(x, a.weight.data, size, a.eps, a.out.row(row));
    }
  });
}

#include "kernels/cpu/path_end.h"
