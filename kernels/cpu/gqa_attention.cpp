// Grouped-query attention over the paged cache of keys and values, for decode and prefill rows alike.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/path_begin.h"

void CpuOps::gqa_cache_write(const GqaCacheWriteArgs& a, Stream) {
  const int64_t num_kv_heads = a.k.dim(1), head_dim = a.k.dim(2), page_size = a.page_size;
  const int64_t num_slots = a.cache.dim(0) * page_size, page_values = a.cache.page_values();
  float* cache = cpu::cache_data(a.cache);
  for (int64_t t = 0; t < a.k.dim(0); ++t) {
    const int64_t slot = a.slots(t);
    if (slot == -1) continue;
    CHECK(slot >= 0 && slot < num_slots, "KV slot {} of {}", slot, num_slots);
    float* page = cache + slot / page_size * page_values;
    for (int64_t h = 0; h < num_kv_heads; ++h) {
      float* keys = page + (h * 2 * page_size + slot % page_size) * head_dim;
      std::memcpy(keys, a.k.row(t) + h * head_dim, size_t(head_dim) * sizeof(float));
      std::memcpy(keys + page_size * head_dim, a.v.row(t) + h * head_dim, size_t(head_dim) * sizeof(float));
    }
  }
}

namespace {

// The first position that a row at `position` sees.
int64_t first_visible(const GqaAttentionArgs& a, int64_t position) {
  int64_t first = 0;
  if (a.window > 0) first = std::max<int64_t>(first, position - a.window + 1);
  if (a.chunk > 0) first = std::max<int64_t>(first, position / a.chunk * a.chunk);
  return first;
}

float row_scale(const GqaAttentionArgs& a, int64_t position) {
  if (a.temperature_floor <= 0.0f) return a.scale;
  const float steps = std::floor(float(position + 1) / a.temperature_floor);
  return a.scale * (std::log1p(steps) * a.temperature_scale + 1.0f);
}

}  // namespace

void CpuOps::gqa_attention(const GqaAttentionArgs& a, Stream) {
  const int64_t num_tokens = a.q.dim(0), num_heads = a.q.dim(1), head_dim = a.q.dim(2);
  const int64_t num_kv_heads = a.cache.dim(1), num_pages = a.cache.dim(0), page_size = a.page_size;
  const int64_t group = num_heads / num_kv_heads, page_values = a.cache.page_values();
  const float* cache = cpu::cache_data(a.cache);
  CHECK(page_size <= kMaxPage && a.cache.dim(2) == 2 * page_size && group * num_kv_heads == num_heads,
        "pages of {} tokens, {} heads on {} keys", page_size, num_heads, num_kv_heads);
  int64_t work = 0;
  for (int64_t t = 0; t < num_tokens; ++t)
    work += (a.positions(t) + 1 - first_visible(a, a.positions(t))) * num_heads * 2 * head_dim;
  const int chunks = pool_.num_chunks(work, kMinWorkPerThread);
  // An item is a token and some of its key/value heads; the query heads of a group share the keys while they are in
  // cache. Rows late in the sequence cost more, so items are dealt out to the chunks.
  const int64_t parts = num_tokens >= chunks ? 1 : std::min<int64_t>(num_kv_heads, chunks);
  pool_.run(chunks, [&](int chunk) {
    thread_local std::vector<HeadState> states;
    for (int64_t item = chunk; item < num_tokens * parts; item += chunks) {
      const int64_t t = item / parts, part = item % parts;
      const int64_t kv_begin = num_kv_heads * part / parts, kv_end = num_kv_heads * (part + 1) / parts;
      const float scale = row_scale(a, a.positions(t));
      states.assign(size_t(num_heads), {});
      if (a.sinks)
        for (int64_t h = 0; h < num_heads; ++h) states[size_t(h)] = {a.sinks(h), 1.0f};
      auto heads_of = [&](int64_t kv) {
        return AttentionHeads{.q = a.q.row(t) + kv * group * head_dim,
                              .out = a.out.row(t) + kv * group * head_dim,
                              .states = states.data() + kv * group,
                              .num_heads = group,
                              .key_size = head_dim,
                              .value_size = head_dim,
                              .scale = scale};
      };
      std::fill(heads_of(kv_begin).out, heads_of(kv_end).out, 0.0f);
      if (a.positions(t) < 0) continue;
      const int32_t* pages = a.page_table.row(a.seq_idx(t));
      const int64_t length = int64_t{a.positions(t)} + 1, first = first_visible(a, a.positions(t));
      for (int64_t start = first / page_size * page_size; start < length; start += page_size) {
        const int begin = int(std::max<int64_t>(first - start, 0)), end = int(std::min(page_size, length - start));
        const int64_t page = pages[start / page_size];
        CHECK(page >= 0 && page < num_pages, "KV page {} of {}", page, num_pages);
        for (int64_t kv = kv_begin; kv < kv_end; ++kv) {
          const float* keys = cache + page * page_values + kv * 2 * page_size * head_dim;
          attend({keys, keys + page_size * head_dim, head_dim, head_dim, begin, end}, heads_of(kv));
        }
      }
      for (int64_t kv = kv_begin; kv < kv_end; ++kv) finish_heads(heads_of(kv));
    }
  });
}

#include "kernels/cpu/path_end.h"
