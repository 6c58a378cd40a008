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
  pool_.parallel_for(num_heads, kMinWorkPerThread / (rank * nope * num_tokens + 1) + 1, [&](int64_t begin, int64_t end) {
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

// scores[j] = q . k_j * scale for `num` keys of one page; keys are `width` floats apart. Sixteen dot products share one final
// reduction: lane sums of key j end up in lane j by the same tree for every j.
inline void page_scores(const float* q, const float* keys, int64_t width, int num, float scale, float* scores) {
  for (int j = 0; j < num; ++j) scores[j] = dot(q, keys + j * width, width) * scale;
}

struct HeadState {
  float max, sum;
};

// Online softmax over one page (arXiv 1805.02867): earlier results are rescaled when the maximum rises.
inline void page_softmax(float* scores, int num, HeadState& state, float* out, int64_t rank) {
  float page_max = scores[0];
  for (int j = 1; j < num; ++j) page_max = std::max(page_max, scores[j]);
  if (page_max > state.max) {
    float alpha = state.max == -std::numeric_limits<float>::infinity() ? 0.0f : first(exp(broadcast(state.max - page_max)));
    state.sum = state.sum * alpha;
    F32x16 va = broadcast(alpha);
    int64_t i = 0;
    for (; i + 16 <= rank; i += 16) store(out + i, load(out + i) * va);
    for (; i < rank; ++i) out[i] = out[i] * alpha;
    state.max = page_max;
  }
  for (int j = num; j < kMaxPage; ++j) scores[j] = -std::numeric_limits<float>::infinity();
  F32x16 m = broadcast(state.max);
  for (int j = 0; j < num; j += 16) store(scores + j, exp(load(scores + j) - m));
  for (int j = 0; j < num; ++j) state.sum = state.sum + scores[j];
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
  // An item is a (token, head); rows late in the sequence cost more, so items are dealt out to the chunks.
  const int64_t items = num_tokens * num_heads;
  const int chunks = pool_.num_chunks(work, kMinWorkPerThread);
  pool_.run(chunks, [&](int chunk) {
    alignas(64) float scores[kMaxPage];
    for (int64_t item = chunk; item < items; item += chunks) {
      const int64_t t = item / num_heads, h = item % num_heads;
      const float* q = a.q.data + item * width;
      float* out = a.out.data + (t * num_heads + h) * rank;
      std::fill(out, out + rank, 0.0f);
      HeadState state{-std::numeric_limits<float>::infinity(), 0.0f};
      const int32_t* pages = a.page_table.row(a.seq_idx(t));
      const int64_t length = int64_t{a.positions(t)} + 1;
      for (int64_t begin = 0; begin < length; begin += page_size) {
        const int num = int(std::min(page_size, length - begin));
        const int64_t page = pages[begin / page_size];
        CHECK(page >= 0 && page < num_pages, "KV page {} of {}", page, num_pages);
        const float* keys = a.cache.row(page);
        page_scores(q, keys, width, num, a.scale, scores);
        page_softmax(scores, num, state, out, rank);
        page_values(scores, keys, width, num, out, rank);
      }
      for (int64_t i = 0; i < rank; ++i) out[i] = out[i] / state.sum;
    }
  });
}

void CpuOps::mla_output(const MlaOutputArgs& a, Stream) {
  const int64_t num_tokens = a.latent.dim(0), num_heads = a.latent.dim(1), rank = a.latent.dim(2), v_dim = a.w_uv.n;
  const float* const* rows = row_pointers(a.latent.data, num_tokens * num_heads, rank);
  pool_.parallel_for(num_heads, kMinWorkPerThread / (rank * v_dim * num_tokens + 1) + 1, [&](int64_t begin, int64_t end) {
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
