// Latent attention for Hopper: q [tokens, heads, 512 + 64] over pages of 64 bf16 latents, out [tokens, heads, 512].
//
// One thread block takes 64 heads of a row, as one tile of the matrix unit. Its output, 64 x 512 in f32, is split by
// columns over two warpgroups (L: 0-255, R: 256-511); the third warpgroup feeds pages to two buffers by TMA. Pages are
// taken in pairs, page 0 by L and page 1 by R:
//
//   matrix unit:  S0 = Q K0 (L) | S1 = Q K1 (R)   | O += P0 V0 (L, R) | O += P1 V1 (L, R) | next pair
//   beside it:                  | softmax of S0 (L) | softmax of S1 (R)  | page 0 of the next pair arrives
//
// so that a softmax always runs beside 1,000 cycles of matrix work. P goes through shared memory, in the place of the
// page's 64 rotary columns, which nobody needs once S is there. What bounds the loop is how early a buffer is free
// again: each half of a page is released (and loaded anew) as soon as the product that reads it last is done, and no
// product waits for the other warpgroup but for its operands. The reference m of the exponentials passes from page to
// page; it is raised only where a score exceeds it by 8 (in log2): exponentials up to 2^8 cost bf16 and f32 no
// precision, and the 128 accumulators a thread holds are rarely multiplied. Two blocks (a cluster) take 128 heads of a
// row; each loads half of every page into both (multicast), which halves the reads of L2 (without it: 319 us where 250
// are taken with it).
//
// attention_schedule.cuh deals the rows out to clusters; the partial results of a row that is cut go through scratch.
#include <algorithm>

#include "core/base/check.h"
#include "kernels/cuda/attention_schedule.cuh"
#include "kernels/cuda/attention_sm90.cuh"
#include "kernels/cuda/check.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/mla_attention_sm90.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

namespace moectl::cuda {
namespace kernel {
namespace {

using namespace hopper;

constexpr int kRank = 512, kWidth = 576, kPage = 64, kTile = 64, kChunks = kWidth / 64;
constexpr int kChunkBytes = 64 * 128, kPageBytes = kChunks * kChunkBytes;  // chunk: 64 rows of 64 columns, swizzled
constexpr int kConsumers = 256, kThreads = 384;
constexpr uint32_t kDescChunk = kChunkBytes / 16;

struct MlaParams {
  const float* q;
  const int32_t *page_table, *seq_idx, *positions;
  float* out;
  float4* partial;  // [blocks, 2][2][32][128]
  float* stats;     // [blocks, 2][2][64]: m, l
  int32_t* counters;
  int32_t* pieces;  // few rows: [rows][1 + kMaxShares], how many slots and which, for mla_combine; else null
  int num_tokens, num_heads, groups, max_pages;  // groups: of kCluster * 64 heads
  float scale_log2;
  bool whole_rows;
};

struct Shared {
  uint64_t full[2][2], empty[2][2];  // [buffer][half of the page]
  float m[2][kTile], l[2][kTile];    // by warpgroup
  ScheduleShared schedule;
};
constexpr int kSharedBytes = 1024 + 3 * kPageBytes + int(sizeof(Shared));
static_assert(kSharedBytes <= 232448);

enum NamedBarrier : uint32_t { kS0Issued = 1, kP0Ready, kP1Ready, kItemEnd, kLeft, kRight };

struct MlaPages {
  const int32_t* positions;
  int groups;
  __device__ int operator()(int row) const { return (positions[row / groups] + kPage) / kPage; }
};
using MlaSchedule = Schedule<2, 8, 8, 4, 2, MlaPages>;  // cuts fall between pairs of pages

// ------------------------------------------------------------------------------------------------ softmax

__device__ __forceinline__ RowPair load_rows(const float* v, int r) {
  return {v[r], v[r + 8]};
}

// The reference after a page with these scores.
__device__ __forceinline__ RowPair raised(float (&s)[32], int valid, float scale_log2, RowPair m) {
  if (valid < kPage) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 32; ++i)
      if (i / 4 * 8 + column + i % 2 >= valid) s[i] = -INFINITY;
  }
  const RowPair max = row_max(s);
  return raise(m, {max.a * scale_log2, max.b * scale_log2});
}

// The weights to a swizzled chunk, as the A operand that the other warpgroup reads.
__device__ __forceinline__ void store_weights(uint32_t chunk, const uint32_t (&w)[4][4]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const uint32_t row = chunk + (warp * 16 + lane % 16) * 128;
#pragma unroll
  for (int k = 0; k < 4; ++k)
    stmatrix_x4(row + (((2 * k + lane / 16) ^ (lane % 8)) << 4), w[k][0], w[k][1], w[k][2], w[k][3]);
}

// ------------------------------------------------------------------------------------------------ matrix products

struct Buffers {
  uint32_t q, page[2], full[2][2], empty[2][2];
  uint64_t q_desc;

