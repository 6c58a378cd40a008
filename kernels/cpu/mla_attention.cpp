// Multi-head latent attention in absorbed form over the paged latent cache, for decode and prefill rows alike.
#include <algorithm>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rms_norm.h"
#include "kernels/cpu/rope.h"

#include "kernels/cpu/path_begin.h"

void CpuOps::mla_query(const MlaQueryArgs& a, Stream) {
  const int64_t num_tokens = a.q.dim(0), num_heads = a.q.dim(1), head_dim = a.q.dim(2);
  const int64_t nope = a.w_uk.k, rank = a.w_uk.n, rope = head_dim - nope;
  const View<float> out = a.out.f32();
  const float* const* rows = row_pointers(a.q.data, num_tokens * num_heads, head_dim);
  // Row pointers are by (token, head); one head needs those of a stride.
  pool_.parallel_for(
      num_heads, kMinWorkPerThread / (rank * nope * num_tokens + 1) + 1, [&](int64_t begin, int64_t end) {
        thread_local std::vector<const float*> x;
        for (int64_t h = begin; h < end; ++h) {
          x.clear();
          for (int64_t t = 0; t < num_tokens; ++t) x.push_back(rows[t * num_heads + h]);
          const PackedMatrix& w = cpu::packed(a.w_uk).matrices[h];
          gemm(w, 0, w.num_tiles, x.data(), num_tokens, [&](int64_t t, int64_t tile, F32x16 value) {
            store_tile(out.row(t) + h * (rank + rope), tile, rank, value);
          });
          for (int64_t t = 0; t < num_tokens; ++t)
            rotate(x[t] + nope, a.cos_sin.row(t), rope, a.interleaved, out.row(t) + h * (rank + rope) + rank);
        }
      });
}

void CpuOps::mla_cache_write(const MlaCacheWriteArgs& a, Stream) {
  const int64_t rank = a.norm_weight.dim(0), width = a.kv.row_size(), rope = width - rank;
  const int64_t num_slots = a.cache.dim(0) * a.cache.dim(1);
  float* cache = cpu::cache_data(a.cache);
  for (int64_t t = 0; t < a.kv.dim(0); ++t) {
    if (a.slots(t) == -1) continue;
    CHECK(a.slots(t) >= 0 && a.slots(t) < num_slots, "KV slot {} of {}", a.slots(t), num_slots);
    float* slot = cache + a.slots(t) * width;
    rms_norm_row(a.kv.row(t), a.norm_weight.data, rank, a.eps, slot);
    rotate(a.kv.row(t) + rank, a.cos_sin.row(t), rope, a.interleaved, slot + rank);
  }
}

void CpuOps::mla_attention(const MlaAttentionArgs& a, Stream) {
  const int64_t num_tokens = a.q.dim(0), num_heads = a.q.dim(1), width = a.q.dim(2), rank = a.kv_lora_rank;
  const int64_t page_size = a.cache.dim(1), num_pages = a.cache.dim(0);
  const float* cache = cpu::cache_data(a.cache);
  const View<float> q = a.q.f32(), out = a.out.f32();
  CHECK(page_size <= kMaxPage, "pages of {} tokens", page_size);
  int64_t work = 0;
  for (int64_t t = 0; t < num_tokens; ++t) work += (a.positions(t) + 1) * num_heads * (width + rank);
  const int chunks = pool_.num_chunks(work, kMinWorkPerThread);
  // An item is a token and some of its heads; the heads of an item share each page while it is in cache. Rows late in
  // the sequence cost more, so items are dealt out to the chunks.
  const int64_t groups = num_tokens >= chunks ? 1 : std::min<int64_t>(num_heads, chunks);
  pool_.run(chunks, [&](int chunk) {
    thread_local std::vector<HeadState> states;
    for (int64_t item = chunk; item < num_tokens * groups; item += chunks) {
      const int64_t t = item / groups, group = item % groups;
      const int64_t head_begin = num_heads * group / groups, head_end = num_heads * (group + 1) / groups;
      states.assign(size_t(head_end - head_begin), {});
      const AttentionHeads heads = {.q = q.row(t) + head_begin * width,
                                    .out = out.row(t) + head_begin * rank,
                                    .states = states.data(),
                                    .num_heads = head_end - head_begin,
                                    .key_size = width,
                                    .value_size = rank,
                                    .scale = a.scale};
      std::fill(heads.out, heads.out + heads.num_heads * rank, 0.0f);
      if (a.positions(t) < 0) continue;
      const int32_t* pages = a.page_table.row(a.seq_idx(t));
      const int64_t length = int64_t{a.positions(t)} + 1;
      for (int64_t begin = 0; begin < length; begin += page_size) {
        const int64_t page = pages[begin / page_size];
        CHECK(page >= 0 && page < num_pages, "KV page {} of {}", page, num_pages);
        const float* keys = cache + page * page_size * width;
        attend({keys, keys, width, width, 0, int(std::min(page_size, length - begin))}, heads);
      }
      finish_heads(heads);
    }
  });
}

void CpuOps::mla_output(const MlaOutputArgs& a, Stream) {
  const int64_t num_tokens = a.latent.dim(0), num_heads = a.latent.dim(1), rank = a.latent.dim(2), v_dim = a.w_uv.n;
  const float* const* rows = row_pointers(a.latent.f32().data, num_tokens * num_heads, rank);
  const View<float> out = a.out.get(DType::kF32).f32();
  pool_.parallel_for(
      num_heads, kMinWorkPerThread / (rank * v_dim * num_tokens + 1) + 1, [&](int64_t begin, int64_t end) {
        thread_local std::vector<const float*> x;
        for (int64_t h = begin; h < end; ++h) {
          x.clear();
          for (int64_t t = 0; t < num_tokens; ++t) x.push_back(rows[t * num_heads + h]);
          const PackedMatrix& w = cpu::packed(a.w_uv).matrices[h];
          gemm(w, 0, w.num_tiles, x.data(), num_tokens,
               [&](int64_t t, int64_t tile, F32x16 value) { store_tile(out.row(t) + h * v_dim, tile, v_dim, value); });
        }
      });
}

#include "kernels/cpu/path_end.h"
