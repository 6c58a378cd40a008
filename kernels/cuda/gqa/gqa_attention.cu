// Grouped-query attention over the paged cache of keys and values: checks, and the choice between the portable kernel
// and the Hopper ones.
#include "core/base/check.h"
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/attention_portable.cuh"
#include "kernels/cuda/gqa/gqa_attention_sm90.h"
#include "kernels/cuda/runtime/check.h"

namespace moectl::cuda {

void gqa_attention(const GqaAttentionArgs& a, const AttentionScratch& scratch, Stream stream) {
  const int64_t num_tokens = a.q.dim(0), num_heads = a.q.dim(1), head_dim = a.q.dim(2), num_kv_heads = a.cache.dim(1);
  CHECK(num_kv_heads > 0 && num_heads % num_kv_heads == 0, "gqa_attention: {} heads on {} keys", num_heads,
        num_kv_heads);
  CHECK(a.cache.dim(2) == 2 * a.page_size && a.cache.dim(3) == head_dim,
        "gqa_attention: heads of {} on a cache of [{}, {}], pages of {}", head_dim, a.cache.dim(2), a.cache.dim(3),
        a.page_size);
  CHECK(a.out.size() == num_tokens * num_heads * head_dim, "gqa_attention: {} x {} x {} values into {}", num_tokens,
        num_heads, head_dim, a.out.size());
  CHECK(a.seq_idx.size() >= num_tokens && a.positions.size() >= num_tokens, "gqa_attention: {} rows, {} positions",
        num_tokens, a.positions.size());
  CHECK(!a.sinks || a.sinks.size() == num_heads, "gqa_attention: {} sinks for {} heads", a.sinks.size(), num_heads);
  if (num_tokens == 0) return;
  if (!scratch.portable && gqa_attention_sm90_fits(a, scratch) && takes_hopper_kernels())
    return gqa_attention_sm90(a, scratch, stream);
  PortableAttention p = {};
  p.q = a.q.data;
  p.cache = a.cache.data;
  p.page_table = a.page_table.data;
  p.seq_idx = a.seq_idx.data;
  p.positions = a.positions.data;
  p.sinks = a.sinks.data;
  p.out = a.out.data;
  p.head_stride = int64_t{2} * a.page_size * head_dim;
  p.page_stride = num_kv_heads * p.head_stride;
  p.value_offset = a.page_size * head_dim;
  p.max_pages = int(a.page_table.dim(1));
  p.num_heads = int(num_heads);
  p.heads_per_kv = int(num_heads / num_kv_heads);
  p.key_size = p.value_size = p.row_stride = int(head_dim);
  p.page_size = a.page_size;
  p.window = a.window;
  p.chunk = a.chunk;
  p.scale = a.scale;
  p.temperature_floor = a.temperature_floor;
  p.temperature_scale = a.temperature_scale;
  attention_portable(p, a.cache.dtype, num_tokens, static_cast<cudaStream_t>(stream.handle));
}

}  // namespace moectl::cuda
