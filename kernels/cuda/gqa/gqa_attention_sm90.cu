// Grouped-query attention for Hopper over pages of 64 bf16 keys and values: q and out [tokens, heads, kDim] in f32.
// Tiles of prompt rows belong to gqa_prefill.cuh; all other rows are here, in deterministic mode every row.
//
// Decoding reads every key and value once, so the kernel streams: a producer warp loads pages into shared memory stages
// by TMA (a page of one KV head is contiguous: 64 keys, then 64 values), four consumer warps compute. Each takes 16
// positions of every page and keeps its own softmax state and sums for the up to 16 query heads of the KV head (one
// tile of mma.m16n8k16), so that within a row warps never wait for each other; at the end their sums are added in the
// order of the warps. attention_schedule.cuh distributes the rows (token, KV head) over blocks; the partial results of
// a split row go through scratch. The visible positions (window, chunk) are computed per row, so a step may mix rows of
// any kind.
#include <algorithm>

#include "core/base/check.h"
#include "kernels/cuda/attention/attention_schedule.cuh"
#include "kernels/cuda/gemm/tensor_map.h"
#include "kernels/cuda/gqa/gqa_attention_sm90.h"
#include "kernels/cuda/gqa/gqa_prefill.cuh"
#include "kernels/cuda/runtime/check.h"
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/hopper.cuh"

namespace moectl::cuda {
namespace kernel {
namespace {

using namespace hopper;

constexpr int kPage = kGqaPage, kTileRows = 16, kWarps = 4, kConsumers = 32 * kWarps, kThreads = kConsumers + 32;

struct GqaPages {
  const GqaParams& p;
  __device__ bool takes(int row) const { return !in_prefill_tile(p, row / p.num_kv_heads); }
  __device__ int operator()(int row) const {
    const int position = p.positions[row / p.num_kv_heads];
    if (position < 0 || !takes(row)) return 0;
    return position / kPage - first_visible(position, p.window, p.chunk) / kPage + 1;
  }
};
using GqaSchedule = Schedule<1, 3, 4, 2, 1, GqaPages>;

template <int kDim>
struct Config : GqaPageLayout<kDim> {
  static constexpr int kStageBytes = GqaPageLayout<kDim>::kBytes;
  static constexpr int kStages = kDim == 64 ? 6 : 3, kBlocksPerSm = kDim == 256 ? 1 : 2;
  struct Shared {
    float sum[kTileRows][kDim];
    float m[kWarps][kTileRows], l[kWarps][kTileRows];
    uint64_t full[kStages], empty[kStages];
    ScheduleShared schedule;
    int16_t slots[kMaxParts];
    int num_slots;
  };
  static constexpr int kSharedBytes = 1024 + kStages * kStageBytes + int(sizeof(Shared));
  static_assert(kSharedBytes * kBlocksPerSm + 1024 * kBlocksPerSm <= 233472);
};

// A warp's softmax state and sums for its 16 positions of every page: this thread's rows g and g + 8.
template <int kDim>
struct WarpState {
  uint32_t q[kDim / 16][4];
  float o[kDim / 8][4];
  float m[2], l[2];

  __device__ void begin(const float* src, int heads) {
    const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4 * 2;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = g + i % 2 * 8, column = k * 16 + i / 2 * 8 + c;
        const float2 v = row < heads ? *reinterpret_cast<const float2*>(src + row * kDim + column) : float2{};
        q[k][i] = pack_bf16(v.x, v.y);
      }
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[j][i] = 0.0f;
    m[0] = m[1] = -INFINITY;
    l[0] = l[1] = 0.0f;
  }

