#include "kernels/cpu/rms_norm.h"

#include "kernels/cpu/cpu_ops.h"

#include "kernels/cpu/path_begin.h"

void CpuOps::rms_norm(const RmsNormArgs& a, Stream) {
  const int64_t size = a.x.row_size();
  const View<float> out = a.out.get(DType::kF32).f32();
  pool_.parallel_for(a.x.dim(0), kMinWorkPerThread / (size + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* x = a.x.row(row);
      if (a.residual) {
        float* residual = a.residual.row(row);
        for (int64_t i = 0; i < size; ++i) residual[i] = residual[i] + x[i];
        x = residual;
      }
      if (a.square_sums)
        scale_by_rms(x, a.weight.data, size, a.square_sums(row), a.whole_size, a.eps, out.row(row));
      else
        rms_norm_row(x, a.weight.data, size, a.eps, out.row(row));
    }
  });
}

void CpuOps::sum_squares(const SumSquaresArgs& a, Stream) {
  const int64_t size = a.x.row_size();
  pool_.parallel_for(a.x.dim(0), kMinWorkPerThread / (size + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) a.out(row) = dot(a.x.row(row), a.x.row(row), size);
  });
}

#include "kernels/cpu/path_end.h"
