// How a tile's sums leave the kernel of gemm_sm90.cuh: reduced over the cluster where it divides k, through the
// activation where gated, and stored. Owns no data. sm_90a only.
//
// What runs once per tile is kept short: its code comes from memory each time, and the tensor cores idle meanwhile.
#pragma once

#include "kernels/cuda/gemm/gemm_consume_sm90.cuh"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda::kernel {

// silu(gate) * up
__device__ __forceinline__ float silu_times(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}
__device__ __forceinline__ float4 silu_times(float4 gate, float4 up) {
  return make_float4(silu_times(gate.x, up.x), silu_times(gate.y, up.y), silu_times(gate.z, up.z),
                     silu_times(gate.w, up.w));
}

// Where in the accumulators vector `part` of unit u lies: {sub, j}, four sums from acc[sub][4 j] on.
template <class S>
__device__ __forceinline__ int2 vector_at(int u, int part) {
  constexpr int kPerSub = S::kTileN / 8;
  if constexpr (!S::kGated) return int2{u / kPerSub, u % kPerSub};
  if constexpr (S::kSwap) return int2{part, u};
  return int2{u / (kPerSub / 2), u % (kPerSub / 2) + part * (kPerSub / 2)};
}
template <class S>
__device__ __forceinline__ float4 vector_of(const Accumulators<S>& acc, int u, int part) {
  const int2 v = vector_at<S>(u, part);
  return make_float4(acc[v.x][4 * v.y], acc[v.x][4 * v.y + 1], acc[v.x][4 * v.y + 2], acc[v.x][4 * v.y + 3]);
}

// Unit u of a tile that one block has multiplied alone.
template <class S>
__device__ __forceinline__ float4 output_of(const Accumulators<S>& acc, int u) {
  return S::kGated ? silu_times(vector_of<S>(acc, u, 0), vector_of<S>(acc, u, S::kUnit - 1)) : vector_of<S>(acc, u, 0);
}

// ------------------------------------------------------------------------------------------------ stores

__device__ __forceinline__ void store_four(const GemmParams& p, int64_t at, float4 v) {
  if (p.out_bf16)
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(p.out) + at) =
        make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
  else
    *reinterpret_cast<float4*>(static_cast<float*>(p.out) + at) = v;
}

// Swapped tiles: vector j of this warp, 16 columns of out from `col` of the tile and 8 tokens, through `smem`.
template <class S>
__device__ __forceinline__ void store_swapped(const GemmParams& p, const Tile& tile, int col, int j, float4 v,
                                              float* smem) {
  if (8 * j >= tile.rows) return;
  const int lane = threadIdx.x % 32, t = lane / 4, c = lane % 4 * 4;
  float* const to = smem + lane % 4 * 2 * S::kEpiloguePitch + lane / 4;
  to[0] = v.x, to[S::kEpiloguePitch] = v.y, to[8] = v.z, to[S::kEpiloguePitch + 8] = v.w;
  __syncwarp();
  if (8 * j + t < tile.rows && tile.col + col + c < p.n)
    store_four(p, int64_t(tile.row + 8 * j + t) * p.n + tile.col + col + c,
               *reinterpret_cast<const float4*>(smem + t * S::kEpiloguePitch + c));
  __syncwarp();
}