  __device__ uint32_t weights(int b) const { return page[b] + 8 * kChunkBytes; }
};

// Tells every block of the cluster that this warp needs a half page no more.
template <int kCluster>
__device__ __forceinline__ void release(uint32_t empty) {
  const uint32_t lane = threadIdx.x % 32;
  if constexpr (kCluster == 1) {
    if (lane == 0) mbarrier_arrive(empty);
  } else {
    if (lane < kCluster) mbarrier_arrive_cluster(cluster_addr(empty, lane));
  }
}

// s = Q K^T for the page in buffer B, as two groups, each when its half of the page has arrived; `between` comes after
// the first.
template <int B, class Between>
__device__ __forceinline__ void issue_scores(float (&s)[32], const Buffers& bufs, uint32_t phase, Between&& between) {
  const uint64_t key = wgmma_desc(bufs.page[B]);
  wgmma_pin(s);
  mbarrier_wait(bufs.full[B][0], phase);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t at = (B * 4 + i) * kDescChunk;
#pragma unroll
    for (int k = 0; k < 4; ++k) WgmmaBf16<64>::mma(s, bufs.q_desc + at + 2 * k, key + at + 2 * k, i + k > 0);
  }
  wgmma_commit();
  between();
  mbarrier_wait(bufs.full[B][1], phase);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < 5; ++i) {
    const uint32_t at = (i == 4 ? 8 : (1 - B) * 4 + i) * kDescChunk;
#pragma unroll
    for (int k = 0; k < 4; ++k) WgmmaBf16<64>::mma(s, bufs.q_desc + at + 2 * k, key + at + 2 * k, 1);
  }
  wgmma_commit();
}

// o += P V for 256 columns of the page's values (column group `half`), P in registers or in the page's last chunk.
__device__ __forceinline__ void issue_values(float (&o)[128], const uint32_t (&w)[4][4], uint32_t page, int half) {
  const uint64_t value = wgmma_desc(page + half * 4 * kChunkBytes, 1024, kChunkBytes);
  wgmma_pin(o);
#pragma unroll
  for (int i = 0; i < 16; ++i) asm volatile("" ::"r"(w[i / 4][i % 4]) : "memory");
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) WgmmaBf16Reg<256, 1>::mma(o, w[k], value + k * 128, 1);
  wgmma_commit();
}
__device__ __forceinline__ void issue_values(float (&o)[128], uint32_t page, int half) {
  const uint64_t value = wgmma_desc(page + half * 4 * kChunkBytes, 1024, kChunkBytes);
  const uint64_t w = wgmma_desc(page + 8 * kChunkBytes);
  wgmma_pin(o);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) WgmmaBf16<256, 0, 1>::mma(o, w + 2 * k, value + k * 128, 1);
  wgmma_commit();
}

// Values behind the row's position may be anything, NaN too, and 0 x NaN is NaN: they become zeros. One warpgroup.
__device__ __forceinline__ void clear_values(uint32_t page, int valid, uint32_t barrier) {
  for (int i = threadIdx.x % 128; i < (kPage - valid) * 64; i += 128)
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(page + i % 8 * kChunkBytes + (valid + i / 64) * 128 +
                                                                  i / 8 % 8 * 16),
                 "r"(0)
                 : "memory");
  fence_proxy_async();
  named_barrier_sync(barrier, 128);
}

