// Absorbed MLA over the paged cache: checks, and the choice between the portable kernel (any shape) and the Hopper one
// (mla_attention_sm90.cu). Also the launcher of the portable kernel, which GQA shares.
#include "core/base/check.h"
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/attention_portable.cuh"
#include "kernels/cuda/gqa/gqa_attention_sm90.h"
#include "kernels/cuda/mla/mla_attention_sm90.h"
#include "kernels/cuda/runtime/check.h"

namespace moectl::cuda {
namespace {

template <class T>
void launch_portable(const PortableAttention& p, int64_t num_tokens, cudaStream_t stream) {
  const size_t shared = size_t(p.key_size + p.value_size) * sizeof(float);
  kernel::attention_portable<T>
      <<<dim3(unsigned(p.num_heads), unsigned(num_tokens)), kernel::kPortableThreads, shared, stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void attention_portable(const PortableAttention& p, DType cache, int64_t num_tokens, cudaStream_t stream) {
  CHECK(num_tokens <= 65535, "attention of {} rows", num_tokens);
  CHECK(p.page_size > 0 && p.page_size <= kernel::kPortableMaxPage, "attention over pages of {} positions",
        p.page_size);
  CHECK((p.key_size + p.value_size) * sizeof(float) <= 48 * 1024, "attention over keys of {} and values of {} elements",
        p.key_size, p.value_size);
  CHECK(cache == DType::kF32 || cache == DType::kBF16, "attention over a cache of {}", dtype_name(cache));
  if (cache == DType::kF32) return launch_portable<float>(p, num_tokens, stream);
  launch_portable<__nv_bfloat16>(p, num_tokens, stream);
}

int64_t attention_scratch_bytes(int64_t, int64_t, int64_t value_size) {
  if (value_size == 512) return mla_attention_sm90_scratch_bytes();
  if (value_size == 64 || value_size == 128 || value_size == 256) return gqa_attention_sm90_scratch_bytes();
  return 0;  // the portable kernel needs none
}
int64_t attention_counters(int64_t max_tokens, int64_t num_heads) {
  return max_tokens * num_heads;
}

void mla_attention(const MlaAttentionArgs& a, const AttentionScratch& scratch, Stream stream) {
  const int64_t num_tokens = a.q.dim(0), num_heads = a.q.dim(1), width = a.q.dim(2), rank = a.kv_lora_rank;
  CHECK(rank > 0 && rank <= width && a.cache.dim(2) == width, "mla_attention: queries of {}, a cache of {}, rank {}",
        width, a.cache.dim(2), rank);
  const int64_t num_out = a.out.size();
  CHECK(num_out == num_tokens * num_heads * rank && a.out.dtype == a.q.dtype,
        "mla_attention: {} x {} x {} values of {} into {} of {}", num_tokens, num_heads, rank, dtype_name(a.q.dtype),
        num_out, dtype_name(a.out.dtype));
  CHECK(a.seq_idx.size() >= num_tokens && a.positions.size() >= num_tokens, "mla_attention: {} rows, {} positions",
        num_tokens, a.positions.size());
  if (num_tokens == 0) return;
  if (!scratch.portable && mla_attention_sm90_fits(a, scratch) && takes_hopper_kernels())
    return mla_attention_sm90(a, scratch, stream);
  CHECK(a.q.dtype == DType::kF32, "mla_attention: queries of {}", dtype_name(a.q.dtype));
  PortableAttention p = {};
  p.q = static_cast<const float*>(a.q.data);
  p.cache = a.cache.data;
  p.page_table = a.page_table.data;
  p.seq_idx = a.seq_idx.data;
  p.positions = a.positions.data;
  p.out = static_cast<float*>(a.out.data);
  p.page_stride = a.cache.dim(1) * width;
  p.max_pages = int(a.page_table.dim(1));
  p.num_heads = p.heads_per_kv = int(num_heads);
  p.key_size = p.row_stride = int(width);
  p.value_size = int(rank);
  p.page_size = int(a.cache.dim(1));
  p.scale = a.scale;
  attention_portable(p, a.cache.dtype, num_tokens, static_cast<cudaStream_t>(stream.handle));
}

}  // namespace moectl::cuda
