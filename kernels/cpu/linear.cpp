#include <algorithm>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/path_begin.h"

void CpuOps::linear(const LinearArgs& a, Stream) {
  const PackedMatrix& w = cpu::packed(a.weight).matrices[0];
  const View<float> rows = a.x.f32();
  const int64_t num_rows = rows.dim(0);
  CHECK(rows.row_size() == w.k && a.out.row_size() == w.n,
        "linear: x has {} columns and out {}, the weight is [{}, {}]", rows.row_size(), a.out.row_size(), w.n, w.k);
  const float* const* x = row_pointers(rows.data, num_rows, w.k);
  // Four tiles fill the widest block: chunks end between such groups.
  const int64_t groups = (w.num_tiles + 3) / 4, min_groups = (min_tiles_per_thread(w.k, num_rows) + 3) / 4;
  pool_.parallel_for(groups, min_groups, [&](int64_t begin, int64_t end) {
    gemm(w, begin * 4, std::min(end * 4, w.num_tiles), x, num_rows, [&](int64_t row, int64_t tile, F32x16 value) {
      store_tile(a.out.row(row), tile, w.n, a.bias ? value + tile_bias(a.bias.data, tile, w.n) : value);
    });
  });
}

#include "kernels/cpu/path_end.h"