// ------------------------------------------------------------------------------------------------ begin and end of an
// item

// 64 heads of a row to bf16, swizzled chunks. 256 threads.
__device__ __forceinline__ void load_q(uint32_t dst, const float* q, int heads) {
  constexpr int kUnits = kTile * kWidth / 8, kBatch = 6;  // units of 8 numbers
#pragma unroll 1
  for (int base = threadIdx.x; base < kUnits; base += kConsumers * kBatch) {
    float4 v[kBatch][2];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int unit = base + i * kConsumers, row = unit / (kWidth / 8);
      const float4* src = reinterpret_cast<const float4*>(q + unit * 8);
      v[i][0] = row < heads ? __ldg(src) : float4{};
      v[i][1] = row < heads ? __ldg(src + 1) : float4{};
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int unit = base + i * kConsumers, row = unit / (kWidth / 8), column = unit % (kWidth / 8);
      const uint32_t at = dst + column / 8 * kChunkBytes + row * 128 + ((column % 8 ^ row % 8) << 4);
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(pack_bf16(v[i][0].x, v[i][0].y)),
                   "r"(pack_bf16(v[i][0].z, v[i][0].w)), "r"(pack_bf16(v[i][1].x, v[i][1].y)),
                   "r"(pack_bf16(v[i][1].z, v[i][1].w))
                   : "memory");
    }
  }
  fence_proxy_async();
}

// Divides by the sums and stores; `half`: which columns. A head beyond the last is not stored.
__device__ __forceinline__ void store_out(const MlaParams& p, const float (&o)[128], RowPair l, int row, int rank,
                                          int half) {
  const int r = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  const int head = (row % p.groups * int(gridDim.x / num_clusters_x()) + rank) * kTile + r;
  float* out = p.out + (int64_t{row / p.groups} * p.num_heads + head) * kRank + half * 256 + threadIdx.x % 4 * 2;
  const float ia = 1.0f / l.a, ib = 1.0f / l.b;
  if (head < p.num_heads) {
#pragma unroll
    for (int i = 0; i < 32; ++i) *reinterpret_cast<float2*>(out + i * 8) = float2{o[4 * i] * ia, o[4 * i + 1] * ia};
  }
  if (head + 8 < p.num_heads) {
#pragma unroll
    for (int i = 0; i < 32; ++i)
      *reinterpret_cast<float2*>(out + 8 * kRank + i * 8) = float2{o[4 * i + 2] * ib, o[4 * i + 3] * ib};
  }
}

// An item that is all of its row is stored; of a cut row the partial result is left, and the last block to come adds.
__device__ __forceinline__ void finish_item(const MlaParams& p, const MlaSchedule& s, Shared& shared, float (&o)[128],
                                            RowPair m, RowPair l, const AttentionItem& item, int rank, int half) {
  if (p.pieces && threadIdx.x == 0 && rank == 0 && item.begin == 0) {
    int32_t* pieces = p.pieces + item.row * (1 + kMaxShares);
    int n = 0;
    if (!item.whole()) s.for_each_piece(item, [&](int slot) { pieces[1 + n++] = slot; });
    pieces[0] = n;
  }
  if (item.whole()) return store_out(p, o, l, item.row, rank, half);
  const int cluster_size = int(gridDim.x / num_clusters_x()), tid = threadIdx.x % 128;
  const int r = tid / 32 * 16 + tid % 32 / 4;
  auto partial = [&](int slot) {
    return p.partial + ((int64_t{slot} * cluster_size + rank) * 2 + half) * 32 * 128 + tid;
  };
  auto stats_of = [&](int slot) { return p.stats + (int64_t{slot} * cluster_size + rank) * 128; };
  float4* to = partial(s.slot(item));
#pragma unroll
  for (int i = 0; i < 32; ++i) __stcg(to + i * 128, float4{o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]});
  if (half == 0 && tid % 4 == 0) {
    float* stats = stats_of(s.slot(item));
    stats[r] = m.a;
    stats[r + 8] = m.b;
    stats[64 + r] = l.a;
    stats[64 + r + 8] = l.b;
  }
  if (p.pieces) return;
  __threadfence();
  named_barrier_sync(kItemEnd, kConsumers);
  if (threadIdx.x == 0) {
    int parts = 0;
    s.for_each_piece(item, [&](int) { ++parts; });
    int32_t* counter = p.counters + item.row * cluster_size + rank;
    shared.schedule.last_block = atomicAdd(counter, 1) == parts - 1;
    if (shared.schedule.last_block) *counter = 0;
    __threadfence();
  }
  named_barrier_sync(kItemEnd, kConsumers);
  if (!shared.schedule.last_block) return;
  RowPair max = {-INFINITY, -INFINITY};
  s.for_each_piece(item, [&](int slot) {
    const float* stats = stats_of(slot);
    max = {fmaxf(max.a, __ldcg(stats + r)), fmaxf(max.b, __ldcg(stats + r + 8))};
  });