  // One page in shared memory; positions [begin, end) of it are visible.
  __device__ void add(uint32_t page, int begin, int end, float scale_log2) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16, c = lane % 4 * 2;
    if (first >= end || first + 16 <= begin) return;
    float s[2][4] = {};
    const int key = first + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t b[4];
      ldmatrix_x4(
          page + k / 4 * GqaPageLayout<kDim>::kChunkBytes + key * 128 + ((k % 4 * 2 + lane / 8 % 2 ^ lane % 8) << 4),
          b);
      mma_m16n8k16(s[0], q[k], b[0], b[1]);
      mma_m16n8k16(s[1], q[k], b[2], b[3]);
    }
    const bool masked = first < begin || first + 16 > end;
    if (masked)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int position = first + j / 4 * 8 + c + j % 2;
        if (position < begin || position >= end) s[j / 4][j % 4] = -INFINITY;
      }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float max =
          quad_max(fmaxf(fmaxf(s[0][2 * i], s[0][2 * i + 1]), fmaxf(s[1][2 * i], s[1][2 * i + 1]))) * scale_log2;
      const float raised = max > m[i] + kRaise ? max : m[i];
      if (__any_sync(0xffffffffu, raised != m[i])) {
        const float factor = exp2_approx(m[i] - raised);
        l[i] *= factor;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
          o[j][2 * i] *= factor;
          o[j][2 * i + 1] *= factor;
        }
        m[i] = raised;
      }
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; ++e) {
          s[j][e] = exp2_approx(fmaf(s[j][e], scale_log2, -m[i]));
          l[i] += s[j][e];
        }
    }
    const uint32_t w[4] = {pack_bf16(s[0][0], s[0][1]), pack_bf16(s[0][2], s[0][3]), pack_bf16(s[1][0], s[1][1]),
                           pack_bf16(s[1][2], s[1][3])};
    const int value = kPage + first + lane / 8 % 2 * 8 + lane % 8;
    // Positions outside may hold NaN, and 0 x NaN is NaN: this thread's values are of positions c, c + 1, c + 8, c + 9.
    uint32_t mask[2] = {~0u, ~0u};
    if (masked)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int position = first + j / 2 * 8 + c + j % 2;
        if (position < begin || position >= end) mask[j / 2] &= j % 2 ? 0x0000ffffu : 0xffff0000u;
      }
#pragma unroll
    for (int j = 0; j < kDim / 16; ++j) {
      uint32_t b[4];
      ldmatrix_x4<true>(
          page + j / 4 * GqaPageLayout<kDim>::kChunkBytes + value * 128 + ((j % 4 * 2 + lane / 16 ^ lane % 8) << 4), b);
      mma_m16n8k16(o[2 * j], w, b[0] & mask[0], b[1] & mask[1]);
      mma_m16n8k16(o[2 * j + 1], w, b[2] & mask[0], b[3] & mask[1]);
    }
  }
};

// Adds the warps' sums into shared.sum, with the tile's m and l in shared.m[0], shared.l[0].
template <int kDim>
__device__ __forceinline__ void merge_warps(typename Config<kDim>::Shared& shared, WarpState<kDim>& state) {
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4 * 2;
  float factor[2], m[2], l[2] = {0.0f, 0.0f};
  for (int i = 0; i < 2; ++i) {
    const float sum = quad_sum(state.l[i]);
    if (threadIdx.x % 4 == 0) {
      shared.m[warp][g + 8 * i] = state.m[i];
      shared.l[warp][g + 8 * i] = sum;
    }
  }
  named_barrier_sync(1, kConsumers);
  for (int i = 0; i < 2; ++i) {
    m[i] = -INFINITY;
    for (int w = 0; w < kWarps; ++w) m[i] = fmaxf(m[i], shared.m[w][g + 8 * i]);
    const float safe = m[i] == -INFINITY ? 0.0f : m[i];
    for (int w = 0; w < kWarps; ++w) l[i] += shared.l[w][g + 8 * i] * exp2_approx(shared.m[w][g + 8 * i] - safe);
    factor[i] = exp2_approx(state.m[i] - safe);
  }
  for (int w = 0; w < kWarps; ++w) {
    if (warp == w)
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float2& sum = *reinterpret_cast<float2*>(&shared.sum[g + 8 * i][j * 8 + c]);
          const float2 before = w == 0 ? float2{0.0f, 0.0f} : sum;
          sum = {before.x + state.o[j][2 * i] * factor[i], before.y + state.o[j][2 * i + 1] * factor[i]};
        }
    named_barrier_sync(1, kConsumers);
  }
  if (warp == 0 && threadIdx.x % 4 == 0)
    for (int i = 0; i < 2; ++i) {
      shared.m[0][g + 8 * i] = m[i];
      shared.l[0][g + 8 * i] = l[i];
    }
  named_barrier_sync(1, kConsumers);
}

