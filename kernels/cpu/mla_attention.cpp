// Multi-head latent attention in absorbed form over the paged latent cache, for decode and prefill rows alike.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rms_norm.h"
#include "kernels/cpu/rope.h"

#include "kernels/cpu/path_begin.h"

void CpuOps::mla_query(const MlaQueryArgs& a, Stream) {
  const int64_t num_tokens = a.q.dim(0), num_heads = a.q.dim(1), head_dim = a.q.dim(2);
  const int64_t nope = a.w_uk.k, rank = a.w_uk.n, rope = head_dim - nope;
  const float* const* rows = row_pointers(a.q.data, num_tokens * num_heads, head_dim);
  // Row pointers are by (token, head); one head needs those of a stride.
  pool_.parallel_for(num_heads, kMinWorkPerThread / (rank * nope * num_tokens + 1) + 1,
                     [&](int64_t begin, int64_t end) {
                       thread_local std::vector<const float*> x;
                       for (int64_t h = begin; h < end; ++h) {
                         x.clear();
                         for (int64_t t = 0; t < num_tokens; ++t) x.push_back(rows[t * num_heads + h]);
                         const PackedMatrix& w = cpu::packed(a.w_uk).matrices[h];
                         gemm(w, 0, w.num_tiles, x.data(), num_tokens, [&](int64_t t, int64_t tile, F32x16 value) {
                           store_tile(a.out.row(t) + h * (rank + rope), tile, rank, value);
                         });
                         for (int64_t t = 0; t < num_tokens; ++t)
                           rotate_pairs(x[t] + nope, a.cos_sin.row(t), rope, a.out.row(t) + h * (rank + rope) + rank);
                       }
                     });
}

void CpuOps::mla_cache_write(const MlaCacheWriteArgs& a, Stream) {
  const int64_t rank = a.norm_weight.dim(0), width = a.kv.row_size(), rope = width - rank;
  const int64_t num_slots = a.cache.dim(0) * a.cache.dim(1);
  for (int64_t t = 0; t < a.kv.dim(0); ++t) {
    CHECK(a.slots(t) >= 0 && a.slots(t) < num_slots, "KV slot {} of {}", a.slots(t), num_slots);
    float* slot = a.cache.data + a.slots(t) * width;
    rms_norm_row(a.kv.row(t), a.norm_weight.data, rank, a.eps, slot);
    rotate_pairs(a.kv.row(t) + rank, a.cos_sin.row(t), rope, slot + rank);
  }
}

namespace {

constexpr int kMaxPage = 64;
constexpr float kMasked = -std::numeric_limits<float>::infinity();

// scores[j] = q . k_j * scale for the `num` keys of one page, -infinity for the rest of its kMaxPage places; keys are
// `width` floats apart. Sixteen keys go together; the chain of each is its own.
inline void page_scores(const float* q, const float* keys, int64_t width, int num, float scale, float* scores) {
  for (int j0 = 0; j0 < kMaxPage; j0 += 16) {
    if (j0 >= num) {
      store(scores + j0, broadcast(kMasked));
      continue;
    }
    const int group = std::min(16, num - j0);
    const float* k = keys + j0 * width;
    F32x16 acc[16];
    for (int j = 0; j < 16; ++j) acc[j] = zero();
    int64_t i = 0;
    if (group == 16) {
      for (; i + 16 <= width; i += 16) {
        const F32x16 qi = load(q + i);
        for (int j = 0; j < 16; ++j) acc[j] = fma(qi, load(k + j * width + i), acc[j]);
      }
    } else {
      for (; i + 16 <= width; i += 16) {
        const F32x16 qi = load(q + i);
        for (int j = 0; j < group; ++j) acc[j] = fma(qi, load(k + j * width + i), acc[j]);
      }
    }
    if (i < width) {
      const F32x16 qi = load_part(q + i, int(width - i));
      for (int j = 0; j < group; ++j) acc[j] = fma(qi, load_part(k + j * width + i, int(width - i)), acc[j]);
    }
    store(scores + j0, reduce_add_16(acc) * broadcast(scale));
    for (int j = group; j < 16; ++j) scores[j0 + j] = kMasked;
  }
}

struct HeadState {
  float max = kMasked, sum = 0.0f;
};

// Online softmax over one page (arXiv 1805.02867): earlier results are rescaled when the maximum rises. Leaves the
// weights in `scores`, 0 in masked places.
inline void page_softmax(float* scores, int num, HeadState& state, float* out, int64_t rank) {
  F32x16 s[4];
  for (int v = 0; v < 4; ++v) s[v] = load(scores + v * 16);
  const float page_max = reduce_max(max(max(s[0], s[1]), max(s[2], s[3])));
  if (page_max > state.max) {
    const F32x16 alpha = state.max == kMasked ? zero() : exp(broadcast(state.max - page_max));
    state.sum = state.sum * first(alpha);
    int64_t i = 0;
    for (; i + 16 <= rank; i += 16) store(out + i, load(out + i) * alpha);
    for (; i < rank; ++i) out[i] = out[i] * first(alpha);
    state.max = page_max;
  }
  const F32x16 m = broadcast(state.max);
  for (int v = 0; v < 4; ++v) store(scores + v * 16, exp(s[v] - m));
  for (int j = num; j < kMaxPage; ++j) scores[j] = 0.0f;
  state.sum = state.sum + reduce_add((load(scores) + load(scores + 16)) + (load(scores + 32) + load(scores + 48)));
}

// out += sum over j of p[j] * v_j; v_j are the first `rank` floats of a key.
template <int V>
inline void accumulate(const float* p, const float* values, int64_t width, int num, float* out) {
  F32x16 acc[V];
  for (int v = 0; v < V; ++v) acc[v] = load(out + v * 16);
  for (int j = 0; j < num; ++j) {
    F32x16 pj = broadcast(p[j]);
    for (int v = 0; v < V; ++v) acc[v] = fma(pj, load(values + j * width + v * 16), acc[v]);
  }
  for (int v = 0; v < V; ++v) store(out + v * 16, acc[v]);
}

inline void page_values(const float* p, const float* values, int64_t width, int num, float* out, int64_t rank) {
  int64_t i = 0;
  for (; i + 128 <= rank; i += 128) accumulate<8>(p, values + i, width, num, out + i);
  for (; i + 16 <= rank; i += 16) accumulate<1>(p, values + i, width, num, out + i);
  for (; i < rank; ++i)
    for (int j = 0; j < num; ++j) out[i] = out[i] + p[j] * values[j * width + i];
}

}  // namespace

