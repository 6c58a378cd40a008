// RMSNorm of rows. Rows of whole aligned float4s stay in registers: a short one is a warp's, a long one a block's, all
// of its reads on their way at once. Any other row: one block, two passes. A row's result depends on nothing but the
// row: each thread sums a fixed set of elements in ascending order, and the partial sums meet in a fixed tree.
#include "kernels/cuda/elementwise/rms_norm.h"

#include <climits>

#include "core/base/check.h"
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
struct Norm {
  const float* x;
  float* residual;
  const float* weight;
  float* out;
  int rows, size;
  float eps;
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
  float squares = 0.0f;
  for (int i = threadIdx.x; i < p.size; i += kNormThreads) {
    float v = in[i];
    if (p.residual) p.residual[row + i] = v = p.residual[row + i] + v;
    squares += v * v;
  }
  const float inv = 1.0f / sqrtf(block_sum<kNormThreads>(squares) / float(p.size) + p.eps);
  if (p.residual) in = p.residual + row;  // each thread reads what it wrote itself
  for (int i = threadIdx.x; i < p.size; i += kNormThreads)
    p.out[row + i] = p.weight ? in[i] * inv * p.weight[i] : in[i] * inv;
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
  CHECK(!a.residual || a.residual.size() == num_rows * size, "rms_norm: a residual of {} for {} values",
        a.residual.size(), num_rows * size);
  if (num_rows == 0) return;
  const kernel::Norm p = {a.x.data, a.residual.data, a.weight.data, a.out.data, int(num_rows), int(size), a.eps};
  const cudaStream_t s = handle(stream);
  const bool wide = size % 4 == 0 && aligned(p.x) && aligned(p.residual) && aligned(p.weight) && aligned(p.out);
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

}  // namespace moectl::cuda
