// Rotary position embedding: the table of a step, and the rotation of queries or keys in place. A thread a pair.
#include "kernels/cuda/elementwise/rope.cuh"

#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256;

// cos_sin [num_tokens, 2 * half].
__global__ void rope_table(const int32_t* positions, const float* inv_freq, float factor, int64_t num_pairs, int half,
                           float* cos_sin) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= num_pairs) return;
  const int64_t token = index / half;
  const int i = int(index % half);
  // The angle is rounded to f32 as in the reference implementation; cosine and sine of it are then exact to f32.
  const double angle = __fmul_rn(float(positions[token]), inv_freq[i]);
  float* row = cos_sin + token * 2 * half;
  row[i] = float(cos(angle)) * factor;
  row[half + i] = float(sin(angle)) * factor;
}

// x [num_tokens, num_heads, head_dim], cos_sin [num_tokens, rope_dim].
__global__ void rope(float* x, const float* cos_sin, int64_t num_pairs, int num_heads, int head_dim, int rope_dim,
                     bool interleaved) {
  wait_for_earlier();
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= num_pairs) return;
  const int half = rope_dim / 2, i = int(index % half);
  const int64_t head = index / half;
  float* row = x + head * head_dim;
  const RopePair pair = rope_pair(i, rope_dim, interleaved);
  const float2 r = rotate(row[pair.a], row[pair.b], cos_sin + head / num_heads * rope_dim, i, rope_dim);
  row[pair.a] = r.x;
  row[pair.b] = r.y;
}

}  // namespace kernel

void rope_table(const RopeTableArgs& a, Stream stream) {
  const int64_t half = a.inv_freq.dim(0), num_pairs = a.positions.dim(0) * half;
  CHECK(a.cos_sin.row_size() == 2 * half, "rope_table: {} frequencies into rows of {}", half, a.cos_sin.row_size());
  if (num_pairs == 0) return;
  kernel::rope_table<<<blocks_for(num_pairs, kernel::kThreads), kernel::kThreads, 0, handle(stream)>>>(
      a.positions.data, a.inv_freq.data, a.factor, num_pairs, int(half), a.cos_sin.data);
  CUDA_CHECK(cudaGetLastError());
}

void rope(const RopeArgs& a, Stream stream) {
  const int64_t num_heads = a.x.dim(1), head_dim = a.x.dim(2), rope_dim = a.cos_sin.row_size();
  CHECK(rope_dim <= head_dim, "rope: {} rotated components of {}", rope_dim, head_dim);
  const int64_t num_pairs = a.x.dim(0) * num_heads * (rope_dim / 2);
  if (num_pairs == 0) return;
  launch_early(kernel::rope, blocks_for(num_pairs, kernel::kThreads), kernel::kThreads, 0, handle(stream), a.x.data,
               a.cos_sin.data, num_pairs, int(num_heads), int(head_dim), int(rope_dim), a.interleaved);
}

}  // namespace moectl::cuda