// Straight tiles: 16 rows of a warp by one line of memory, 32 f32 or 64 bf16 columns. Each thread stages its vectors in
// shared memory, then the warp stores `count` of them. row, col: of the warp's first sum, in the tile.
template <class S, bool kOutBf16>
__device__ __forceinline__ void stage_to_smem(float* smem, int i, float4 v) {
  const int lane = threadIdx.x % 32;
  if constexpr (kOutBf16) {
    uint32_t* const to = reinterpret_cast<uint32_t*>(smem) + lane / 4 * S::kEpiloguePitch + 4 * i + lane % 4;
    to[0] = pack_bf16(v.x, v.y), to[8 * S::kEpiloguePitch] = pack_bf16(v.z, v.w);
  } else {
    float* const to = smem + lane / 4 * S::kEpiloguePitch + 8 * i + lane % 4 * 2;
    *reinterpret_cast<float2*>(to) = make_float2(v.x, v.y);
    *reinterpret_cast<float2*>(to + 8 * S::kEpiloguePitch) = make_float2(v.z, v.w);
  }
}
template <class S, bool kOutBf16>
__device__ __forceinline__ void store_staged(const GemmParams& p, const Tile& tile, int row, int col, int count,
                                             const float* smem) {
  constexpr int kBytes = kOutBf16 ? 2 : 4, kEach = 16 / kBytes;
  const int lane = threadIdx.x % 32, c = lane % 8 * kEach;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = 4 * i + lane / 8;
    if (row + r < tile.rows && c < 8 * count && tile.col + col + c < p.n)
      *reinterpret_cast<float4*>(static_cast<char*>(p.out) +
                                 (int64_t(tile.row + row + r) * p.n + tile.col + col + c) * kBytes) =
          *reinterpret_cast<const float4*>(smem + r * S::kEpiloguePitch + lane % 8 * 4);
  }
  __syncwarp();
}

template <bool kOutBf16>
constexpr int kLineVectors = kOutBf16 ? 8 : 4;  // column groups of eight in a line

// This warp's part of the epilogue's shared memory.
template <class S>
__device__ __forceinline__ float* epilogue_smem(const GemmConsumer<S>& c) {
  return c.block.template at<float>(c.block.epilogue) + c.thread / 32 * S::kEpilogueFloats;
}

template <class S, bool kOutBf16>
__device__ __forceinline__ void store_straight(const GemmConsumer<S>& c, const Tile& tile, const Accumulators<S>& acc,
                                               float* smem) {
  constexpr int kPerSub = S::kOutCols / 8, kMost = kLineVectors<kOutBf16>;
  constexpr auto least = [](int a, int b) { return a < b ? a : b; };
#pragma unroll
  for (int sub = 0; sub < S::kSub; ++sub)
#pragma unroll
    for (int j = 0; j < kPerSub; j += kMost) {
#pragma unroll
      for (int i = 0; i < least(kMost, kPerSub - j); ++i)
        stage_to_smem<S, kOutBf16>(smem, i, output_of<S>(acc, sub * kPerSub + j + i));
      store_staged<S, kOutBf16>(c.block.p, tile, sub * 128 + c.warp_row(), 8 * j, least(kMost, kPerSub - j), smem);
    }
}

// Stores a tile that this block alone has multiplied.
template <class S>
__device__ __forceinline__ void store(const GemmConsumer<S>& c, const Tile& tile, const Accumulators<S>& acc) {
  float* const smem = epilogue_smem(c);
  if constexpr (S::kSwap) {
#pragma unroll
    for (int u = 0; u < S::kUnits; ++u) {
      const int2 v = vector_at<S>(u, 0);
      store_swapped<S>(c.block.p, tile, v.x * 128 + c.warp_row(), v.y, output_of<S>(acc, u), smem);
    }
  } else if (c.block.p.out_bf16) {
    store_straight<S, true>(c, tile, acc, smem);
  } else {
    store_straight<S, false>(c, tile, acc, smem);
  }
}

// ------------------------------------------------------------------------------------------------ split-K

// The blocks that divide k of a tile reduce it together, through distributed shared memory: each sends unit u of its
// partial sums to the block that owns the unit, which adds them in the order of k and stores the result. No scratch
// memory, no atomics: the same bits in each run.
template <class S>
__device__ __forceinline__ int owner_of(const GemmParams& p, int u) {
  return u * p.split / S::kUnits;
}
template <class S>
__device__ __forceinline__ int first_owned(const GemmParams& p, int owner) {
  return (owner * S::kUnits + p.split - 1) / p.split;
}

// Consumer release of this block's buffer of partial sums, to every block that writes there.
template <class S>
__device__ __forceinline__ void release_partials(const GemmConsumer<S>& c) {
  const GemmBlock<S>& block = c.block;
  __syncwarp();
  if (block.lane < block.p.split)
    mbarrier_arrive_cluster(cluster_addr(block.partials_empty, block.split_rank(block.lane)));
}

