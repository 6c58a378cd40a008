// Writes a token's compressed KV, normalized, and its rotated key part to its slot of the paged cache, in the cache's
// dtype. One thread block per token; padding rows (slot -1) write nothing. The sum of squares has a fixed order.
#include "kernels/cuda/elementwise/rope.cuh"
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

template <class T>
__global__ void __launch_bounds__(kThreads)
    mla_cache_write(const float* kv, const float* norm_weight, float eps, const float* cos_sin, const int64_t* slots,
                    int64_t num_slots, int rank, int rope_dim, bool interleaved, T* cache) {
  __shared__ float partial[kWarps];
  wait_for_earlier();
  const int64_t token = blockIdx.x, slot = slots[token];
  if (slot < 0 || slot >= num_slots) return;
  const int width = rank + rope_dim;
  const float* in = kv + token * width;
  T* out = cache + slot * width;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < rank; i += kThreads) squares += in[i] * in[i];
  squares = warp_sum(squares);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = squares;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += partial[w];
  const float inv = 1.0f / sqrtf(sum / float(rank) + eps);
  for (int i = threadIdx.x; i < rank; i += kThreads) out[i] = T(in[i] * inv * norm_weight[i]);
  for (int i = threadIdx.x; i < rope_dim / 2; i += kThreads) {
    const RopePair pair = rope_pair(i, rope_dim, interleaved);
    const float2 r = rotate(in[rank + pair.a], in[rank + pair.b], cos_sin + token * rope_dim, i, rope_dim);
    out[rank + pair.a] = T(r.x);
    out[rank + pair.b] = T(r.y);
  }
}

}  // namespace kernel

void mla_cache_write(const MlaCacheWriteArgs& a, Stream stream) {
  const int64_t num_tokens = a.kv.dim(0), width = a.kv.row_size(), rank = a.norm_weight.dim(0), rope_dim = width - rank;
  CHECK(rope_dim == a.cos_sin.row_size() && a.cache.dim(2) == width,
        "mla_cache_write: rows of {} with {} rotated into a cache of {}", width, a.cos_sin.row_size(), a.cache.dim(2));
  if (num_tokens == 0) return;
  auto launch = [&]<class T>(T* cache) {
    launch_early(kernel::mla_cache_write<T>, unsigned(num_tokens), kernel::kThreads, 0, handle(stream), a.kv.data,
                 a.norm_weight.data, a.eps, a.cos_sin.data, a.slots.data, a.cache.dim(0) * a.cache.dim(1), int(rank),
                 int(rope_dim), a.interleaved, cache);
  };
  if (a.cache.dtype == DType::kBF16)
    launch(static_cast<__nv_bfloat16*>(a.cache.data));
  else if (a.cache.dtype == DType::kF32)
    launch(static_cast<float*>(a.cache.data));
  else
    CHECK(false, "no KV cache of {}", dtype_name(a.cache.dtype));
}

}  // namespace moectl::cuda