#pragma unroll
  for (int i = 0; i < 128; ++i) o[i] = 0.0f;
  l = {0.0f, 0.0f};
  s.for_each_piece(item, [&](int slot) {
    const float* stats = stats_of(slot);
    const float fa = exp2_approx(__ldcg(stats + r) - max.a), fb = exp2_approx(__ldcg(stats + r + 8) - max.b);
    l.a += fa * __ldcg(stats + 64 + r);
    l.b += fb * __ldcg(stats + 64 + r + 8);
    const float4* from = partial(slot);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const float4 v = __ldcg(from + i * 128);
      o[4 * i] += fa * v.x;
      o[4 * i + 1] += fa * v.y;
      o[4 * i + 2] += fb * v.z;
      o[4 * i + 3] += fb * v.w;
    }
  });
  store_out(p, o, l, item.row, rank, half);
}

// ------------------------------------------------------------------------------------------------ the three roles

template <int kCluster>
__device__ __forceinline__ void load_pages(const MlaParams& p, const MlaSchedule& s, const CUtensorMap* values_map,
                                           const CUtensorMap* rope_map, const Buffers& bufs, int rank) {
  constexpr uint32_t kHalf = 4 * kChunkBytes;
  const int lane = threadIdx.x % 32;
  uint32_t uses[2] = {0, 0};
  auto load = [&](const CUtensorMap* map, int b, uint32_t bar, int chunk, int page) {
    const uint32_t dst = bufs.page[b] + chunk * kChunkBytes;
    if constexpr (kCluster == 1)
      tma_load_3d(dst, map, bar, 0, page * kPage, chunk);
    else
      tma_load_3d_multicast(dst, map, bar, 0, page * kPage, chunk, uint16_t((1 << kCluster) - 1));
  };
  s.for_each([&](const AttentionItem& item) {
    const int begin = item.begin, end = item.end;
    if (lane == 0 && begin < end) {
      const int head = (item.row % p.groups * kCluster + rank) * kTile;
      prefetch_l2(p.q + (int64_t{item.row / p.groups} * p.num_heads + head) * kWidth,
                  min(kTile, p.num_heads - head) * kWidth * 4);
    }
    const int32_t* table = p.page_table + int64_t{p.seq_idx[item.row / p.groups]} * p.max_pages;
    int pages = 0;
    for (int i = begin; i < end; ++i) {
      const int j = (i - begin) % 32, b = (i - begin) % 2;
      if (j == 0) pages = i + lane < end ? table[i + lane] : 0;
      const int page = __shfl_sync(0xffffffffu, pages, j);
      if (lane == 0) {
        const uint32_t phase = uses[b] & 1;
        for (int h = 0; h < 2; ++h) {
          const uint32_t bar = bufs.full[b][h];
          mbarrier_wait(bufs.empty[b][h], phase ^ 1);
          mbarrier_arrive_expect_tx(bar, kHalf + h * kChunkBytes);
          load(values_map, b, bar, (b ^ h) * 4 + rank * (4 / kCluster), page);
          if (h == 1 && (kCluster == 1 || rank == b)) load(rope_map, b, bar, 8, page);
        }
      }
      __syncwarp();
      ++uses[b];
    }
  });
}

