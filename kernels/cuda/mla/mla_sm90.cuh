// The parts of mla_attention_sm90.cu, which describes shapes and schedule: arguments and shared memory, softmax, matrix
// products, prologue and epilogue of a row.
#pragma once

#include "kernels/cuda/attention/attention_schedule.cuh"
#include "kernels/cuda/attention/attention_sm90.cuh"
#include "kernels/cuda/gemm/wgmma.cuh"
#include "kernels/cuda/runtime/hopper.cuh"

namespace moectl::cuda::kernel::mla {

using namespace hopper;

constexpr int kRank = 512, kWidth = 576, kPage = 64, kTile = 64, kChunks = kWidth / 64;
constexpr int kChunkBytes = 64 * 128, kPageBytes = kChunks * kChunkBytes;  // chunk: 64 rows of 64 columns, swizzled
constexpr int kConsumers = 256, kThreads = 384;
constexpr uint32_t kDescChunk = kChunkBytes / 16;

struct MlaParams {
  const void* q;
  const int32_t *page_table, *seq_idx, *positions;
  void* out;
  bool bf16;        // q and out; else f32
  float4* partial;  // [blocks, 2][2][32][128]
  float* stats;     // [blocks, 2][2][64]: m, l
  int32_t* counters;
  int32_t* splits;  // few rows: [rows][1 + kMaxParts], number of splits and their slots, for mla_combine; else null
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
using MlaSchedule = Schedule<2, 8, 8, 4, 2, MlaPages>;  // rows are split between pairs of pages

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

// Weights to a swizzled chunk, as the A operand of the other warpgroup.
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

// Consumer release of a half page by this warp, to every block of the cluster.
template <int kCluster>
__device__ __forceinline__ void release(uint32_t empty) {
  const uint32_t lane = threadIdx.x % 32;
  if constexpr (kCluster == 1) {
    if (lane == 0) mbarrier_arrive(empty);
  } else {
    if (lane < kCluster) mbarrier_arrive_cluster(cluster_addr(empty, lane));
  }
}

// s = Q K^T for the page in stage B, as two wgmma groups, each when its half of the page has arrived; `between` runs
// after the first.
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

// Values after the row's position may be anything, even NaN, and 0 x NaN is NaN: they become zeros. One warpgroup.
__device__ __forceinline__ void clear_values(uint32_t page, int valid, uint32_t barrier) {
  for (int i = threadIdx.x % 128; i < (kPage - valid) * 64; i += 128)
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(page + i % 8 * kChunkBytes + (valid + i / 64) * 128 +
                                                                  i / 8 % 8 * 16),
                 "r"(0)
                 : "memory");
  fence_proxy_async();
  named_barrier_sync(barrier, 128);
}

// ------------------------------------------------------------------------------------------------ prologue, epilogue

constexpr int kUnits = kTile * kWidth / 8;  // of 8 elements, in 64 heads of a query

__device__ __forceinline__ void store_unit(uint32_t dst, int unit, const uint4& v) {
  const int row = unit / (kWidth / 8), column = unit % (kWidth / 8);
  const uint32_t at = dst + column / 8 * kChunkBytes + row * 128 + ((column % 8 ^ row % 8) << 4);
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// 64 heads of a row to bf16, swizzled chunks. 256 threads.
__device__ __forceinline__ void load_q(uint32_t dst, const float* q, int heads) {
  constexpr int kBatch = 6;
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
      const float4 a = v[i][0], b = v[i][1];
      store_unit(dst, base + i * kConsumers,
                 {pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w)});
    }
  }
  fence_proxy_async();
}
__device__ __forceinline__ void load_q(uint32_t dst, const __nv_bfloat16* q, int heads) {
  constexpr int kBatch = 6;
#pragma unroll 1
  for (int base = threadIdx.x; base < kUnits; base += kConsumers * kBatch) {
    uint4 v[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int unit = base + i * kConsumers;
      v[i] = unit / (kWidth / 8) < heads ? __ldg(reinterpret_cast<const uint4*>(q + unit * 8)) : uint4{};
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) store_unit(dst, base + i * kConsumers, v[i]);
  }
  fence_proxy_async();
}

