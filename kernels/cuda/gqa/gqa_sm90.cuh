// What the two Hopper kernels of grouped-query attention share: arguments, the page layout in shared memory, and which
// rows belong to which of them.
#pragma once

#include "kernels/cuda/attention/attention_portable.cuh"
#include "kernels/cuda/attention/attention_sm90.cuh"

namespace moectl::cuda::kernel {

struct GqaParams {
  const float* q;
  const int32_t *page_table, *seq_idx, *positions;
  const float* sinks;
  float* out;
  float* partial;  // [blocks, 2][16][head_dim]
  float* stats;    // [blocks, 2][2][16]: m, l
  int32_t* counters;
  int num_tokens, num_heads, num_kv_heads, max_pages, window, chunk;
  float scale, temperature_floor, temperature_scale;
  bool whole_rows;
  int prefill_tile;  // tokens per tile of gqa_prefill.cuh; 0: every row belongs to gqa_attention_sm90.cu
};

constexpr int kGqaPage = 64;

// A page of one KV head: 64 keys, then 64 values, as kDim / 64 chunks of 64 columns, rows of 128 bytes, swizzled.
template <int kDim>
struct GqaPageLayout {
  static constexpr int kChunks = kDim / 64, kChunkBytes = 2 * kGqaPage * 128, kBytes = kChunks * kChunkBytes;
};

// Whether the tile of `token` is one run of consecutive positions of one sequence. (Rows of a sequence are adjacent in
// a step, ascending.)
__device__ inline bool in_prefill_tile(const GqaParams& p, int token) {
  if (p.prefill_tile == 0) return false;
  const int first = token / p.prefill_tile * p.prefill_tile, last = first + p.prefill_tile - 1;
  return last < p.num_tokens && p.positions[first] >= 0 && p.seq_idx[first] == p.seq_idx[last] &&
         p.positions[last] - p.positions[first] == last - first;
}

// The factor of a row's sum of weighted values: 1 / (l + the sink's weight). Either of the two may be far larger.
__device__ __forceinline__ float normalizer(const GqaParams& p, int head, float m, float l) {
  if (!p.sinks) return 1.0f / l;
  const float sink = p.sinks[head] * kLog2e, top = fmaxf(m, sink), scale = exp2_approx(m - top);
  return scale / (l * scale + exp2_approx(sink - top));
}

}  // namespace moectl::cuda::kernel