template <int kDim>
__device__ __forceinline__ void finish(const GqaParams& p, const GqaSchedule& s, typename Config<kDim>::Shared& shared,
                                       const AttentionItem& item) {
  const int group = p.num_heads / p.num_kv_heads, head = item.row % p.num_kv_heads * group;
  float* out = p.out + (int64_t{item.row / p.num_kv_heads} * p.num_heads + head) * kDim;
  const int values = group * kDim;
  if (item.n == 0) {
    if (!s.num_pages.takes(item.row)) return;
    for (int i = threadIdx.x; i < values; i += kConsumers) out[i] = 0.0f;
    return;
  }
  if (item.whole()) {
    for (int i = threadIdx.x; i < values; i += kConsumers) {
      const int r = i / kDim;
      out[i] = shared.sum[r][i % kDim] * normalizer(p, head + r, shared.m[0][r], shared.l[0][r]);
    }
    return;
  }
  float* partial = p.partial + int64_t{s.slot(item)} * kTileRows * kDim;
  float* stats = p.stats + s.slot(item) * 2 * kTileRows;
  for (int i = threadIdx.x; i < values; i += kConsumers) __stcg(partial + i, shared.sum[i / kDim][i % kDim]);
  if (threadIdx.x < kTileRows) {
    stats[threadIdx.x] = shared.m[0][threadIdx.x];
    stats[kTileRows + threadIdx.x] = shared.l[0][threadIdx.x];
  }
  __threadfence();
  named_barrier_sync(1, kConsumers);
  if (threadIdx.x == 0) {
    int splits = 0;
    s.for_each_split(item, [&](int slot) { shared.slots[splits++] = int16_t(slot); });
    shared.num_slots = splits;
    int32_t* counter = p.counters + item.row;
    shared.schedule.last_block = atomicAdd(counter, 1) == splits - 1;
    if (shared.schedule.last_block) *counter = 0;
    __threadfence();
  }
  named_barrier_sync(1, kConsumers);
  if (!shared.schedule.last_block) return;
  const int splits = shared.num_slots;
  auto stats_of = [&](int split) { return p.stats + shared.slots[split] * 2 * kTileRows; };
  if (threadIdx.x < 32) {  // a row's m and l: one lane adds the even splits, one the odd ones
    const int r = threadIdx.x % kTileRows, first = threadIdx.x / kTileRows;
    float m = -INFINITY, l = 0.0f;
#pragma unroll 8
    for (int k = first; k < splits; k += 2) m = fmaxf(m, __ldcg(stats_of(k) + r));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 16));
#pragma unroll 8
    for (int k = first; k < splits; k += 2)
      l += exp2_approx(__ldcg(stats_of(k) + r) - m) * __ldcg(stats_of(k) + kTileRows + r);
    l += __shfl_xor_sync(0xffffffffu, l, 16);
    if (first == 0) {
      shared.m[0][r] = m;
      shared.l[0][r] = r < group ? normalizer(p, head + r, m, l) : 0.0f;
    }
  }
  named_barrier_sync(1, kConsumers);
  constexpr int kUnits = kTileRows * kDim / 4 / kConsumers;  // of four elements
  float4 sum[kUnits] = {};