__device__ __forceinline__ int valid_keys(const MlaParams& p, const AttentionItem& item, int page) {
  return page + 1 < item.n ? kPage : p.positions[item.row / p.groups] + 1 - page * kPage;
}

template <int kCluster>
__device__ __forceinline__ void begin_item(const MlaParams& p, const Buffers& bufs, int row, int rank) {
  const int head = (row % p.groups * kCluster + rank) * kTile;
  load_q(bufs.q, p.q + (int64_t{row / p.groups} * p.num_heads + head) * kWidth, p.num_heads - head);
  named_barrier_sync(kItemEnd, kConsumers);
}

// Both warpgroups are done with Q here, and know the sums of each other.
__device__ __forceinline__ RowPair exchange_sums(Shared& shared, RowPair l, int half) {
  const int r = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  l = {quad_sum(l.a), quad_sum(l.b)};
  if (threadIdx.x % 4 == 0) {
    shared.l[half][r] = l.a;
    shared.l[half][r + 8] = l.b;
  }
  named_barrier_sync(kItemEnd, kConsumers);
  const RowPair a = load_rows(shared.l[0], r), b = load_rows(shared.l[1], r);
  return {a.a + b.a, a.b + b.b};
}

__device__ __forceinline__ void store_zeros(const MlaParams& p, int row, int rank, int half, float (&o)[128]) {
  if (p.pieces && threadIdx.x == 0 && rank == 0) p.pieces[row * (1 + kMaxShares)] = 0;
#pragma unroll
  for (int i = 0; i < 128; ++i) o[i] = 0.0f;
  store_out(p, o, {1.0f, 1.0f}, row, rank, half);
}

template <int kCluster>
__device__ __forceinline__ void run_left(const MlaParams& p, const MlaSchedule& s, Shared& shared, const Buffers& bufs,
                                         int rank) {
  const int r = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  const bool writer = threadIdx.x % 4 == 0;
  uint32_t uses = 0;
  float o[128], sc[32];
  uint32_t w[4][4];
  s.for_each([&](const AttentionItem& item) {
    const int end = item.end;
    if (item.n == 0) return store_zeros(p, item.row, rank, 0, o);
    begin_item<kCluster>(p, bufs, item.row, rank);
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] = 0.0f;
    RowPair l = {0.0f, 0.0f}, m = {-INFINITY, -INFINITY};
    bool second = false;  // page 1 of the pair before is still being added
#pragma unroll 1
    for (int i = item.begin; i < end; i += 2) {
      const int valid = valid_keys(p, item, i);
      if (valid < kPage) {
        mbarrier_wait(bufs.full[0][0], uses & 1);
        mbarrier_wait(bufs.full[0][1], uses & 1);
        clear_values(bufs.page[0], valid, kLeft);
      }
      issue_scores<0>(sc, bufs, uses & 1, [&] {
        if (!second) return;
        wgmma_wait<1>();
        release<kCluster>(bufs.empty[1][1]);
      });
      ++uses;
      const bool pair = i + 1 < end;
      if (pair) named_barrier_arrive(kS0Issued, kConsumers);
      wgmma_wait<0>();
      wgmma_pin(sc);
      wgmma_pin(o);
      const RowPair m0 = raised(sc, valid, p.scale_log2, m);
      rescale(o, l, m, m0);
      exponentials(sc, p.scale_log2, p.scale_log2, m0, l);
      pack_weights(sc, w);
      store_weights(bufs.weights(0), w);
      if (writer) {
        shared.m[0][r] = m0.a;
        shared.m[0][r + 8] = m0.b;
      }
      m = m0;
      fence_proxy_async();
      named_barrier_arrive(kP0Ready, kConsumers);
      issue_values(o, w, bufs.page[0], 0);
      wgmma_wait<0>();
      wgmma_pin(o);
      release<kCluster>(bufs.empty[0][0]);
      second = pair;
      if (!pair) break;
      named_barrier_sync(kP1Ready, kConsumers);
      const RowPair m1 = load_rows(shared.m[1], r);
      rescale(o, l, m, m1);
      m = m1;
      issue_values(o, bufs.page[1], 0);
    }
    wgmma_wait<0>();
    wgmma_pin(o);
    if (second) release<kCluster>(bufs.empty[1][1]);
    l = exchange_sums(shared, l, 0);
    finish_item(p, s, shared, o, m, l, item, rank, 0);
  });
}