// Divides by the sums and stores; `half`: which columns. Heads beyond the last are not stored.
__device__ __forceinline__ void store_out(const MlaParams& p, const float (&o)[128], RowPair l, int row, int rank,
                                          int half) {
  const int r = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  const int head = (row % p.groups * int(gridDim.x / num_clusters_x()) + rank) * kTile + r;
  const int64_t at = (int64_t{row / p.groups} * p.num_heads + head) * kRank + half * 256;
  const float ia = 1.0f / l.a, ib = 1.0f / l.b;
  if (p.bf16) {
    // Lanes exchange pairs: an even one keeps four columns of one group of eight, its neighbor of the next group, so
    // that four lanes fill a sector.
    const bool odd = threadIdx.x % 2;
    auto* out = static_cast<__nv_bfloat16*>(p.out) + at + threadIdx.x % 4 / 2 * 4 + odd * 8;
#pragma unroll
    for (int i = 0; i < 32; i += 2)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float f = h ? ib : ia;
        const uint32_t first = pack_bf16(o[4 * i + 2 * h] * f, o[4 * i + 2 * h + 1] * f),
                       second = pack_bf16(o[4 * i + 4 + 2 * h] * f, o[4 * i + 5 + 2 * h] * f);
        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
        if (head + 8 * h < p.num_heads)
          *reinterpret_cast<uint2*>(out + 8 * h * kRank + i * 8) = odd ? uint2{other, second} : uint2{first, other};
      }
    return;
  }
  float* out = static_cast<float*>(p.out) + at + threadIdx.x % 4 * 2;
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

// Stores the result of a whole row. Of a split row it writes the partial result, and the last block combines them.
__device__ __forceinline__ void finish_item(const MlaParams& p, const MlaSchedule& s, Shared& shared, float (&o)[128],
                                            RowPair m, RowPair l, const AttentionItem& item, int rank, int half) {
  if (p.splits && threadIdx.x == 0 && rank == 0 && item.begin == 0) {
    int32_t* splits = p.splits + item.row * (1 + kMaxParts);
    int n = 0;
    if (!item.whole()) s.for_each_split(item, [&](int slot) { splits[1 + n++] = slot; });
    splits[0] = n;
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
  if (p.splits) return;
  __threadfence();
  named_barrier_sync(kItemEnd, kConsumers);
  if (threadIdx.x == 0) {
    int splits = 0;
    s.for_each_split(item, [&](int) { ++splits; });
    int32_t* counter = p.counters + item.row * cluster_size + rank;
    shared.schedule.last_block = atomicAdd(counter, 1) == splits - 1;
    if (shared.schedule.last_block) *counter = 0;
    __threadfence();
  }
  named_barrier_sync(kItemEnd, kConsumers);
  if (!shared.schedule.last_block) return;
  RowPair max = {-INFINITY, -INFINITY};
  s.for_each_split(item, [&](int slot) {
    const float* stats = stats_of(slot);
    max = {fmaxf(max.a, __ldcg(stats + r)), fmaxf(max.b, __ldcg(stats + r + 8))};
  });
#pragma unroll
  for (int i = 0; i < 128; ++i) o[i] = 0.0f;
  l = {0.0f, 0.0f};
  s.for_each_split(item, [&](int slot) {
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

constexpr int kCombined = 4;  // groups of eight columns per block

// Combines the partial results of split rows, where rows are so few that one block per tile would take long. Grid (32 /
// kCombined * 2, blocks of a cluster, rows); the order of every sum is that of finish_item.
__global__ void __launch_bounds__(128) mla_combine(const __grid_constant__ MlaParams p) {
  const int row = blockIdx.z, rank = blockIdx.y, cluster_size = gridDim.y, half = blockIdx.x % 2, tid = threadIdx.x;
  const int first = blockIdx.x / 2 * kCombined, r = tid / 32 * 16 + tid % 32 / 4;
  grid_dependency_launch();
  grid_dependency_wait();
  const int32_t* slots = p.splits + row * (1 + kMaxParts);
  const int splits = *slots++;
  if (splits == 0) return;
  auto stats_of = [&](int k) { return p.stats + (int64_t{slots[k]} * cluster_size + rank) * 128; };
  RowPair max = {-INFINITY, -INFINITY}, l = {0.0f, 0.0f};
#pragma unroll 4
  for (int k = 0; k < splits; ++k) max = {fmaxf(max.a, stats_of(k)[r]), fmaxf(max.b, stats_of(k)[r + 8])};
  float4 sum[kCombined] = {};
#pragma unroll 4
  for (int k = 0; k < splits; ++k) {
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
  const int64_t at = (int64_t{row / p.groups} * p.num_heads + head) * kRank + half * 256 + first * 8 + tid % 4 * 2;
  const float ia = 1.0f / l.a, ib = 1.0f / l.b;
  auto store = [&](int64_t i, float a, float b) {
    if (p.bf16)
      *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(p.out) + i) = pack_bf16(a, b);
    else
      *reinterpret_cast<float2*>(static_cast<float*>(p.out) + i) = float2{a, b};
  };
#pragma unroll
  for (int i = 0; i < kCombined; ++i) {
    if (head < p.num_heads) store(at + i * 8, sum[i].x * ia, sum[i].y * ia);
    if (head + 8 < p.num_heads) store(at + 8 * kRank + i * 8, sum[i].z * ib, sum[i].w * ib);
  }
}

}  // namespace moectl::cuda::kernel::mla