void CpuOps::mla_attention(const MlaAttentionArgs& a, Stream) {
  const int64_t num_tokens = a.q.dim(0), num_heads = a.q.dim(1), width = a.q.dim(2), rank = a.kv_lora_rank;
  const int64_t page_size = a.cache.dim(1), num_pages = a.cache.dim(0);
  CHECK(page_size <= kMaxPage, "pages of {} tokens", page_size);
  int64_t work = 0;
  for (int64_t t = 0; t < num_tokens; ++t) work += (a.positions(t) + 1) * num_heads * (width + rank);
  const int chunks = pool_.num_chunks(work, kMinWorkPerThread);
  // An item is a token and some of its heads; the heads of an item share each page while it is in cache. Rows late in
  // the sequence cost more, so items are dealt out to the chunks.
  const int64_t groups = num_tokens >= chunks ? 1 : std::min<int64_t>(num_heads, chunks);
  pool_.run(chunks, [&](int chunk) {
    alignas(64) float scores[kMaxPage];
    thread_local std::vector<HeadState> states;
    for (int64_t item = chunk; item < num_tokens * groups; item += chunks) {
      const int64_t t = item / groups, group = item % groups;
      const int64_t head_begin = num_heads * group / groups, head_end = num_heads * (group + 1) / groups;
      float* out = a.out.row(t);
      std::fill(out + head_begin * rank, out + head_end * rank, 0.0f);
      states.assign(size_t(num_heads), {});
      const int32_t* pages = a.page_table.row(a.seq_idx(t));
      const int64_t length = int64_t{a.positions(t)} + 1;
      for (int64_t begin = 0; begin < length; begin += page_size) {
        const int num = int(std::min(page_size, length - begin));
        const int64_t page = pages[begin / page_size];
        CHECK(page >= 0 && page < num_pages, "KV page {} of {}", page, num_pages);
        const float* keys = a.cache.row(page);
        for (int64_t h = head_begin; h < head_end; ++h) {
          page_scores(a.q.row(t) + h * width, keys, width, num, a.scale, scores);
          page_softmax(scores, num, states[size_t(h)], out + h * rank, rank);
          page_values(scores, keys, width, num, out + h * rank, rank);
        }
      }
      for (int64_t h = head_begin; h < head_end; ++h)
        for (int64_t i = h * rank; i < (h + 1) * rank; ++i) out[i] = out[i] / states[size_t(h)].sum;
    }
  });
}

void CpuOps::mla_output(const MlaOutputArgs& a, Stream) {
  const int64_t num_tokens = a.latent.dim(0), num_heads = a.latent.dim(1), rank = a.latent.dim(2), v_dim = a.w_uv.n;
  const float* const* rows = row_pointers(a.latent.data, num_tokens * num_heads, rank);
  pool_.parallel_for(num_heads, kMinWorkPerThread / (rank * v_dim * num_tokens + 1) + 1,
                     [&](int64_t begin, int64_t end) {
                       thread_local std::vector<const float*> x;
                       for (int64_t h = begin; h < end; ++h) {
                         x.clear();
                         for (int64_t t = 0; t < num_tokens; ++t) x.push_back(rows[t * num_heads + h]);
                         const PackedMatrix& w = cpu::packed(a.w_uv).matrices[h];
                         gemm(w, 0, w.num_tiles, x.data(), num_tokens, [&](int64_t t, int64_t tile, F32x16 value) {
                           store_tile(a.out.row(t) + h * v_dim, tile, v_dim, value);
                         });
                       }
                     });
}

#include "kernels/cpu/path_end.h"