template <int kCluster>
__device__ __forceinline__ void run_right(const MlaParams& p, const MlaSchedule& s, Shared& shared, const Buffers& bufs,
                                          int rank) {
  const int r = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  const bool writer = threadIdx.x % 4 == 0;
  uint32_t uses = 0;
  float o[128], sc[32];
  uint32_t w[4][4];
  s.for_each([&](const AttentionItem& item) {
    const int end = item.end;
    if (item.n == 0) return store_zeros(p, item.row, rank, 1, o);
    begin_item<kCluster>(p, bufs, item.row, rank);
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] = 0.0f;
    RowPair l = {0.0f, 0.0f}, m = {-INFINITY, -INFINITY};
#pragma unroll 1
    for (int i = item.begin; i < end; i += 2) {
      const bool pair = i + 1 < end;
      if (!pair) {
        named_barrier_sync(kP0Ready, kConsumers);
        const RowPair m0 = load_rows(shared.m[0], r);
        rescale(o, l, m, m0);
        m = m0;
        issue_values(o, bufs.page[0], 1);
        wgmma_wait<0>();
        wgmma_pin(o);
        release<kCluster>(bufs.empty[0][1]);
        break;
      }
      const int valid = valid_keys(p, item, i + 1);
      if (valid < kPage) {
        mbarrier_wait(bufs.full[1][0], uses & 1);
        mbarrier_wait(bufs.full[1][1], uses & 1);
        clear_values(bufs.page[1], valid, kRight);
      }
      named_barrier_sync(kS0Issued, kConsumers);
      issue_scores<1>(sc, bufs, uses & 1, [] {});
      ++uses;
      wgmma_wait<0>();  // meanwhile the unit has the left product; o cannot be touched earlier
      wgmma_pin(sc);
      named_barrier_sync(kP0Ready, kConsumers);
      const RowPair m0 = load_rows(shared.m[0], r);
      rescale(o, l, m, m0);
      issue_values(o, bufs.page[0], 1);
      const RowPair m1 = raised(sc, valid, p.scale_log2, m0);
      {  // l in the new reference; o cannot be touched before the product is done
        l.a *= exp2_approx(m0.a - m1.a);
        l.b *= exp2_approx(m0.b - m1.b);
      }
      exponentials(sc, p.scale_log2, p.scale_log2, m1, l);
      pack_weights(sc, w);
      store_weights(bufs.weights(1), w);
      if (writer) {
        shared.m[1][r] = m1.a;
        shared.m[1][r + 8] = m1.b;
      }
      m = m1;
      fence_proxy_async();
      named_barrier_arrive(kP1Ready, kConsumers);
      wgmma_wait<0>();
      wgmma_pin(o);
      release<kCluster>(bufs.empty[0][1]);
      RowPair done = {0.0f, 0.0f};
      rescale(o, done, m0, m1);
      issue_values(o, w, bufs.page[1], 1);
      wgmma_wait<0>();
      wgmma_pin(o);
      release<kCluster>(bufs.empty[1][0]);
    }
    l = exchange_sums(shared, l, 1);
    finish_item(p, s, shared, o, m, l, item, rank, 1);
  });
}

