// Softmax attention over one page of keys and values, shared by the latent and the grouped-query form. A row's pages
// are visited in ascending order, so the order of every sum is fixed by positions alone (docs/determinism.md).
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/cpu/simd.h"

#include "kernels/cpu/path_begin.h"

inline constexpr int kMaxPage = 64;
inline constexpr float kMasked = -std::numeric_limits<float>::infinity();

// scores[h][j] = q_h . k_j * scale for H queries and the keys [begin, end) of one page, -infinity in the rest of a
// row's kMaxPage places; keys are `stride` floats apart. H x 16 / H dot products stand in registers together, so that a
// key is loaded once for H queries; the chain of each is its own.
template <int H>
inline void page_scores(const float* const* q, const float* keys, int64_t width, int64_t stride, int begin, int end,
                        float scale, float (*scores)[kMaxPage]) {
  constexpr int kKeys = 16 / H;
  for (int j0 = 0; j0 < kMaxPage; j0 += kKeys) {
    const int num = std::min(kKeys, end - j0);
    if (num <= 0 || j0 + kKeys <= begin) {
      for (int h = 0; h < H; ++h) std::fill_n(scores[h] + j0, kKeys, kMasked);
      continue;
    }
    const float* k = keys + j0 * stride;
    F32x16 acc[16], qi[H];
    for (F32x16& a : acc) a = zero();
    auto add = [&](int j, F32x16 key) {
      for (int h = 0; h < H; ++h) acc[h * kKeys + j] = fma(qi[h], key, acc[h * kKeys + j]);
    };
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) {
      for (int h = 0; h < H; ++h) qi[h] = load(q[h] + i);
      if (num == kKeys)
        for (int j = 0; j < kKeys; ++j) add(j, load(k + j * stride + i));
      else
        for (int j = 0; j < num; ++j) add(j, load(k + j * stride + i));
    }
    if (i < width) {
      for (int h = 0; h < H; ++h) qi[h] = load_part(q[h] + i, int(width - i));
      for (int j = 0; j < num; ++j) add(j, load_part(k + j * stride + i, int(width - i)));
    }
    alignas(64) float sums[16];
    store(sums, reduce_add_16(acc) * broadcast(scale));
    for (int h = 0; h < H; ++h)
      for (int j = 0; j < kKeys; ++j) scores[h][j0 + j] = j < num && j0 + j >= begin ? sums[h * kKeys + j] : kMasked;
  }
}

struct HeadState {
  float max = kMasked, sum = 0.0f;
};

// Online softmax over one page (arXiv 1805.02867): earlier results are rescaled when the maximum rises. Leaves the
// weights in `scores`, 0 outside of [begin, end). `out` is the head's running sum of `size` values.
inline void page_softmax(float* scores, int begin, int end, HeadState& state, float* out, int64_t size) {
  F32x16 s[4];
  for (int v = 0; v < 4; ++v) s[v] = load(scores + v * 16);
  const float page_max = reduce_max(max(max(s[0], s[1]), max(s[2], s[3])));
  if (page_max > state.max) {
    const F32x16 alpha = state.max == kMasked ? zero() : exp(broadcast(state.max - page_max));
    state.sum = state.sum * first(alpha);
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) store(out + i, load(out + i) * alpha);
    for (; i < size; ++i) out[i] = out[i] * first(alpha);
    state.max = page_max;
  }
  const F32x16 m = broadcast(state.max);
  for (int v = 0; v < 4; ++v) store(scores + v * 16, exp(s[v] - m));
  for (int j = 0; j < begin; ++j) scores[j] = 0.0f;
  for (int j = end; j < kMaxPage; ++j) scores[j] = 0.0f;
  state.sum = state.sum + reduce_add((load(scores) + load(scores + 16)) + (load(scores + 32) + load(scores + 48)));
}

// out[h][i] += sum over j of p[h][j] * v_j[i] for values [begin, end), V * 16 components.
template <int H, int V>
inline void accumulate_values(const float (*p)[kMaxPage], const float* values, int64_t stride, int begin, int end,
                              float* const* out, int64_t i) {
  F32x16 acc[H][V];
  for (int h = 0; h < H; ++h)
    for (int v = 0; v < V; ++v) acc[h][v] = load(out[h] + i + v * 16);
  for (int j = begin; j < end; ++j) {
    F32x16 value[V];
    for (int v = 0; v < V; ++v) value[v] = load(values + j * stride + i + v * 16);
    for (int h = 0; h < H; ++h) {
      const F32x16 pj = broadcast(p[h][j]);
      for (int v = 0; v < V; ++v) acc[h][v] = fma(pj, value[v], acc[h][v]);
    }
  }
  for (int h = 0; h < H; ++h)
    for (int v = 0; v < V; ++v) store(out[h] + i + v * 16, acc[h][v]);
}

// out[h] += sum over j of p[h][j] * v_j, `size` components; values are `stride` floats apart.
template <int H>
inline void page_values(const float (*p)[kMaxPage], const float* values, int64_t stride, int begin, int end,
                        float* const* out, int64_t size) {
  int64_t i = 0;
  for (; i + 64 <= size; i += 64) accumulate_values<H, 4>(p, values, stride, begin, end, out, i);
  for (; i + 16 <= size; i += 16) accumulate_values<H, 1>(p, values, stride, begin, end, out, i);
  for (; i < size; ++i)
    for (int h = 0; h < H; ++h)
      for (int j = begin; j < end; ++j) out[h][i] = out[h][i] + p[h][j] * values[j * stride + i];
}

// One page of keys and values for one row and the `num_heads` query heads that share them.
struct AttentionPage {
  const float *keys, *values;
  int64_t key_stride, value_stride;
  int begin, end;  // the positions that the row sees
};
struct AttentionHeads {
  const float* q;  // [num_heads, key_size]
  float* out;      // [num_heads, value_size]: running sums
  HeadState* states;
  int64_t num_heads, key_size, value_size;
  float scale;
};

template <int H>
inline void attend_heads(const AttentionPage& page, const AttentionHeads& heads, int64_t first) {
  alignas(64) float scores[H][kMaxPage];
  const float* q[H];
  float* out[H];
  for (int h = 0; h < H; ++h) {
    q[h] = heads.q + (first + h) * heads.key_size;
    out[h] = heads.out + (first + h) * heads.value_size;
  }
  page_scores<H>(q, page.keys, heads.key_size, page.key_stride, page.begin, page.end, heads.scale, scores);
  for (int h = 0; h < H; ++h)
    page_softmax(scores[h], page.begin, page.end, heads.states[first + h], out[h], heads.value_size);
  page_values<H>(scores, page.values, page.value_stride, page.begin, page.end, out, heads.value_size);
}

// How many heads go together changes no bit of any.
inline void attend(const AttentionPage& page, const AttentionHeads& heads) {
  int64_t h = 0;
  for (; h + 4 <= heads.num_heads; h += 4) attend_heads<4>(page, heads, h);
  for (; h + 2 <= heads.num_heads; h += 2) attend_heads<2>(page, heads, h);
  for (; h < heads.num_heads; ++h) attend_heads<1>(page, heads, h);
}

// Divides the running sums by the sums of the weights.
inline void finish_heads(const AttentionHeads& heads) {
  for (int64_t h = 0; h < heads.num_heads; ++h)
    for (int64_t i = 0; i < heads.value_size; ++i) {
      float& out = heads.out[h * heads.value_size + i];
      out = out / heads.states[h].sum;
    }
}

#include "kernels/cpu/path_end.h"
