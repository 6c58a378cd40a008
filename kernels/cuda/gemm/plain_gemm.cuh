// What the two products of plain_gemm.h share on the device: scales, rows of x, and the epilogue.
#pragma once

#include "kernels/cuda/elementwise/activation.cuh"
#include "kernels/cuda/gemm/plain_gemm.h"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda {

inline void check(const PlainGemm& p) {
  CHECK(p.w.k <= (int64_t{1} << 30) && p.num_batches <= 65535, "a product of {} batches over {} inputs", p.num_batches,
        p.w.k);
  CHECK(!p.offsets || (p.x_batch == 0 && p.out_batch == 0), "rows by offsets have no batch stride");
}

// Rows of a batch that the grid covers. With offsets the host does not know their number: twice the average; the kernel
// loops over more.
inline int64_t expected_rows(const PlainGemm& p) {
  return p.offsets ? (2 * p.num_rows + p.num_batches - 1) / p.num_batches : p.num_rows;
}

namespace kernel {

// Whether rows of x are whole float4s.
inline bool aligned(const PlainGemm& p) {
  return p.w.k % 4 == 0 && p.x_row % 4 == 0 && p.x_batch % 4 == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0;
}

struct Four {
  float v[4];
};

__device__ inline float load_scale(const Matrix& w, int64_t i) {
  switch (w.scale_dtype) {
    case DType::kBF16:
      return widen_bf16(reinterpret_cast<const uint16_t*>(w.scales)[i]);
    case DType::kF16:
      return widen_f16(reinterpret_cast<const uint16_t*>(w.scales)[i]);
    case DType::kF8E8M0:
      return widen_e8m0(reinterpret_cast<const uint8_t*>(w.scales)[i]);
    default:
      return reinterpret_cast<const float*>(w.scales)[i];
  }
}

__device__ inline int segment_of(int k, int first, int segment) {
  return k < first ? 0 : 1 + (k - first) / segment;
}

template <bool kAligned>
__device__ inline Four load_x(const float* x, int64_t k, int64_t size) {
  if constexpr (kAligned) {
    const float4 v = *reinterpret_cast<const float4*>(x + k);
    return {{v.x, v.y, v.z, v.w}};
  } else {
    Four out;
    for (int i = 0; i < 4; ++i) out.v[i] = k + i < size ? x[k + i] : 0.0f;
    return out;
  }
}

__device__ inline void finish(const PlainGemm& p, float value, int64_t batch, int64_t row, int64_t column) {
  if (p.row_scale) value *= p.row_scale[row];
  if (p.bias) value += p.bias[(p.w_begin + batch) * p.w.n + column];
  float* out = p.out + batch * p.out_batch + row * p.out_row + column;
  switch (p.epilogue) {
    case PlainGemm::Epilogue::kStore:
      *out = value;
      break;
    case PlainGemm::Epilogue::kGate:
      *out = gate_activation(p.activation, value);
      break;
    case PlainGemm::Epilogue::kUp:
      *out = *out * up_activation(p.activation, value);
      break;
  }
}

}  // namespace kernel
}  // namespace moectl::cuda
