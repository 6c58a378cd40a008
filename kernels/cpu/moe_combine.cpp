#include <cmath>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/path_begin.h"

void CpuOps::moe_combine(const MoeCombineArgs& a, Stream) {
  const int64_t top_k = a.expert_rows.dim(1), size = a.out.row_size();
  pool_.parallel_for(a.out.dim(0), kMinWorkPerThread / (size * (top_k + 1)) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* out = a.out.row(t);
      for (int64_t i = 0; i < size; ++i) out[i] = 0.0f;
      for (int64_t j = 0; j < top_k; ++j) {
        const auto* row = static_cast<const float*>(a.expert_rows(t, j));
        if (!row) continue;
        const float weight = a.expert_weight ? a.expert_weight(t, j) : 1.0f;
        for (int64_t i = 0; i < size; ++i) out[i] = out[i] + weight * row[i];
      }
      if (a.shared) {
        const float* shared = a.shared.row(t);
        const float gate = a.shared_gate ? 1.0f / (1.0f + std::exp(-a.shared_gate(t))) : 1.0f;
        for (int64_t i = 0; i < size; ++i) out[i] = out[i] + gate * shared[i];
      }
    }
  });
}

#include "kernels/cpu/path_end.h"
