// The portable kernel: attention of any shape over a paged cache of any dtype, for compute capability 8.0 and later,
// one thread block per (row, head). Pages are visited in ascending order from the first visible one; positions alone
// fix the order of every sum, so a row's bits do not depend on the other rows. Within a page, warp w takes keys w, w +
// 4, ... (lanes along the key), every warp computes the same maximum and sum, and threads take output components.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda {

// Key j of a page and key/value head g: cache + page * page_stride + g * head_stride + j * row_stride, its value
// value_offset further; all in elements.
struct PortableAttention {
  const float* q;  // [num_tokens, num_heads, key_size]
  const void* cache;
  const int32_t *page_table, *seq_idx, *positions;
  const float* sinks;  // [num_heads] or null
  float* out;          // [num_tokens, num_heads, value_size]
  int64_t page_stride, head_stride, value_offset;
  int max_pages, num_heads, heads_per_kv, key_size, value_size, row_stride, page_size, window, chunk;
  float scale, temperature_floor, temperature_scale;
};

// The first position that a row at `position` sees.
__device__ inline int first_visible(int position, int window, int chunk) {
  int first = 0;
  if (window > 0) first = max(first, position - window + 1);
  if (chunk > 0) first = max(first, position / chunk * chunk);
  return first;
}

// The row's scale: ops.h, GqaAttentionArgs.
__device__ inline float row_scale(float scale, int position, float floor, float temperature) {
  if (floor <= 0.0f) return scale;
  return scale * (log1pf(floorf(float(position + 1) / floor)) * temperature + 1.0f);
}

// Launches the kernel below (mla_attention.cu).
void attention_portable(const PortableAttention& p, DType cache, int64_t num_tokens, cudaStream_t stream);

namespace kernel {

constexpr int kPortableThreads = 128, kPortableMaxPage = 64;

// grid (num_heads, num_tokens); dynamic shared memory: key_size + value_size floats.
template <class T>
__global__ void __launch_bounds__(kPortableThreads) attention_portable(const PortableAttention a) {
  extern __shared__ float shared[];
  __shared__ float score[kPortableMaxPage], weight[kPortableMaxPage];
  float *q = shared, *acc = shared + a.key_size;
  const int head = blockIdx.x, token = blockIdx.y, tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  const int64_t row = int64_t{token} * a.num_heads + head;
  const int position = a.positions[token];
  float* out = a.out + row * a.value_size;
  if (position < 0) {
    for (int i = tid; i < a.value_size; i += kPortableThreads) out[i] = 0.0f;
    return;
  }
  const float scale = row_scale(a.scale, position, a.temperature_floor, a.temperature_scale);
  for (int i = tid; i < a.key_size; i += kPortableThreads) q[i] = a.q[row * a.key_size + i];
  for (int i = tid; i < a.value_size; i += kPortableThreads) acc[i] = 0.0f;
  __syncthreads();
  const int32_t* pages = a.page_table + int64_t{a.seq_idx[token]} * a.max_pages;
  const int first = first_visible(position, a.window, a.chunk);
  float max_score = a.sinks ? a.sinks[head] : -INFINITY, sum = a.sinks ? 1.0f : 0.0f;
  for (int start = first / a.page_size * a.page_size; start <= position; start += a.page_size) {
    const int begin = max(first - start, 0), end = min(a.page_size, position + 1 - start);
    const T* keys = static_cast<const T*>(a.cache) + pages[start / a.page_size] * a.page_stride +
                    head / a.heads_per_kv * a.head_stride;
    for (int j = begin + warp; j < end; j += kPortableThreads / 32) {
      const T* key = keys + int64_t{j} * a.row_stride;
      float dot = 0.0f;
      for (int i = lane; i < a.key_size; i += 32) dot += q[i] * to_f32(key[i]);
      for (int offset = 16; offset > 0; offset /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, offset);
      if (lane == 0) score[j] = dot * scale;
    }
    __syncthreads();
    // Online softmax (arXiv 1805.02867), the same in every warp.
    float s[2], page_max = -INFINITY, page_sum = 0.0f;
    for (int k = 0; k < 2; ++k) {
      const int j = lane + 32 * k;
      s[k] = j >= begin && j < end ? score[j] : -INFINITY;
      page_max = fmaxf(page_max, s[k]);
    }
    for (int offset = 16; offset > 0; offset /= 2)
      page_max = fmaxf(page_max, __shfl_xor_sync(0xffffffffu, page_max, offset));
    const float new_max = fmaxf(max_score, page_max), alpha = max_score == -INFINITY ? 0.0f : expf(max_score - new_max);
    for (int k = 0; k < 2; ++k) {
      s[k] = s[k] == -INFINITY ? 0.0f : expf(s[k] - new_max);
      page_sum += s[k];
      if (warp == 0) weight[lane + 32 * k] = s[k];
    }
    for (int offset = 16; offset > 0; offset /= 2) page_sum += __shfl_xor_sync(0xffffffffu, page_sum, offset);
    sum = sum * alpha + page_sum;
    max_score = new_max;
    __syncthreads();
    const T* values = keys + a.value_offset;
    for (int i = tid; i < a.value_size; i += kPortableThreads) {
      float v = acc[i] * alpha;
      for (int j = begin; j < end; ++j) v += weight[j] * to_f32(values[int64_t{j} * a.row_stride + i]);
      acc[i] = v;
    }
  }
  for (int i = tid; i < a.value_size; i += kPortableThreads) out[i] = acc[i] / sum;
}

}  // namespace kernel
}  // namespace moectl::cuda
