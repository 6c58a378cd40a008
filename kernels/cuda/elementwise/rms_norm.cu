// RMSNorm of rows. Rows of whole aligned float4s stay in registers: a short one is a warp's, a long one a block's, all
// of its reads on their way at once. Any other row: one block, two passes. Rows that are also written as bf16 or FP8
// operands: one block, each warp whole blocks of 128 columns. A row's result depends on nothing but the row: each
// thread sums a fixed set of elements in ascending order, and the partial sums are added in a fixed tree.
#include "kernels/cuda/elementwise/rms_norm.h"

#include <climits>

#include "core/base/check.h"
#include "kernels/cuda/elementwise/fp8_quantize.cuh"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda {
namespace kernel {

constexpr int kNormThreads = 256;

// Over the block.
template <int kThreads>
__device__ float block_sum(float v) {
  __shared__ float partial[kThreads / kWarp];
  v = warp_sum(v);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = v;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kThreads / kWarp; ++w) sum += partial[w];
  return sum;
}

// x, out [rows, size]; they may be the same memory. residual: null or [rows, size]. weight: null (ones) or [size].
// square_sums (rms_norm_any only): null or [rows], of rows of whole_size elements.
struct Norm {
  const float* x;
  float* residual;
  const float* weight;
  float* out;
  int rows, size;
  float eps;
  const float* square_sums;
  int64_t whole_size;
};

// kRowThreads: threads of a row, a warp or the block; each keeps up to kEach float4s.
template <int kRowThreads, int kThreads, int kEach>
__global__ void __launch_bounds__(kThreads) rms_norm_wide(const __grid_constant__ Norm p) {
  static_assert(kRowThreads == kWarp || kRowThreads == kThreads);
  wait_for_earlier();
  constexpr int kRows = kThreads / kRowThreads;
  const int row = int(blockIdx.x) * kRows + int(threadIdx.x) / kRowThreads, lane = int(threadIdx.x) % kRowThreads;
  if (row >= p.rows) return;
  const int64_t begin = int64_t{row} * p.size;
  float4 v[kEach], w[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = (i * kRowThreads + lane) * 4;
    v[i] = at < p.size ? *reinterpret_cast<const float4*>(p.x + begin + at) : float4{};
  }
  if (p.residual) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = (i * kRowThreads + lane) * 4;
      const float4 r = at < p.size ? *reinterpret_cast<const float4*>(p.residual + begin + at) : float4{};
      v[i] = {r.x + v[i].x, r.y + v[i].y, r.z + v[i].z, r.w + v[i].w};
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = (i * kRowThreads + lane) * 4;
    w[i] = {1.0f, 1.0f, 1.0f, 1.0f};
    if (p.weight && at < p.size) w[i] = __ldg(reinterpret_cast<const float4*>(p.weight + at));
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = (i * kRowThreads + lane) * 4;
    if (p.residual && at < p.size) *reinterpret_cast<float4*>(p.residual + begin + at) = v[i];
    squares += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
  }
  float sum;
  if constexpr (kRowThreads == kWarp)
    sum = warp_sum(squares);
  else
    sum = block_sum<kThreads>(squares);
  const float inv = 1.0f / sqrtf(sum / float(p.size) + p.eps);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = (i * kRowThreads + lane) * 4;
    if (at < p.size)
      *reinterpret_cast<float4*>(p.out + begin + at) = {v[i].x * inv * w[i].x, v[i].y * inv * w[i].y,
                                                        v[i].z * inv * w[i].z, v[i].w * inv * w[i].w};
  }
}

__global__ void __launch_bounds__(kNormThreads) rms_norm_any(const __grid_constant__ Norm p) {
  const int64_t row = int64_t{blockIdx.x} * p.size;
  const float* in = p.x + row;
  float mean;
  if (p.square_sums) {
    mean = p.square_sums[blockIdx.x] / float(p.whole_size);
  } else {
    float squares = 0.0f;
    for (int i = threadIdx.x; i < p.size; i += kNormThreads) {
      float v = in[i];
      if (p.residual) p.residual[row + i] = v = p.residual[row + i] + v;
      squares += v * v;
    }
    mean = block_sum<kNormThreads>(squares) / float(p.size);
  }
  const float inv = 1.0f / sqrtf(mean + p.eps);
  if (p.residual) in = p.residual + row;  // each thread reads what it wrote itself
  for (int i = threadIdx.x; i < p.size; i += kNormThreads)
    p.out[row + i] = p.weight ? in[i] * inv * p.weight[i] : in[i] * inv;
}

__global__ void __launch_bounds__(kNormThreads) sum_squares(const float* x, int size, float* out) {
  x += int64_t{blockIdx.x} * size;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < size; i += kNormThreads) squares += x[i] * x[i];
  const float sum = block_sum<kNormThreads>(squares);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

constexpr int kOperandThreads = 512, kOperandWarps = kOperandThreads / kWarp, kMaxBlocks = 8;  // of 128, per warp

// Where a norm's rows [rows, size] go; null: not wanted. FP8: size is a multiple of 128.
struct NormOperands {
  float* f32;
  __nv_bfloat16* bf16;
  Fp8Rows fp8;
};