template <int kCluster>
__global__ void __launch_bounds__(kThreads, 1)
    mla_attention(const __grid_constant__ MlaParams p, const __grid_constant__ CUtensorMap values_map,
                  const __grid_constant__ CUtensorMap rope_map) {
  extern __shared__ uint8_t dynamic[];
  const uint32_t base = (smem_addr(dynamic) + 1023) & ~1023u;
  Shared& shared = *reinterpret_cast<Shared*>(dynamic + (base - smem_addr(dynamic)) + 3 * kPageBytes);
  Buffers bufs;
  bufs.q = base;
  bufs.q_desc = wgmma_desc(base);
  for (int b = 0; b < 2; ++b) {
    bufs.page[b] = base + (1 + b) * kPageBytes;
    for (int h = 0; h < 2; ++h) {
      bufs.full[b][h] = smem_addr(&shared.full[b][h]);
      bufs.empty[b][h] = smem_addr(&shared.empty[b][h]);
    }
  }
  if (threadIdx.x == 0) {
    for (int b = 0; b < 2; ++b)
      for (int h = 0; h < 2; ++h) {
        mbarrier_init(bufs.full[b][h], 1);
        mbarrier_init(bufs.empty[b][h], 4 * kCluster);
      }
    fence_mbarrier_init();
  }
  const int rank = kCluster == 1 ? 0 : int(cluster_ctarank()), cluster = blockIdx.x / kCluster;
  MlaSchedule s = {{p.positions, p.groups}, p.num_tokens, p.groups, p.whole_rows};
  s.make<kThreads>(shared.schedule, cluster, gridDim.x / kCluster);
  if constexpr (kCluster > 1) cluster_sync();
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    setmaxnreg_inc<232>();
    run_left<kCluster>(p, s, shared, bufs, rank);
  } else if (warpgroup == 1) {
    setmaxnreg_inc<232>();
    run_right<kCluster>(p, s, shared, bufs, rank);
  } else {
    setmaxnreg_dec<40>();
    if (threadIdx.x < kConsumers + 32) load_pages<kCluster>(p, s, &values_map, &rope_map, bufs, rank);
  }
  if constexpr (kCluster > 1) {
    __syncwarp();
    cluster_sync();  // nobody leaves while the other block may still write to its memory
  }
}

constexpr int kCombined = 4;  // groups of eight columns a block

// Adds the pieces of rows that were cut, where rows are so few that one block a tile would take long. grid (32 /
// kCombined * 2, blocks of a cluster, rows); the order of every sum is that of finish_item.
__global__ void __launch_bounds__(128) mla_combine(const __grid_constant__ MlaParams p) {
  const int row = blockIdx.z, rank = blockIdx.y, cluster_size = gridDim.y, half = blockIdx.x % 2, tid = threadIdx.x;
  const int first = blockIdx.x / 2 * kCombined, r = tid / 32 * 16 + tid % 32 / 4;
  const int32_t* slots = p.pieces + row * (1 + kMaxShares);
  const int parts = *slots++;
  if (parts == 0) return;
  auto stats_of = [&](int k) { return p.stats + (int64_t{slots[k]} * cluster_size + rank) * 128; };
  RowPair max = {-INFINITY, -INFINITY}, l = {0.0f, 0.0f};
#pragma unroll 4
  for (int k = 0; k < parts; ++k) max = {fmaxf(max.a, stats_of(k)[r]), fmaxf(max.b, stats_of(k)[r + 8])};
  float4 sum[kCombined] = {};
#pragma unroll 4
  for (int k = 0; k < parts; ++k) {
    const float* stats = stats_of(k);
    const float fa = exp2_approx(stats[r] - max.a), fb = exp2_approx(stats[r + 8] - max.b);
    l.a += fa * stats[64 + r];
    l.b += fb * stats[64 + r + 8];
    const float4* from = p.partial + ((int64_t{slots[k]} * cluster_size + rank) * 2 + half) * 32 * 128 + tid;
#pragma unroll
    for (int i = 0; i < kCombined; ++i) {
      const float4 v = from[(first + i) * 128];
      sum[i] = {sum[i].x + fa * v.x, sum[i].y + fa * v.y, sum[i].z + fb * v.z, sum[i].w + fb * v.w};
    }
  }
  const int head = (row % p.groups * cluster_size + rank) * kTile + r;
  float* out = p.out + (int64_t{row / p.groups} * p.num_heads + head) * kRank + half * 256 + first * 8 + tid % 4 * 2;
  const float ia = 1.0f / l.a, ib = 1.0f / l.b;
#pragma unroll
  for (int i = 0; i < kCombined; ++i) {
    if (head < p.num_heads) *reinterpret_cast<float2*>(out + i * 8) = float2{sum[i].x * ia, sum[i].y * ia};
    if (head + 8 < p.num_heads)
      *reinterpret_cast<float2*>(out + 8 * kRank + i * 8) = float2{sum[i].z * ib, sum[i].w * ib};
  }
}

