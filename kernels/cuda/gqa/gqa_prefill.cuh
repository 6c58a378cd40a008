// Grouped-query attention of prompt rows for Hopper: tiles of consecutive tokens of one sequence share every page.
//
// A thread block takes one KV head and prefill_tile tokens: two consumer warpgroups with 64 rows (token, query head of
// the group) each, and a producer that loads pages into shared memory stages by TMA. A consumer keeps queries (except
// of 256-wide heads) and weights in registers, and issues the scores of a page before it adds the values of the
// previous one, so that its softmax overlaps with the tensor cores. Rows that share pages see different positions:
// scores outside a row's own are masked. A row's result depends on the row and its sequence alone.
#pragma once

#include "kernels/cuda/gemm/wgmma.cuh"
#include "kernels/cuda/gqa/gqa_sm90.cuh"
#include "kernels/cuda/runtime/hopper.cuh"

namespace moectl::cuda::kernel {

template <int kDim>
struct GqaPrefill {
  using Layout = GqaPageLayout<kDim>;
  static constexpr int kConsumers = 256, kThreads = 384, kStages = kDim == 64 ? 8 : kDim == 128 ? 5 : 2;
  static constexpr bool kQueriesInRegisters = kDim < 256;
  static constexpr int kQueryBytes = kQueriesInRegisters ? 0 : 64 * kDim * 2;  // per warpgroup
  struct Shared {
    uint64_t full[kStages], empty[kStages];
  };
  static constexpr int kSharedBytes = 1024 + kStages * Layout::kBytes + 2 * kQueryBytes + int(sizeof(Shared));
  static_assert(kSharedBytes <= 232448);
};

// A thread's two rows.
struct GqaPrefillRows {
  int token[2], head[2], position[2], first[2];
  bool valid[2];
};

template <int kDim>
__device__ __forceinline__ void gqa_prefill_consumer(const GqaParams& p, int first_token, int kv_head, int first_page,
                                                     int last_page, int tile_first, int tile_last, uint32_t stages,
                                                     uint32_t queries, uint32_t full, uint32_t empty) {
  using namespace hopper;
  using P = GqaPrefill<kDim>;
  using Layout = GqaPageLayout<kDim>;
  const int group = p.num_heads / p.num_kv_heads, tokens = 64 / group, warpgroup = threadIdx.x / 128;
  const int lane = threadIdx.x % 32, c = lane % 4 * 2;
  GqaPrefillRows rows;
  float scale[2];
  for (int i = 0; i < 2; ++i) {
    const int r = threadIdx.x % 128 / 32 * 16 + lane / 4 + 8 * i;
    rows.valid[i] = r < tokens * group;
    rows.token[i] = first_token + warpgroup * tokens + min(r / group, tokens - 1);
    rows.head[i] = kv_head * group + r % group;
    rows.position[i] = p.positions[rows.token[i]];
    rows.first[i] = first_visible(rows.position[i], p.window, p.chunk);
    scale[i] = row_scale(p.scale, rows.position[i], p.temperature_floor, p.temperature_scale) * kLog2e;
  }
  auto row = [&](int i) { return (int64_t{rows.token[i]} * p.num_heads + rows.head[i]) * kDim; };

  uint32_t q[P::kQueriesInRegisters ? kDim / 16 : 1][4];
  const uint32_t query = queries + warpgroup * P::kQueryBytes;
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = k * 16 + i / 2 * 8 + c;
      const float2 v = rows.valid[i % 2] ? *reinterpret_cast<const float2*>(p.q + row(i % 2) + column) : float2{};
      if constexpr (P::kQueriesInRegisters) {
        q[k][i] = pack_bf16(v.x, v.y);
      } else {
        const int r = threadIdx.x % 128 / 32 * 16 + lane / 4 + i % 2 * 8;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(query + column / 64 * 64 * 128 + r * 128 +
                                                     ((column % 64 / 8 ^ r % 8) << 4) + c * 2),
                     "r"(pack_bf16(v.x, v.y))
                     : "memory");
      }
    }
  if constexpr (!P::kQueriesInRegisters) {
    fence_proxy_async();
    named_barrier_sync(1 + warpgroup, 128);
  }

  float s[32], o[kDim / 2];
  uint32_t w[4][4];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) o[i] = 0.0f;
  RowPair m = {-INFINITY, -INFINITY}, l = {0.0f, 0.0f};
  int stage = 0, previous = 0;
  uint32_t phase = 0;

  auto issue_scores = [&] {
    const uint32_t page = stages + stage * Layout::kBytes;
    wgmma_pin(s);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const uint64_t key = wgmma_desc(page + k / 4 * Layout::kChunkBytes + k % 4 * 32);
      if constexpr (P::kQueriesInRegisters)
        WgmmaBf16Reg<64>::mma(s, q[k], key, k > 0);
      else
        WgmmaBf16<64>::mma(s, wgmma_desc(query + k / 4 * 64 * 128 + k % 4 * 32), key, k > 0);
    }
    wgmma_commit();
  };
  auto issue_values = [&](int at) {
    const uint64_t value = wgmma_desc(stages + at * Layout::kBytes + kGqaPage * 128, 1024, Layout::kChunkBytes);
    wgmma_pin(o);
#pragma unroll
    for (int i = 0; i < 16; ++i) asm volatile("" ::"r"(w[i / 4][i % 4]) : "memory");
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) WgmmaBf16Reg<kDim, 1>::mma(o, w[k], value + k * 128, 1);
    wgmma_commit();
  };
  auto begin_page = [&](int page) {
    mbarrier_wait(full + 8 * stage, phase);
    // Positions that no row of the tile sees may hold NaN, and 0 x NaN is NaN: their values become zeros.
    const int start = page * kGqaPage, low = tile_first - start, high = tile_last - start;
    if (low > 0 || high < kGqaPage - 1) {
      for (int i = threadIdx.x % 128; i < kGqaPage * kDim / 8; i += 128) {
        const int j = i / (kDim / 8), unit = i % (kDim / 8);
        if (j < low || j > high)
          asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(stages + stage * Layout::kBytes +
                                                                        unit / 8 * Layout::kChunkBytes +
                                                                        (kGqaPage + j) * 128 + unit % 8 * 16),
                       "r"(0)
                       : "memory");
      }
      fence_proxy_async();
      named_barrier_sync(1 + warpgroup, 128);
    }
  };
  // Masks the page's scores; returns the reference for them.
  auto mask_scores = [&](int page) {
    const int start = page * kGqaPage;
    const bool part =
        start < max(rows.first[0], rows.first[1]) || start + kGqaPage - 1 > min(rows.position[0], rows.position[1]);
    if (__any_sync(0xffffffffu, part)) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int position = start + i / 4 * 8 + c + i % 2, r = i % 4 / 2;
        if (position < rows.first[r] || position > rows.position[r]) s[i] = -INFINITY;
      }
    }
    RowPair max = row_max(s);
    max = {max.a * scale[0], max.b * scale[1]};
    return raise(m, max);
  };
  auto safe = [](RowPair v) { return RowPair{v.a == -INFINITY ? 0.0f : v.a, v.b == -INFINITY ? 0.0f : v.b}; };
  auto advance = [&] {
    if (++stage == P::kStages) {
      stage = 0;
      phase ^= 1;
    }
  };

  begin_page(first_page);
  issue_scores();
  wgmma_wait<0>();
  wgmma_pin(s);
  m = mask_scores(first_page);
  exponentials(s, scale[0], scale[1], safe(m), l);
  pack_weights(s, w);