// One block per row of whole float4s. Warp w takes blocks w, w + 16, ... of 128 columns, up to kEach of them.
template <int kEach>
__global__ void __launch_bounds__(kOperandThreads)
    rms_norm_operands(const float* x, float* residual, const float* weight, int size, NormOperands out, float eps) {
  wait_for_earlier();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t begin = int64_t{blockIdx.x} * size;
  const auto column = [&](int i) { return (warp + i * kOperandWarps) * kFp8Block + lane * 4; };
  const auto load = [&](const float* from, int at) {
    return at < size ? *reinterpret_cast<const float4*>(from + at) : float4{};
  };
  float4 v[kEach], w[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    v[i] = load(x + begin, column(i));
    w[i] = weight ? load(weight, column(i)) : float4{1.0f, 1.0f, 1.0f, 1.0f};
  }
  if (residual) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float4 r = load(residual + begin, column(i));
      v[i] = {r.x + v[i].x, r.y + v[i].y, r.z + v[i].z, r.w + v[i].w};
    }
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (residual && column(i) < size) *reinterpret_cast<float4*>(residual + begin + column(i)) = v[i];
    squares += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
  }
  const float inv = 1.0f / sqrtf(block_sum<kOperandThreads>(squares) / float(size) + eps);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    v[i] = {v[i].x * inv * w[i].x, v[i].y * inv * w[i].y, v[i].z * inv * w[i].z, v[i].w * inv * w[i].w};
  Fp8Piece piece[kEach];
  if (out.fp8.data)
#pragma unroll
    for (int i = 0; i < kEach; ++i) piece[i] = quantize(v[i]);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (column(i) >= size) break;
    const int64_t at = begin + column(i);
    if (out.f32) *reinterpret_cast<float4*>(out.f32 + at) = v[i];
    if (out.fp8.data) store_piece(piece[i], out.fp8, blockIdx.x, warp + i * kOperandWarps);
    if (out.bf16) store_bf16(out.bf16 + at, v[i]);
  }
}

}  // namespace kernel

namespace {

bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

template <int kRowThreads, int kThreads, int kEach>
void launch_wide(const kernel::Norm& p, cudaStream_t stream) {
  static_assert(kRowThreads * kEach * 4 <= INT_MAX);
  launch_early(kernel::rms_norm_wide<kRowThreads, kThreads, kEach>, blocks_for(p.rows, kThreads / kRowThreads),
               kThreads, 0, stream, p);
}

}  // namespace

void rms_norm(const RmsNormArgs& a, Stream stream) {
  const int64_t num_rows = a.x.dim(0), size = a.x.row_size();
  CHECK(size > 0 && size <= INT_MAX && num_rows <= INT_MAX, "rms_norm of [{}, {}]", num_rows, size);
  CHECK(!a.weight || a.weight.size() == size, "rms_norm: rows of {}, a weight of {}", size, a.weight.size());
  CHECK(a.out.size() == num_rows * size, "rms_norm: {} values into {}", num_rows * size, a.out.size());
  float* const out = a.out.f32.f32().data;
  CHECK(!a.residual || a.residual.size() == num_rows * size, "rms_norm: a residual of {} for {} values",
        a.residual.size(), num_rows * size);
  if (num_rows == 0) return;
  const cudaStream_t s = handle(stream);
  CHECK(!a.square_sums || (!a.residual && !a.out.bf16 && !a.out.fp8 && a.square_sums.size() == num_rows),
        "rms_norm: sums of squares of {} rows for {} rows, which are f32 and have no residual", a.square_sums.size(),
        num_rows);
  if (a.out.bf16 || a.out.fp8) {
    const kernel::NormOperands to = {out, static_cast<__nv_bfloat16*>(a.out.bf16.data), fp8_rows(a.out.fp8)};
    constexpr int64_t kMost = int64_t{kFp8Block} * kernel::kOperandWarps * kernel::kMaxBlocks;
    CHECK(size % 4 == 0 && size <= kMost && aligned(a.x.data) && aligned(a.residual.data) && aligned(a.weight.data) &&
              aligned(out),
          "rms_norm: rows of {} as operands: whole 16 bytes, at most {} numbers", size, kMost);
    launch_early(size <= kMost / 2 ? kernel::rms_norm_operands<kernel::kMaxBlocks / 2>
                                   : kernel::rms_norm_operands<kernel::kMaxBlocks>,
                 unsigned(num_rows), kernel::kOperandThreads, 0, s, a.x.data, a.residual.data, a.weight.data, int(size),
                 to, a.eps);
    return;
  }
  const kernel::Norm p = {a.x.data,  a.residual.data, a.weight.data,      out,         int(num_rows),
                          int(size), a.eps,           a.square_sums.data, a.whole_size};
  const bool wide =
      !a.square_sums && size % 4 == 0 && aligned(p.x) && aligned(p.residual) && aligned(p.weight) && aligned(p.out);
  if (wide && size <= 128)
    launch_wide<32, 128, 1>(p, s);
  else if (wide && size <= 512)
    launch_wide<32, 128, 4>(p, s);
  else if (wide && size <= 4096)
    launch_wide<512, 512, 2>(p, s);
  else if (wide && size <= 8192)
    launch_wide<512, 512, 4>(p, s);
  else if (wide && size <= 16384)
    launch_wide<1024, 1024, 4>(p, s);
  else
    kernel::rms_norm_any<<<unsigned(num_rows), kernel::kNormThreads, 0, s>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

void sum_squares(const SumSquaresArgs& a, Stream stream) {
  const int64_t num_rows = a.x.dim(0), size = a.x.row_size();
  CHECK(size <= INT_MAX && num_rows <= INT_MAX && a.out.size() == num_rows, "sum_squares of [{}, {}] into {}", num_rows,
        size, a.out.size());
  if (num_rows == 0) return;
  kernel::sum_squares<<<unsigned(num_rows), kernel::kNormThreads, 0, handle(stream)>>>(a.x.data, int(size), a.out.data);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace moectl::cuda