int num_multiprocessors() {
  int device = 0, count = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

template <int kCluster>
void launch(const MlaParams& p, const CUtensorMap& values_map, const CUtensorMap& rope_map, int blocks,
            cudaStream_t stream) {
  CUDA_CHECK(cudaFuncSetAttribute(mla_attention<kCluster>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks / kCluster * kCluster));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kCluster, 1, 1};
  config.attrs = &cluster;
  config.numAttrs = 1;
  CUDA_CHECK(cudaLaunchKernelEx(&config, mla_attention<kCluster>, p, values_map, rope_map));
  if (!p.pieces) return;
  mla_combine<<<dim3(32 / kCombined * 2, kCluster, unsigned(p.num_tokens * p.groups)), 128, 0, stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

constexpr int64_t kSlotBytes = int64_t{kTile} * (kRank + 2) * 4;
constexpr int64_t kMaxBlocks = 256;
constexpr int kFewRows = 32;

}  // namespace
}  // namespace kernel

int64_t mla_attention_sm90_scratch_bytes() {
  return kernel::kMaxBlocks * 2 * kernel::kSlotBytes + kernel::kFewRows * (1 + kernel::kMaxShares) * 4;
}

bool mla_attention_sm90_fits(const MlaAttentionArgs& a, const AttentionScratch& scratch) {
  const int64_t tiles = (a.q.dim(1) + kernel::kTile - 1) / kernel::kTile;
  return a.kv_lora_rank == kernel::kRank && a.q.dim(2) == kernel::kWidth && a.cache.dim(1) == kernel::kPage &&
         a.cache.dtype == DType::kBF16 && scratch.num_bytes >= mla_attention_sm90_scratch_bytes() &&
         scratch.num_counters >= a.q.dim(0) * tiles && a.q.dim(0) * tiles <= INT32_MAX / 4096;
}

void mla_attention_sm90(const MlaAttentionArgs& a, const AttentionScratch& scratch, Stream stream) {
  using namespace kernel;
  const int tiles = int((a.q.dim(1) + kTile - 1) / kTile), cluster = tiles % 2 == 0 ? 2 : 1;
  const int blocks = std::min(num_multiprocessors(), int(kMaxBlocks));
  MlaParams p = {};
  p.q = a.q.data;
  p.page_table = a.page_table.data;
  p.seq_idx = a.seq_idx.data;
  p.positions = a.positions.data;
  p.out = a.out.data;
  p.partial = static_cast<float4*>(scratch.data);
  p.stats = reinterpret_cast<float*>(p.partial + kMaxBlocks * 2 * 2 * 32 * 128);
  p.counters = scratch.counters;
  p.num_tokens = int(a.q.dim(0));
  p.num_heads = int(a.q.dim(1));
  p.groups = tiles / cluster;
  p.max_pages = int(a.page_table.dim(1));
  p.scale_log2 = a.scale * kLog2e;
  p.whole_rows = scratch.deterministic;
  if (!p.whole_rows && p.num_tokens * p.groups <= kFewRows)
    p.pieces = reinterpret_cast<int32_t*>(p.stats + kMaxBlocks * 2 * 128);
  auto map = [&](int chunks) {
    return make_tensor_map({.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                            .data = a.cache.data,
                            .dims = {64, a.cache.dim(0) * kPage, kChunks},
                            .stride_bytes = {kWidth * 2, 128},
                            .box = {64, kPage, chunks},
                            .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
  };
  const cudaStream_t handle = static_cast<cudaStream_t>(stream.handle);
  if (cluster == 2)
    launch<2>(p, map(2), map(1), blocks, handle);
  else
    launch<1>(p, map(4), map(1), blocks, handle);
}

}  // namespace moectl::cuda