#pragma unroll 1
  for (int page = first_page + 1; page <= last_page; ++page) {
    previous = stage;
    advance();
    begin_page(page);
    issue_scores();
    issue_values(previous);
    wgmma_wait<1>();
    wgmma_pin(s);
    const RowPair m_new = mask_scores(page), from = safe(m), to = safe(m_new);
    l = {l.a * exp2_approx(from.a - to.a), l.b * exp2_approx(from.b - to.b)};
    exponentials(s, scale[0], scale[1], to, l);
    wgmma_wait<0>();
    wgmma_pin(o);
    if (lane == 0) mbarrier_arrive(empty + 8 * previous);
    RowPair done = {0.0f, 0.0f};
    rescale(o, done, from, to);
    m = m_new;
    pack_weights(s, w);
  }
  issue_values(stage);
  wgmma_wait<0>();
  wgmma_pin(o);
  l = {quad_sum(l.a), quad_sum(l.b)};
  const float factor[2] = {rows.valid[0] ? normalizer(p, rows.head[0], m.a, l.a) : 0.0f,
                           rows.valid[1] ? normalizer(p, rows.head[1], m.b, l.b) : 0.0f};
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (rows.valid[i]) {
      float* out = p.out + row(i) + c;
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j)
        *reinterpret_cast<float2*>(out + j * 8) =
            float2{o[4 * j + 2 * i] * factor[i], o[4 * j + 2 * i + 1] * factor[i]};
    }
}

