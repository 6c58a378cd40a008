// Expanded MLA of a prefill chunk, for Hopper: queries and keys of 192 elements (128 per head, 64 rotated ones, whose
// keys all heads share), values of 128. Keys and values of some heads and one part of the context are in memory
// (mla_prefill_sm90.cu expands them).
//
// A thread block takes one head and 128 rows, 64 for each of two consumer warpgroups; a producer fills the stages of
// 128 keys, and those of their values, by TMA. A consumer rounds its queries to bf16 into shared memory once, keeps
// weights and sums in registers, and issues the scores of the next keys before it adds the values of these, so that its
// softmax overlaps with the tensor cores' work for it and the other consumer. (Ping-pong scheduling of the warpgroups,
// and three warpgroups with 80 or 64 keys, were no faster.)
//
// A context of several parts takes one launch each: between them a row's sums, not yet divided, are where its result
// will be, and its reference and sum of weights in `stats`.
#pragma once

#include "kernels/cuda/attention/attention_sm90.cuh"
#include "kernels/cuda/elementwise/rope.cuh"
#include "kernels/cuda/gemm/wgmma.cuh"
#include "kernels/cuda/runtime/hopper.cuh"

namespace moectl::cuda::kernel {

constexpr int kMlaNope = 128, kMlaRope = 64, kMlaQuery = kMlaNope + kMlaRope, kMlaValue = 128;

struct MlaPrefillParams {
  const float* q;                  // [num_tokens, num_heads, 192]
  const float* cos_sin;            // [num_tokens, 64]
  float* out;                      // [num_tokens, num_heads, 128]
  float2* stats;                   // [num_tokens, num_heads]
  int num_tokens, first_position;  // of row 0
  int num_heads, first_head, part_heads;
  int key_begin, key_end;  // this part of the context
  float scale_log2;
  bool interleaved;
};

struct MlaPrefill {
  static constexpr int kGroups = 2, kKeys = 128, kRows = 64 * kGroups, kThreads = 128 * (kGroups + 1);
  static constexpr int kHeadsTogether = 8;
  static constexpr int kColumns = kKeys * 128;  // bytes of 64 columns of keys or values, swizzled
  static constexpr int kKeyBytes = 3 * kColumns, kValueBytes = 2 * kColumns;
  static constexpr int kQueryColumns = 64 * 128, kQueryBytes = 3 * kQueryColumns;  // of a warpgroup
  static constexpr int kBarrierBytes = 2 * 4 * 8;
  static constexpr int kSharedBytes = 1024 + kGroups * kQueryBytes + 2 * (kKeyBytes + kValueBytes) + kBarrierBytes;
  static_assert(kSharedBytes <= 232448);
};

// Addresses in shared memory. Barrier of stage i: + 8 i.
struct MlaPrefillBuffers {
  uint32_t queries, keys, values, keys_full, keys_empty, values_full, values_empty;
};

// A position in a pipeline of two stages.
struct PipelineState {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void advance() {
    stage ^= 1;
    if (stage == 0) phase ^= 1;
  }
};

// The 64 rows of a warpgroup from `token`, in bf16, the last part rotated. Rows beyond the last repeat it.
__device__ __forceinline__ void load_prefill_queries(const MlaPrefillParams& p, uint32_t to, int token, int head) {
  const int thread = threadIdx.x % 128;
  auto row_of = [&](int row) {
    return p.q + (int64_t{min(token + row, p.num_tokens - 1)} * p.num_heads + head) * kMlaQuery;
  };
  auto store = [&](int row, int unit, uint4 v) {
    const uint32_t at = to + unit / 8 * MlaPrefill::kQueryColumns + row * 128 + ((unit % 8 ^ row % 8) << 4);
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
  };
  auto pack = [](float4 a, float4 b) {
    return uint4{pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w)};
  };
  // All loads first. Of the rotated part four pairs at a time: elements 8 part .. + 7 where pairs are adjacent, else 4
  // part
  // .. + 3 of both halves.
  constexpr int kUnits = kMlaNope / 8, kHalf = kMlaRope / 2, kParts = kHalf / 4;  // units of eight elements
  float4 v[kUnits / 2][2], x[kParts / 2][2], cos[kParts / 2], sin[kParts / 2];
#pragma unroll
  for (int i = 0; i < kUnits / 2; ++i) {
    const int unit = i * 128 + thread;
    const auto* from = reinterpret_cast<const float4*>(row_of(unit / kUnits) + unit % kUnits * 8);
    v[i][0] = __ldg(from);
    v[i][1] = __ldg(from + 1);
  }
#pragma unroll
  for (int i = 0; i < kParts / 2; ++i) {
    const int row = (i * 128 + thread) / kParts, part = thread % kParts;
    const float* in = row_of(row) + kMlaNope;
    const float* table = p.cos_sin + int64_t{min(token + row, p.num_tokens - 1)} * kMlaRope + part * 4;
    x[i][0] = __ldg(reinterpret_cast<const float4*>(in + part * (p.interleaved ? 8 : 4)));
    x[i][1] = __ldg(reinterpret_cast<const float4*>(in + (p.interleaved ? part * 8 + 4 : kHalf + part * 4)));
    cos[i] = __ldg(reinterpret_cast<const float4*>(table));
    sin[i] = __ldg(reinterpret_cast<const float4*>(table + kHalf));
  }
#pragma unroll
  for (int i = 0; i < kUnits / 2; ++i) {
    const int unit = i * 128 + thread;
    store(unit / kUnits, unit % kUnits, pack(v[i][0], v[i][1]));
  }
#pragma unroll
  for (int i = 0; i < kParts / 2; ++i) {
    const int row = (i * 128 + thread) / kParts, part = thread % kParts;
    const float4 a = x[i][0], b = x[i][1], c = cos[i], s = sin[i];
    if (p.interleaved) {
      const float2 r0 = rotate(a.x, a.y, c.x, s.x), r1 = rotate(a.z, a.w, c.y, s.y), r2 = rotate(b.x, b.y, c.z, s.z),
                   r3 = rotate(b.z, b.w, c.w, s.w);
      store(row, kUnits + part,
            {pack_bf16(r0.x, r0.y), pack_bf16(r1.x, r1.y), pack_bf16(r2.x, r2.y), pack_bf16(r3.x, r3.y)});
    } else {
      const float2 r0 = rotate(a.x, b.x, c.x, s.x), r1 = rotate(a.y, b.y, c.y, s.y), r2 = rotate(a.z, b.z, c.z, s.z),
                   r3 = rotate(a.w, b.w, c.w, s.w);
      // Eight bytes of unit part / 2 of either half.
      auto store_half = [&](int unit, float v0, float v1, float v2, float v3) {
        const uint32_t at = to + 2 * MlaPrefill::kQueryColumns + row * 128 + ((unit ^ row % 8) << 4) + part % 2 * 8;
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(at), "r"(pack_bf16(v0, v1)), "r"(pack_bf16(v2, v3))
                     : "memory");
      };
      store_half(part / 2, r0.x, r1.x, r2.x, r3.x);
      store_half(4 + part / 2, r0.y, r1.y, r2.y, r3.y);
    }
  }
}