#pragma unroll 8
  for (int k = 0; k < splits; ++k)
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int i = (threadIdx.x + u * kConsumers) * 4, r = i / kDim;
      if (r >= group) break;
      const float factor = exp2_approx(__ldcg(stats_of(k) + r) - shared.m[0][r]);
      const float4 v =
          __ldcg(reinterpret_cast<const float4*>(p.partial + int64_t{shared.slots[k]} * kTileRows * kDim + i));
      sum[u] = {sum[u].x + factor * v.x, sum[u].y + factor * v.y, sum[u].z + factor * v.z, sum[u].w + factor * v.w};
    }
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int i = (threadIdx.x + u * kConsumers) * 4, r = i / kDim;
    if (r >= group) break;
    const float factor = shared.l[0][r];
    *reinterpret_cast<float4*>(out + i) =
        float4{sum[u].x * factor, sum[u].y * factor, sum[u].z * factor, sum[u].w * factor};
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, Config<kDim>::kBlocksPerSm)
    gqa_attention(const __grid_constant__ GqaParams p, const __grid_constant__ CUtensorMap map) {
  using C = Config<kDim>;
  extern __shared__ uint8_t dynamic[];
  const uint32_t stages = (smem_addr(dynamic) + 1023) & ~1023u;
  auto& shared =
      *reinterpret_cast<typename C::Shared*>(dynamic + (stages - smem_addr(dynamic)) + C::kStages * C::kStageBytes);
  const uint32_t full = smem_addr(shared.full), empty = smem_addr(shared.empty);
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::kStages; ++i) {
      mbarrier_init(full + 8 * i, 1);
      mbarrier_init(empty + 8 * i, kWarps);
    }
    fence_mbarrier_init();
  }
  grid_dependency_launch();
  grid_dependency_wait();
  GqaSchedule s = {{p}, p.num_tokens, p.num_kv_heads, p.whole_rows};
  s.make<kThreads>(shared.schedule, blockIdx.x, gridDim.x);
  int stage = 0;
  uint32_t phase = 0;
  auto advance = [&] {
    if (++stage == C::kStages) {
      stage = 0;
      phase ^= 1;
    }
  };
  const int lane = threadIdx.x % 32;
  if (threadIdx.x >= kConsumers) {
    s.for_each([&](const AttentionItem& item) {
      const int token = item.row / p.num_kv_heads, kv_head = item.row % p.num_kv_heads;
      if (item.n == 0) return;
      const int32_t* table = p.page_table + int64_t{p.seq_idx[token]} * p.max_pages +
                             first_visible(p.positions[token], p.window, p.chunk) / kPage;
      int pages = 0;
      for (int i = item.begin; i < item.end; ++i) {
        const int j = (i - item.begin) % 32;
        if (j == 0) pages = i + lane < item.end ? table[i + lane] : 0;
        const int page = __shfl_sync(0xffffffffu, pages, j);
        if (lane == 0) {
          mbarrier_wait(empty + 8 * stage, phase ^ 1);
          mbarrier_arrive_expect_tx(full + 8 * stage, C::kStageBytes);
          for (int c = 0; c < C::kChunks; ++c)
            tma_load_2d(stages + stage * C::kStageBytes + c * C::kChunkBytes, &map, full + 8 * stage, c * 64,
                        (page * p.num_kv_heads + kv_head) * 2 * kPage);
        }
        __syncwarp();
        advance();
      }
    });
    return;
  }
  WarpState<kDim> state;
  s.for_each([&](const AttentionItem& item) {
    const int token = item.row / p.num_kv_heads, kv_head = item.row % p.num_kv_heads;
    const int group = p.num_heads / p.num_kv_heads, position = p.positions[token];
    if (item.n == 0) return finish<kDim>(p, s, shared, item);
    const int first = first_visible(position, p.window, p.chunk), base = first / kPage * kPage;
    const float scale_log2 = row_scale(p.scale, position, p.temperature_floor, p.temperature_scale) * kLog2e;
    state.begin(p.q + (int64_t{token} * p.num_heads + kv_head * group) * kDim, group);
    for (int i = item.begin; i < item.end; ++i) {
      const int start = base + i * kPage;
      mbarrier_wait(full + 8 * stage, phase);
      state.add(stages + stage * C::kStageBytes, max(first - start, 0), min(kPage, position + 1 - start), scale_log2);
      __syncwarp();
      if (lane == 0) mbarrier_arrive(empty + 8 * stage);
      advance();
    }
    merge_warps<kDim>(shared, state);
    finish<kDim>(p, s, shared, item);
    named_barrier_sync(1, kConsumers);
  });
}

