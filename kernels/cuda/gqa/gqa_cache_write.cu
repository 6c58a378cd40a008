// Copies keys and values of a step to their slots of the paged cache, in the cache's dtype. One thread block per token;
// padding rows (slot -1) write nothing.
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    gqa_cache_write(const float* k, const float* v, const int64_t* slots, int64_t num_slots, int num_kv_heads,
                    int head_dim, int page_size, T* cache) {
  wait_for_earlier();
  const int64_t token = blockIdx.x, slot = slots[token];
  if (slot < 0 || slot >= num_slots) return;
  const int row_size = num_kv_heads * head_dim;
  T* page = cache + slot / page_size * 2 * page_size * row_size;
  const int64_t offset = slot % page_size;
  for (int i = threadIdx.x; i < row_size; i += kThreads) {
    T* keys = page + (int64_t{i / head_dim} * 2 * page_size + offset) * head_dim + i % head_dim;
    keys[0] = T(k[token * row_size + i]);
    keys[int64_t{page_size} * head_dim] = T(v[token * row_size + i]);
  }
}

}  // namespace kernel

void gqa_cache_write(const GqaCacheWriteArgs& a, Stream stream) {
  const int64_t num_tokens = a.k.dim(0), num_kv_heads = a.k.dim(1), head_dim = a.k.dim(2);
  CHECK(a.cache.dim(1) == num_kv_heads && a.cache.dim(2) == 2 * a.page_size && a.cache.dim(3) == head_dim,
        "gqa_cache_write: {} heads of {} into pages of [{}, {}, {}]", num_kv_heads, head_dim, a.cache.dim(1),
        a.cache.dim(2), a.cache.dim(3));
  if (num_tokens == 0) return;
  auto launch = [&]<class T>(T* cache) {
    launch_early(kernel::gqa_cache_write<T>, unsigned(num_tokens), kernel::kThreads, 0, handle(stream), a.k.data,
                 a.v.data, a.slots.data, a.cache.dim(0) * a.page_size, int(num_kv_heads), int(head_dim), a.page_size,
                 cache);
  };
  if (a.cache.dtype == DType::kBF16)
    launch(static_cast<__nv_bfloat16*>(a.cache.data));
  else if (a.cache.dtype == DType::kF32)
    launch(static_cast<float*>(a.cache.data));
  else
    CHECK(false, "no KV cache of {}", dtype_name(a.cache.dtype));
}

}  // namespace moectl::cuda
