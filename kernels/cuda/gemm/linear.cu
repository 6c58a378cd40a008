// The portable matrix product (plain_gemm.h) and linear by it: SIMT, any shape, dtype and alignment.
//
// A warp owns N columns of W and takes R rows of x at a time. k is distributed over its lanes: lane l adds the products
// of k = 128 i + 4 l .. + 3 for i = 0, 1, ..., each element of W times its scale first, and the lanes' sums are added
// in a fixed tree. The order of summation depends neither on the number of rows or of columns per warp nor on the
// device, so the product is batch-invariant. W is read once for R rows, 4 elements per lane, coalesced; x comes from
// the L1 cache, which the warps of a block share.
#include "kernels/cuda/gemm/plain_gemm.cuh"
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256, kWarps = kThreads / kWarp, kStep = 4 * kWarp;

// Elements 4 lane .. 4 lane + 3 of a row's 128 at `at`, without their scales and zero points.
template <DType D>
__device__ inline Four load_elements(const std::byte* at, int lane) {
  constexpr int kBytes = dtype_bits(D) / 2;  // constexpr, as dtype_bits is host code
  at += lane * kBytes;
  if constexpr (D == DType::kF32) {
    const float4 x = __ldg(reinterpret_cast<const float4*>(at));
    return {{x.x, x.y, x.z, x.w}};
  } else if constexpr (D == DType::kBF16) {
    const uint2 x = __ldg(reinterpret_cast<const uint2*>(at));
    return {{__uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000u), __uint_as_float(x.y << 16),
             __uint_as_float(x.y & 0xffff0000u)}};
  } else if constexpr (D == DType::kF16) {
    const uint2 x = __ldg(reinterpret_cast<const uint2*>(at));
    return {{widen_f16(uint16_t(x.x)), widen_f16(uint16_t(x.x >> 16)), widen_f16(uint16_t(x.y)),
             widen_f16(uint16_t(x.y >> 16))}};
  } else if constexpr (D == DType::kF8E4M3) {
    const uint32_t x = __ldg(reinterpret_cast<const uint32_t*>(at));
    const float2 low = widen_f8x2(uint16_t(x)), high = widen_f8x2(uint16_t(x >> 16));
    return {{low.x, low.y, high.x, high.y}};
  } else if constexpr (D == DType::kI8) {
    const uint32_t x = __ldg(reinterpret_cast<const uint32_t*>(at));
    return {{float(int8_t(x)), float(int8_t(x >> 8)), float(int8_t(x >> 16)), float(int8_t(x >> 24))}};
  } else {
    const uint32_t x = __ldg(reinterpret_cast<const uint16_t*>(at));
    Four out;
    for (int i = 0; i < 4; ++i) {
      const uint32_t q = x >> (4 * i) & 15u;
      out.v[i] = D == DType::kF4E2M1 ? widen_e2m1(q) : D == DType::kI4 ? float(int(q) - 8) : float(q);
    }
    return out;
  }
}

// Multiplies elements by their scales: `at` is the row's first scale.
template <DType D>
__device__ inline void apply_scales(Four& x, const Matrix& w, int64_t at, int k, int first) {
  auto apply = [&](int i, int64_t s) {
    if constexpr (D == DType::kU4) x.v[i] -= float(w.zeros[s]);
    x.v[i] *= load_scale(w, s);
  };
  auto scale_of = [&](int i) { return at + segment_of(i, first, int(w.segment)) * w.segment_scales; };
  if (w.segments_of_four) {
    const int64_t s = scale_of(k);
    if constexpr (D == DType::kU4) {
      const float zero = float(w.zeros[s]);
      for (float& v : x.v) v -= zero;
    }
    const float scale = load_scale(w, s);
    for (float& v : x.v) v *= scale;
  } else {
    for (int i = 0; i < 4 && k + i < w.k; ++i) apply(i, scale_of(k + i));
  }
}

// Sums v[c] over the lanes, in the tree of warp_sum, halving the number of sums at each level; returns the sum of
// c = lane / (32 / C).
template <int C>
__device__ inline float reduce(float (&v)[C]) {
  const int lane = int(threadIdx.x) % kWarp;
  int offset = kWarp / 2;
#pragma unroll
  for (int half = C / 2; half > 0; half /= 2, offset /= 2) {
    const bool upper = lane & offset;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float keep = upper ? v[i + half] : v[i], send = upper ? v[i] : v[i + half];
      v[i] = keep + __shfl_xor_sync(kAll, send, offset);
    }
  }
  for (; offset > 0; offset /= 2) v[0] += __shfl_xor_sync(kAll, v[0], offset);
  return v[0];
}

