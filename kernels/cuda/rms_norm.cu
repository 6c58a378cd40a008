// RMSNorm of rows: one thread block a row, two passes over it. A row's result depends on nothing but the row: each
// thread sums a fixed set of elements in ascending order, and the partial sums meet in a fixed tree.
#include <climits>

#include "core/base/check.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/rms_norm.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256, kWarps = kThreads / 32;

__device__ float block_sum(float v) {
  __shared__ float partial[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += partial[w];
  return sum;
}

// x, out [gridDim.x, size]; they may be the same memory. residual: null or [gridDim.x, size]. weight: null (ones) or
// [size].
__global__ void __launch_bounds__(kThreads)
    rms_norm(const float* x, float* residual, const float* weight, float* out, int size, float eps) {
  const int64_t row = int64_t{blockIdx.x} * size;
  const float* in = x + row;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < size; i += kThreads) {
    float v = in[i];
    if (residual) residual[row + i] = v = residual[row + i] + v;
    squares += v * v;
  }
  const float inv = 1.0f / sqrtf(block_sum(squares) / float(size) + eps);
  if (residual) in = residual + row;  // each thread reads what it wrote itself
  for (int i = threadIdx.x; i < size; i += kThreads) out[row + i] = weight ? in[i] * inv * weight[i] : in[i] * inv;
}

}  // namespace kernel

void rms_norm(const RmsNormArgs& a, Stream stream) {
  const int64_t num_rows = a.x.dim(0), size = a.x.row_size();
  CHECK(size > 0 && size <= INT_MAX && num_rows <= INT_MAX, "rms_norm of [{}, {}]", num_rows, size);
  CHECK(!a.weight || a.weight.size() == size, "rms_norm: rows of {}, a weight of {}", size, a.weight.size());
  CHECK(a.out.size() == num_rows * size, "rms_norm: {} values into {}", num_rows * size, a.out.size());
  CHECK(!a.residual || a.residual.size() == num_rows * size, "rms_norm: a residual of {} for {} values",
        a.residual.size(), num_rows * size);
  if (num_rows == 0) return;
  kernel::rms_norm<<<unsigned(num_rows), kernel::kThreads, 0, static_cast<cudaStream_t>(stream.handle)>>>(
      a.x.data, a.residual.data, a.weight.data, a.out.data, int(size), a.eps);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace moectl::cuda