__device__ __forceinline__ void mla_prefill_consumer(const MlaPrefillParams& p, int first_token, int head, int end,
                                                     bool last, const MlaPrefillBuffers& b) {
  using namespace hopper;
  using S = MlaPrefill;
  constexpr int kSlices = S::kKeys / 16;
  const int group = threadIdx.x / 128, lane = threadIdx.x % 32, c = lane % 4 * 2;
  const int first_row = first_token + group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
  const uint32_t queries = b.queries + group * S::kQueryBytes;
  int token[2], position[2];
  for (int i = 0; i < 2; ++i) {
    token[i] = min(first_row + 8 * i, p.num_tokens - 1);
    position[i] = p.first_position + token[i];
  }
  auto row = [&](int i) { return int64_t{token[i]} * p.num_heads + p.first_head + head; };

  load_prefill_queries(p, queries, first_token + group * 64, p.first_head + head);
  fence_proxy_async();
  named_barrier_sync(1 + group, 128);

  float s[S::kKeys / 2], o[kMlaValue / 2];
  uint32_t w[kSlices][4];
  RowPair m = {-INFINITY, -INFINITY}, l = {0.0f, 0.0f};
  if (p.key_begin == 0) {
#pragma unroll
    for (int i = 0; i < kMlaValue / 2; ++i) o[i] = 0.0f;
  } else {  // continue from the parts before
    const float2 a = p.stats[row(0)], d = p.stats[row(1)];
    m = {a.x, d.x};
    if (c == 0) l = {a.y, d.y};
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < kMlaValue / 8; ++j) {
        const float2 v = *reinterpret_cast<const float2*>(p.out + row(i) * kMlaValue + j * 8 + c);
        o[4 * j + 2 * i] = v.x;
        o[4 * j + 2 * i + 1] = v.y;
      }
  }

  PipelineState keys, values;
  auto issue_scores = [&] {
    mbarrier_wait(b.keys_full + 8 * keys.stage, keys.phase);
    const uint32_t key = b.keys + keys.stage * S::kKeyBytes;
    wgmma_pin(s);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kMlaQuery / 16; ++k)
      WgmmaBf16<S::kKeys>::mma(s, wgmma_desc(queries + k / 4 * S::kQueryColumns + k % 4 * 32),
                               wgmma_desc(key + k / 4 * S::kColumns + k % 4 * 32), k > 0);
    wgmma_commit();
  };
  auto issue_values = [&] {
    mbarrier_wait(b.values_full + 8 * values.stage, values.phase);
    const uint64_t value = wgmma_desc(b.values + values.stage * S::kValueBytes, 1024, S::kColumns);
    wgmma_pin(o);
#pragma unroll
    for (int i = 0; i < kSlices * 4; ++i) asm volatile("" ::"r"(w[i / 4][i % 4]) : "memory");
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSlices; ++k) WgmmaBf16Reg<kMlaValue, 1>::mma(o, w[k], value + k * 128, 1);
    wgmma_commit();
  };
  auto keys_done = [&] {
    if (lane == 0) mbarrier_arrive(b.keys_empty + 8 * keys.stage);
    keys.advance();
  };
  auto values_done = [&] {
    if (lane == 0) mbarrier_arrive(b.values_empty + 8 * values.stage);
    values.advance();
  };
  // Masks the scores of keys from `start` that a row does not see; returns the reference for them.
  auto reference = [&](int start) {
    const bool part = start + S::kKeys - 1 > min(position[0], position[1]);
    if (__any_sync(0xffffffffu, part)) {
#pragma unroll
      for (int i = 0; i < S::kKeys / 2; ++i)
        if (start + i / 4 * 8 + c + i % 2 > position[i % 4 / 2]) s[i] = -INFINITY;
    }
    const RowPair max = row_max(s);
    return raise(m, {max.a * p.scale_log2, max.b * p.scale_log2});
  };

  issue_scores();
  wgmma_wait<0>();
  wgmma_pin(s);
  keys_done();
  {
    const RowPair m_new = reference(p.key_begin);
    rescale(o, l, m, m_new);
    m = m_new;
  }
  exponentials(s, p.scale_log2, p.scale_log2, m, l);
  pack_weights(s, w);