constexpr int kMaxBlocks = 2 * 256;

template <int kDim>
void launch(const GqaParams& p, const CUtensorMap& map, cudaStream_t stream) {
  using C = Config<kDim>;
  using P = GqaPrefill<kDim>;
  if (p.prefill_tile > 0) {
    allow_shared_memory<gqa_prefill<kDim>>(P::kSharedBytes);
    const dim3 grid(unsigned(p.num_kv_heads), unsigned(p.num_tokens / p.prefill_tile));
    gqa_prefill<kDim><<<grid, P::kThreads, P::kSharedBytes, stream>>>(p, map);
    CUDA_CHECK(cudaGetLastError());
  }
  allow_shared_memory<gqa_attention<kDim>>(C::kSharedBytes);
  const int blocks = std::min(current_device_info().num_multiprocessors * C::kBlocksPerSm, kMaxBlocks);
  launch_early(gqa_attention<kDim>, unsigned(blocks), kThreads, C::kSharedBytes, stream, p, map);
}

}  // namespace
}  // namespace kernel

int64_t gqa_attention_sm90_scratch_bytes() {
  return int64_t{kernel::kMaxBlocks} * 2 * kernel::kTileRows * (256 + 2) * 4;
}

bool gqa_attention_sm90_fits(const GqaAttentionArgs& a, const AttentionScratch& scratch) {
  const int64_t dim = a.q.dim(2), kv_heads = a.cache.dim(1);
  return (dim == 64 || dim == 128 || dim == 256) && a.q.dim(1) / kv_heads <= kernel::kTileRows &&
         a.page_size == kernel::kPage && a.cache.dtype == DType::kBF16 &&
         a.cache.dim(0) * kv_heads * 2 * kernel::kPage <= INT32_MAX &&
         scratch.num_bytes >= gqa_attention_sm90_scratch_bytes() && scratch.num_counters >= a.q.dim(0) * kv_heads &&
         a.q.dim(0) * kv_heads <= INT32_MAX / 4096;
}

void gqa_attention_sm90(const GqaAttentionArgs& a, const AttentionScratch& scratch, Stream stream) {
  using namespace kernel;
  const int64_t dim = a.q.dim(2);
  GqaParams p = {};
  p.q = a.q.data;
  p.page_table = a.page_table.data;
  p.seq_idx = a.seq_idx.data;
  p.positions = a.positions.data;
  p.sinks = a.sinks.data;
  p.out = a.out.data;
  p.partial = static_cast<float*>(scratch.data);
  p.stats = p.partial + int64_t{kMaxBlocks} * 2 * kTileRows * 256;
  p.counters = scratch.counters;
  p.num_tokens = int(a.q.dim(0));
  p.num_heads = int(a.q.dim(1));
  p.num_kv_heads = int(a.cache.dim(1));
  p.max_pages = int(a.page_table.dim(1));
  p.window = a.window;
  p.chunk = a.chunk;
  p.scale = a.scale;
  p.temperature_floor = a.temperature_floor;
  p.temperature_scale = a.temperature_scale;
  p.whole_rows = scratch.deterministic;
  // With more rows than sequences there may be prompt rows.
  const int tile = 2 * (64 / (p.num_heads / p.num_kv_heads));
  if (!scratch.deterministic && a.q.dim(0) > a.page_table.dim(0) && a.q.dim(0) >= tile) p.prefill_tile = tile;
  const CUtensorMap map = make_tensor_map({.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                           .data = a.cache.data,
                                           .dims = {dim, a.cache.dim(0) * a.cache.dim(1) * 2 * kPage},
                                           .stride_bytes = {dim * 2},
                                           .box = {64, 2 * kPage},
                                           .swizzle = CU_TENSOR_MAP_SWIZZLE_128B});
  const cudaStream_t handle = static_cast<cudaStream_t>(stream.handle);
  if (dim == 64) return launch<64>(p, map, handle);
  if (dim == 128) return launch<128>(p, map, handle);
  launch<256>(p, map, handle);
}

}  // namespace moectl::cuda
