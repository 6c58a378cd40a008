// Absorbed MLA for Hopper: q [tokens, heads, 512 + 64] over pages of 64 positions of bf16 compressed KV, out [tokens,
// heads, 512].
//
// One thread block takes 64 heads of a row, as one wgmma tile. Its output, 64 x 512 in f32, is divided by columns over
// two consumer warpgroups (L: 0-255, R: 256-511); a producer warp of the third loads pages into two stages by TMA.
// Pages are processed in pairs, page 0 by L and page 1 by R:
//
//   tensor cores:  S0 = Q K0 (L) | S1 = Q K1 (R)     | O += P0 V0 (L, R)  | O += P1 V1 (L, R) | next pair
//   meanwhile:                   | softmax of S0 (L) | softmax of S1 (R)  | page 0 of the next pair arrives
//
// so that a softmax always overlaps with 1,000 cycles of the tensor cores. P goes through shared memory, in the place
// of the page's 64 rotary columns, which are no longer needed once S is computed. The loop is bound by how early a
// stage is empty again: each half of a page is released (and loaded anew) as soon as the last product that reads it is
// done, and a product waits for nothing of the other warpgroup but its operands. The reference m of the exponentials is
// carried from page to page; it is raised only where a score exceeds it by 8 (in log2): exponentials up to 2^8 cost
// bf16 and f32 no precision, and the 128 accumulators per thread are rarely rescaled. Two blocks (a cluster) take 128
// heads of a row; each loads half of every page into both (multicast), which halves the reads of L2 (250 us instead of
// 319 us).
//
// attention_schedule.cuh distributes the rows over clusters; the partial results of a split row go through scratch.
#include <algorithm>

#include "core/base/check.h"
#include "kernels/cuda/gemm/tensor_map.h"
#include "kernels/cuda/mla/mla_attention_sm90.h"
#include "kernels/cuda/mla/mla_sm90.cuh"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda {
namespace kernel::mla {
namespace {

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
      const int element_bytes = p.bf16 ? 2 : 4;
      prefetch_l2(static_cast<const std::byte*>(p.q) +
                      (int64_t{item.row / p.groups} * p.num_heads + head) * kWidth * element_bytes,
                  min(kTile, p.num_heads - head) * kWidth * element_bytes);
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
  const int64_t at = (int64_t{row / p.groups} * p.num_heads + head) * kWidth;
  if (p.bf16)
    load_q(bufs.q, static_cast<const __nv_bfloat16*>(p.q) + at, p.num_heads - head);
  else
    load_q(bufs.q, static_cast<const float*>(p.q) + at, p.num_heads - head);
  named_barrier_sync(kItemEnd, kConsumers);
}

// Adds the row sums of both warpgroups; both are done with Q when it returns.
__device__ __forceinline__ RowPair add_row_sums(Shared& shared, RowPair l, int half) {
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
  if (p.splits && threadIdx.x == 0 && rank == 0) p.splits[row * (1 + kMaxParts)] = 0;
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
    bool second = false;  // the values of page 1 of the previous pair are still being added
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
    l = add_row_sums(shared, l, 0);
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
      wgmma_wait<0>();  // meanwhile the tensor cores run the left product; o cannot be touched earlier
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
    l = add_row_sums(shared, l, 1);
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
  grid_dependency_launch();
  grid_dependency_wait();
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
    cluster_sync();  // no block exits while the other may still write to its shared memory
  }
}

template <int kCluster>
void launch(const MlaParams& p, const CUtensorMap& values_map, const CUtensorMap& rope_map, int blocks,
            cudaStream_t stream) {
  allow_shared_memory<mla_attention<kCluster>>(kSharedBytes);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks / kCluster * kCluster));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {kCluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  CUDA_CHECK(cudaLaunchKernelEx(&config, mla_attention<kCluster>, p, values_map, rope_map));
  if (!p.splits) return;
  config.gridDim = dim3(32 / kCombined * 2, kCluster, unsigned(p.num_tokens * p.groups));
  config.blockDim = dim3(128);
  config.dynamicSmemBytes = 0;
  config.attrs = attributes + 1;
  config.numAttrs = 1;
  CUDA_CHECK(cudaLaunchKernelEx(&config, mla_combine, p));
}

constexpr int64_t kSlotBytes = int64_t{kTile} * (kRank + 2) * 4;
constexpr int64_t kMaxBlocks = 256;
constexpr int kFewRows = 32;

}  // namespace
}  // namespace kernel::mla

int64_t mla_attention_sm90_scratch_bytes() {
  return kernel::mla::kMaxBlocks * 2 * kernel::mla::kSlotBytes + kernel::mla::kFewRows * (1 + kernel::kMaxParts) * 4;
}

bool mla_attention_sm90_fits(const MlaAttentionArgs& a, const AttentionScratch& scratch) {
  const int64_t tiles = (a.q.dim(1) + kernel::mla::kTile - 1) / kernel::mla::kTile;
  return a.kv_lora_rank == kernel::mla::kRank && a.q.dim(2) == kernel::mla::kWidth &&
         a.cache.dim(1) == kernel::mla::kPage && a.cache.dtype == DType::kBF16 &&
         scratch.num_bytes >= mla_attention_sm90_scratch_bytes() && scratch.num_counters >= a.q.dim(0) * tiles &&
         a.q.dim(0) * tiles <= INT32_MAX / 4096;
}

void mla_attention_sm90(const MlaAttentionArgs& a, const AttentionScratch& scratch, Stream stream) {
  using namespace kernel::mla;
  const int tiles = int((a.q.dim(1) + kTile - 1) / kTile), cluster = tiles % 2 == 0 ? 2 : 1;
  const int blocks = std::min(current_device_info().num_multiprocessors, int(kMaxBlocks));
  MlaParams p = {};
  p.q = a.q.data;
  p.page_table = a.page_table.data;
  p.seq_idx = a.seq_idx.data;
  p.positions = a.positions.data;
  p.out = a.out.data;
  p.bf16 = a.q.dtype == DType::kBF16;
  p.partial = static_cast<float4*>(scratch.data);
  p.stats = reinterpret_cast<float*>(p.partial + kMaxBlocks * 2 * 2 * 32 * 128);
  p.counters = scratch.counters;
  p.num_tokens = int(a.q.dim(0));
  p.num_heads = int(a.q.dim(1));
  p.groups = tiles / cluster;
  p.max_pages = int(a.page_table.dim(1));
  p.scale_log2 = a.scale * kernel::kLog2e;
  p.whole_rows = scratch.deterministic;
  if (!p.whole_rows && p.num_tokens * p.groups <= kFewRows)
    p.splits = reinterpret_cast<int32_t*>(p.stats + kMaxBlocks * 2 * 128);
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