// Grid: columns / (kWarps * N), row tiles of a batch (strided), batches. kAligned: rows of x are whole float4s.
template <DType D, int R, int N, bool kAligned>
__global__ void __launch_bounds__(kThreads) gemm(const __grid_constant__ PlainGemm p) {
  const Matrix& w = p.w;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t batch = blockIdx.z, n0 = (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp) * N;
  if (n0 >= w.n) return;
  const int64_t row_begin = p.offsets ? p.offsets[batch] : 0;
  const int64_t row_end = p.offsets ? p.offsets[batch + 1] : p.num_rows;
  const int64_t entry = p.w_begin + batch;
  const std::byte* rows[N];
  int64_t scales[N];
  const int first = w.scales ? w.first_segment[entry] : 0;
#pragma unroll
  for (int c = 0; c < N; ++c) {
    const int64_t n = n0 + c < w.n ? n0 + c : w.n - 1;
    rows[c] = w.data + entry * w.entry_bytes + n * w.row_bytes;
    scales[c] = entry * w.entry_scales + n / w.block_n * w.row_scales;
  }
  for (int64_t row0 = row_begin + int64_t{blockIdx.y} * R; row0 < row_end; row0 += int64_t{gridDim.y} * R) {
    float acc[R * N] = {};
    const float* x[R];
#pragma unroll
    for (int r = 0; r < R; ++r)
      x[r] = p.x + batch * p.x_batch + (row0 + r < row_end ? row0 + r : row_end - 1) * p.x_row;
#pragma unroll(R == 1 ? 4 : 2)
    for (int k = lane * 4; k < int(w.k); k += kStep) {
      Four wk[N];
#pragma unroll
      for (int c = 0; c < N; ++c) {
        wk[c] = load_elements<D>(rows[c] + k / kStep * w.step_bytes, lane);
        if (w.scales) apply_scales<D>(wk[c], w, scales[c], k, first);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const Four xk = load_x<kAligned>(x[r], k, w.k);
#pragma unroll
        for (int c = 0; c < N; ++c)
#pragma unroll
          for (int i = 0; i < 4; ++i) acc[r * N + c] = fmaf(wk[c].v[i], xk.v[i], acc[r * N + c]);
      }
    }
    const float value = reduce(acc);
    constexpr int kLanes = kWarp / (R * N);
    const int64_t row = row0 + lane / kLanes / N, column = n0 + lane / kLanes % N;
    if (lane % kLanes == 0 && row < row_end && column < w.n) finish(p, value, batch, row, column);
  }
}

__global__ void __launch_bounds__(kThreads) add_bias(float* out, int64_t size, int64_t n, const float* bias) {
  wait_for_earlier();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < size) out[i] += bias[i % n];
}

}  // namespace kernel

namespace {

template <DType D, int R, int N>
void launch(const PlainGemm& p, int64_t rows_expected, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.w.n, kernel::kWarps * N), blocks_for(rows_expected, R, 4096), unsigned(p.num_batches));
  (kernel::aligned(p) ? kernel::gemm<D, R, N, true>
                      : kernel::gemm<D, R, N, false>)<<<grid, kernel::kThreads, 0, stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

template <DType D>
void launch_rows(const PlainGemm& p, cudaStream_t stream) {
  const int64_t rows = expected_rows(p);
  if (rows <= 1) return launch<D, 1, 2>(p, rows, stream);
  if (rows <= 4) return launch<D, 4, 4>(p, rows, stream);
  return launch<D, 8, 4>(p, rows, stream);
}

}  // namespace

void plain_gemm(const PlainGemm& p, Stream stream) {
  check(p);
  if (p.num_rows == 0 || p.num_batches == 0) return;
  const cudaStream_t s = handle(stream);
  switch (p.w.dtype) {
    case DType::kF32:
      return launch_rows<DType::kF32>(p, s);
    case DType::kBF16:
      return launch_rows<DType::kBF16>(p, s);
    case DType::kF16:
      return launch_rows<DType::kF16>(p, s);
    case DType::kF8E4M3:
      return launch_rows<DType::kF8E4M3>(p, s);
    case DType::kI8:
      return launch_rows<DType::kI8>(p, s);
    case DType::kF4E2M1:
      return launch_rows<DType::kF4E2M1>(p, s);
    case DType::kI4:
      return launch_rows<DType::kI4>(p, s);
    case DType::kU4:
      return launch_rows<DType::kU4>(p, s);
    default:
      CHECK(false, "no product with weights of {}", dtype_name(p.w.dtype));
  }
}

void any_gemm(PlainGemm p, Numerics numerics, Stream stream) {
  p.deterministic = numerics.deterministic;
  (numerics.tensor_cores && mma_gemm_fits(p.w) ? mma_gemm : plain_gemm)(p, stream);
}

void add_bias(float* out, int64_t rows, int64_t n, const float* bias, Stream stream) {
  if (rows * n == 0) return;
  launch_early(kernel::add_bias, blocks_for(rows * n, kernel::kThreads), kernel::kThreads, 0, handle(stream), out,
               rows * n, n, bias);
}

void linear(const LinearArgs& a, Numerics numerics, Stream stream) {
  const Matrix& w = matrix_of(a.weight);
  CHECK(a.x.row_size() == w.k && a.out.row_size() == w.n, "linear: x has {} columns and out {}, the weight is [{}, {}]",
        a.x.row_size(), a.out.row_size(), w.n, w.k);
  any_gemm({.w = w,
            .x = a.x.f32().data,
            .x_row = w.k,
            .out = a.out.data,
            .out_row = w.n,
            .num_rows = a.x.dim(0),
            .bias = a.bias.data},
           numerics, stream);
}

}  // namespace moectl::cuda