// Grid (num_kv_heads, tiles): the last tiles, which see most positions, start first.
template <int kDim>
__global__ void __launch_bounds__(GqaPrefill<kDim>::kThreads, 1)
    gqa_prefill(const __grid_constant__ GqaParams p, const __grid_constant__ CUtensorMap map) {
  using namespace hopper;
  using P = GqaPrefill<kDim>;
  using Layout = GqaPageLayout<kDim>;
  const int first_token = int(gridDim.y - 1 - blockIdx.y) * p.prefill_tile, kv_head = blockIdx.x;
  if (!in_prefill_tile(p, first_token)) return;
  extern __shared__ uint8_t dynamic[];
  const uint32_t stages = (smem_addr(dynamic) + 1023) & ~1023u, queries = stages + P::kStages * Layout::kBytes;
  auto& shared = *reinterpret_cast<typename P::Shared*>(dynamic + (queries - smem_addr(dynamic)) + 2 * P::kQueryBytes);
  const uint32_t full = smem_addr(shared.full), empty = smem_addr(shared.empty);
  if (threadIdx.x == 0) {
    for (int i = 0; i < P::kStages; ++i) {
      mbarrier_init(full + 8 * i, 1);
      mbarrier_init(empty + 8 * i, P::kConsumers / 32);
    }
    fence_mbarrier_init();
  }
  const int tile_first = first_visible(p.positions[first_token], p.window, p.chunk);
  const int tile_last = p.positions[first_token] + p.prefill_tile - 1;
  const int first_page = tile_first / kGqaPage, last_page = tile_last / kGqaPage;
  __syncthreads();
  if (threadIdx.x < P::kConsumers) {
    setmaxnreg_inc<240>();
    gqa_prefill_consumer<kDim>(p, first_token, kv_head, first_page, last_page, tile_first, tile_last, stages, queries,
                               full, empty);
  } else {
    setmaxnreg_dec<24>();
    if (threadIdx.x == P::kConsumers) {
      const int32_t* table = p.page_table + int64_t{p.seq_idx[first_token]} * p.max_pages;
      int stage = 0;
      uint32_t phase = 0;
      for (int page = first_page; page <= last_page; ++page) {
        const int row = (table[page] * p.num_kv_heads + kv_head) * 2 * kGqaPage;
        mbarrier_wait(empty + 8 * stage, phase ^ 1);
        mbarrier_arrive_expect_tx(full + 8 * stage, Layout::kBytes);
        for (int i = 0; i < Layout::kChunks; ++i)
          tma_load_2d(stages + stage * Layout::kBytes + i * Layout::kChunkBytes, &map, full + 8 * stage, i * 64, row);
        if (++stage == P::kStages) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
  }
}

}  // namespace moectl::cuda::kernel
