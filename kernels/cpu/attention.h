// Softmax attention over one page of keys and values, shared by the latent and the grouped-query form. A row's pages
// are visited in ascending order, so the order of every sum is fixed by positions alone (docs/determinism.md).
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/cpu/simd.h"

#include "kernels/cpu/path_begin.h"

inline constexpr int kMaxPage = 64;
inline constexpr float kMasked = -std::numeric_limits<float>::infinity();

// scores[j] = q . k_j * scale for keys [begin, end) of one page, -infinity in the rest of its kMaxPage places; keys are
// `stride` floats apart. Sixteen keys go together; the chain of each is its own.
inline void page_scores(const float* q, const float* keys, int64_t width, int64_t stride, int begin, int end,
                        float scale, float* scores) {
  for (int j0 = 0; j0 < kMaxPage; j0 += 16) {
    if (j0 >= end || j0 + 16 <= begin) {
      store(scores + j0, broadcast(kMasked));
      continue;
    }
    const int group = std::min(16, end - j0);
    const float* k = keys + j0 * stride;
    F32x16 acc[16];
    for (int j = 0; j < 16; ++j) acc[j] = zero();
    int64_t i = 0;
    if (group == 16) {
      for (; i + 16 <= width; i += 16) {
        const F32x16 qi = load(q + i);
        for (int j = 0; j < 16; ++j) acc[j] = fma(qi, load(k + j * stride + i), acc[j]);
      }
    } else {
      for (; i + 16 <= width; i += 16) {
        const F32x16 qi = load(q + i);
        for (int j = 0; j < group; ++j) acc[j] = fma(qi, load(k + j * stride + i), acc[j]);
      }
    }
    if (i < width) {
      const F32x16 qi = load_part(q + i, int(width - i));
      for (int j = 0; j < group; ++j) acc[j] = fma(qi, load_part(k + j * stride + i, int(width - i)), acc[j]);
    }
    store(scores + j0, reduce_add_16(acc) * broadcast(scale));
    for (int j = group; j < 16; ++j) scores[j0 + j] = kMasked;
    for (int j = j0; j < begin; ++j) scores[j] = kMasked;
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

// out[i] += sum over j of p[j] * v_j[i] for values [begin, end), V * 16 components.
template <int V>
inline void accumulate_values(const float* p, const float* values, int64_t stride, int begin, int end, float* out) {
  F32x16 acc[V];
  for (int v = 0; v < V; ++v) acc[v] = load(out + v * 16);
  for (int j = begin; j < end; ++j) {
    F32x16 pj = broadcast(p[j]);
    for (int v = 0; v < V; ++v) acc[v] = fma(pj, load(values + j * stride + v * 16), acc[v]);
  }
  for (int v = 0; v < V; ++v) store(out + v * 16, acc[v]);
}

// out += sum over j of p[j] * v_j, `size` components; values are `stride` floats apart.
inline void page_values(const float* p, const float* values, int64_t stride, int begin, int end, float* out,
                        int64_t size) {
  int64_t i = 0;
  for (; i + 128 <= size; i += 128) accumulate_values<8>(p, values + i, stride, begin, end, out + i);
  for (; i + 64 <= size; i += 64) accumulate_values<4>(p, values + i, stride, begin, end, out + i);
  for (; i + 16 <= size; i += 16) accumulate_values<1>(p, values + i, stride, begin, end, out + i);
  for (; i < size; ++i)
    for (int j = begin; j < end; ++j) out[i] = out[i] + p[j] * values[j * stride + i];
}

#include "kernels/cpu/path_end.h"