// All units to their owners, this block's own ones too, so that owners need one loop only.
template <class S>
__device__ __forceinline__ void send_partials(const GemmConsumer<S>& c, const Accumulators<S>& acc, int units_each) {
  const GemmBlock<S>& block = c.block;
  const uint32_t slot = block.partials + (block.split_idx * units_each * S::kUnit * kConsumerThreads + c.thread) * 16;
  int owner = -1;
  uint32_t to = 0, to_bar = 0;
#pragma unroll
  for (int u = 0; u < S::kUnits; ++u) {
    if (owner_of<S>(block.p, u) != owner) {
      owner = owner_of<S>(block.p, u);
      to = cluster_addr(slot, block.split_rank(owner));
      to_bar = cluster_addr(block.partials_full, block.split_rank(owner));
    }
#pragma unroll
    for (int part = 0; part < S::kUnit; ++part, to += kConsumerThreads * 16)
      store_cluster_async(to, to_bar, vector_of<S>(acc, u, part));
  }
}

// Vector `part` of the i-th unit that this block owns, summed over the blocks.
template <class S>
__device__ __forceinline__ float4 sum_partials(const GemmConsumer<S>& c, int i, int part, int units_each) {
  const float4* from =
      c.block.template at<const float4>(c.block.partials) + (i * S::kUnit + part) * kConsumerThreads + c.thread;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
  for (int r = 0; r < c.block.p.split; ++r, from += units_each * S::kUnit * kConsumerThreads) {
    const float4 x = *from;
    sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
  }
  return sum;
}

template <class S, bool kOutBf16>
__device__ __forceinline__ void store_sums(const GemmConsumer<S>& c, const Tile& tile, int own_begin, int own_end,
                                           int units_each, float* smem) {
  constexpr int kMost = kLineVectors<kOutBf16>;
#pragma unroll 1
  for (int u = own_begin; u < own_end; u += kMost) {
    const int count = min(kMost, own_end - u);
#pragma unroll 1
    for (int i = 0; i < count; ++i)
      stage_to_smem<S, kOutBf16>(smem, i, sum_partials(c, u + i - own_begin, 0, units_each));
    store_staged<S, kOutBf16>(c.block.p, tile, c.warp_row(), 8 * u, count, smem);
  }
}

// Reduces a tile of which this block has multiplied a part of k, and stores the units that it owns.
template <class S>
__device__ __forceinline__ void reduce(GemmConsumer<S>& c, const Tile& tile, const Accumulators<S>& acc) {
  const GemmBlock<S>& block = c.block;
  const GemmParams& p = block.p;
  float* const smem = epilogue_smem(c);
  const int units_each = S::units_each(p.split), own_begin = first_owned<S>(p, block.split_idx),
            own_end = first_owned<S>(p, block.split_idx + 1);
  if (p.partials_in_stages) release_partials(c);
  mbarrier_wait_cluster(block.partials_empty, c.partials_phase ^ (p.partials_in_stages ? 0 : 1));
  // After the wait: where a block owns no unit it expects no bytes, so that this arrival ends the phase, and every warp
  // must be past the wait for the phase before. (Partial sums that arrive earlier are counted all the same.)
  if (c.thread == 0)
    mbarrier_arrive_expect_tx(block.partials_full, p.split * (own_end - own_begin) * S::kUnit * kConsumerThreads * 16);
  send_partials(c, acc, units_each);
  mbarrier_wait_cluster(block.partials_full, c.partials_phase);
  if constexpr (S::kSwap) {
#pragma unroll 1
    for (int u = own_begin; u < own_end; ++u) {
      const float4 gate = sum_partials(c, u - own_begin, 0, units_each);
      const int2 v = vector_at<S>(u, 0);
      store_swapped<S>(p, tile, v.x * 128 + c.warp_row(), v.y,
                       S::kGated ? silu_times(gate, sum_partials(c, u - own_begin, S::kUnit - 1, units_each)) : gate,
                       smem);
    }
  } else if (p.out_bf16) {
    store_sums<S, true>(c, tile, own_begin, own_end, units_each, smem);
  } else {
    store_sums<S, false>(c, tile, own_begin, own_end, units_each, smem);
  }
  if (!p.one_tile) release_partials(c);
  c.partials_phase ^= 1;
}

}  // namespace moectl::cuda::kernel