#pragma unroll 1
  for (int start = p.key_begin + S::kKeys; start < end; start += S::kKeys) {
    issue_scores();
    issue_values();
    wgmma_wait<1>();
    wgmma_pin(s);
    keys_done();
    const RowPair m_new = reference(start);
    l = {l.a * exp2_approx(m.a - m_new.a), l.b * exp2_approx(m.b - m_new.b)};
    exponentials(s, p.scale_log2, p.scale_log2, m_new, l);
    wgmma_wait<0>();
    wgmma_pin(o);
    values_done();
    RowPair done = {0.0f, 0.0f};
    rescale(o, done, m, m_new);
    m = m_new;
    pack_weights(s, w);
  }
  issue_values();
  l = {quad_sum(l.a), quad_sum(l.b)};
  wgmma_wait<0>();
  wgmma_pin(o);
  const float factor[2] = {last ? 1.0f / l.a : 1.0f, last ? 1.0f / l.b : 1.0f};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (first_row + 8 * i >= p.num_tokens) break;
    if (!last && c == 0) p.stats[row(i)] = i == 0 ? float2{m.a, l.a} : float2{m.b, l.b};
    float* out = p.out + row(i) * kMlaValue + c;
#pragma unroll
    for (int j = 0; j < kMlaValue / 8; ++j)
      *reinterpret_cast<float2*>(out + j * 8) = float2{o[4 * j + 2 * i] * factor[i], o[4 * j + 2 * i + 1] * factor[i]};
  }
}

// Grid: tiles of rows x heads. Blocks of the same heads run together, so that keys and values are read from memory few
// times; among kHeadsTogether heads the last tiles, which see most positions, start first, so that the last blocks are
// short.
__global__ void __launch_bounds__(MlaPrefill::kThreads, 1)
    mla_prefill(const __grid_constant__ MlaPrefillParams p, const __grid_constant__ CUtensorMap keys_map,
                const __grid_constant__ CUtensorMap rope_map) {
  using namespace hopper;
  using S = MlaPrefill;
  const int tiles = (p.num_tokens + S::kRows - 1) / S::kRows, together = blockIdx.x / (tiles * S::kHeadsTogether);
  const int i = blockIdx.x % (tiles * S::kHeadsTogether),
            heads = min(S::kHeadsTogether, p.part_heads - together * S::kHeadsTogether);
  const int head = together * S::kHeadsTogether + i % heads, first_token = (tiles - 1 - i / heads) * S::kRows;
  const int visible = p.first_position + min(first_token + S::kRows, p.num_tokens), end = min(p.key_end, visible);
  if (end <= p.key_begin) return;
  extern __shared__ uint8_t dynamic[];
  MlaPrefillBuffers b;
  b.queries = (smem_addr(dynamic) + 1023) & ~1023u;
  b.keys = b.queries + S::kGroups * S::kQueryBytes;
  b.values = b.keys + 2 * S::kKeyBytes;
  b.keys_full = b.values + 2 * S::kValueBytes;
  b.keys_empty = b.keys_full + 16;
  b.values_full = b.keys_empty + 16;
  b.values_empty = b.values_full + 16;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(b.keys_full + 8 * i, 1);
      mbarrier_init(b.values_full + 8 * i, 1);
      mbarrier_init(b.keys_empty + 8 * i, 4 * S::kGroups);
      mbarrier_init(b.values_empty + 8 * i, 4 * S::kGroups);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 128 * S::kGroups) {
    setmaxnreg_inc<240>();
    mla_prefill_consumer(p, first_token, head, end, visible <= p.key_end, b);
  } else {
    setmaxnreg_dec<24>();
    if (threadIdx.x == 128 * S::kGroups) {
      PipelineState keys, values;
      const int column = head * (kMlaNope + kMlaValue);
      auto load_keys = [&](int row) {
        const uint32_t bar = b.keys_full + 8 * keys.stage, to = b.keys + keys.stage * S::kKeyBytes;
        mbarrier_wait(b.keys_empty + 8 * keys.stage, keys.phase ^ 1);
        mbarrier_arrive_expect_tx(bar, S::kKeyBytes);
        tma_load_2d(to, &keys_map, bar, column, row);
        tma_load_2d(to + S::kColumns, &keys_map, bar, column + 64, row);
        tma_load_2d(to + 2 * S::kColumns, &rope_map, bar, 0, row);
        keys.advance();
      };
      const int rows = end - p.key_begin;
      load_keys(0);
      for (int row = 0; row < rows; row += S::kKeys) {
        if (row + S::kKeys < rows) load_keys(row + S::kKeys);
        const uint32_t bar = b.values_full + 8 * values.stage, to = b.values + values.stage * S::kValueBytes;
        mbarrier_wait(b.values_empty + 8 * values.stage, values.phase ^ 1);
        mbarrier_arrive_expect_tx(bar, S::kValueBytes);
        tma_load_2d(to, &keys_map, bar, column + kMlaNope, row);
        tma_load_2d(to + S::kColumns, &keys_map, bar, column + kMlaNope + 64, row);
        values.advance();
      }
    }
  }
}

}  // namespace moectl::cuda::kernel
