// The kernel of fp8_gemm and bf16_gemm: out = A W^T (shapes and layouts in fp8_gemm.h, bf16_gemm.h). sm_90a only.
//
// A block has three warpgroups. Four threads of the first, one a kind of operand, keep a ring of stages full by TMA: a
// stage is one tile of weights, one of tokens (128 bytes of k, swizzled) and their scales. The other two warpgroups
// multiply 64 * kSub rows of the tile each. wgmma's FP8 sums keep few bits, so the sum of each 128 of k is scaled and
// added to f32 registers, while the next product runs where the registers allow it; BF16 adds up in the tensor cores.
//
// The grid is persistent: a cluster takes tiles c, c + clusters, ... of all experts' tiles, found through a table that
// each block makes of expert_offsets. In a cluster `multicast` blocks take neighbouring weight tiles and load their
// common tokens once, and `split` blocks share the tiles of the last round: they divide k and exchange partial sums
// through distributed shared memory, added in the order of k. So: no scratch memory, no atomics, the same bits in each
// run.
//
// Two orientations: tokens on wgmma's M axis (many rows), or weight rows there and tokens on N (`kSwap`, few rows: the
// tensor core's M = 64 is then filled, and the time is that of reading the weights). An output's bits are the same in
// all tilings that divide k alike.
#pragma once

#include <type_traits>

#include "kernels/cuda/gemm_plan_sm90.cuh"
#include "kernels/cuda/gemm_tile_sm90.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace moectl::cuda::kernel {

template <class S>
__global__ void __launch_bounds__(kGemmThreads, 1)
    gemm(const __grid_constant__ CUtensorMap map_w, const __grid_constant__ CUtensorMap map_w_up,
         const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_a8,
         const __grid_constant__ GemmParams p) {
  extern __shared__ __align__(1024) uint8_t smem[];
  const uint32_t base = smem_addr(smem);
  // Barriers: full and empty of each stage, then the exchange's full and empty.
  const uint32_t full = base, empty = base + 8 * S::kMaxStages, reduce_full = base + 16 * S::kMaxStages,
                 reduce_empty = reduce_full + 8;
  int* const tile_begin = reinterpret_cast<int*>(smem + S::kTableOffset);
  int* const row_begin = tile_begin + p.num_experts + 1;
  const uint32_t weights = base + S::head_bytes(p.num_experts), tokens = weights + p.stages * S::kWeightBytes,
                 scales = tokens + p.stages * S::kTokenBytes, exchange = scales + p.stages * S::kScaleBytes;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rank = int(cluster_ctarank()), multicast_idx = rank % p.multicast, split_idx = rank / p.multicast;
  const int col_tiles = (p.n + S::kOutCols - 1) / S::kOutCols, col_groups = (col_tiles + p.multicast - 1) / p.multicast;

  if (warp == 0) {
    if (lane == 0) {
      for (int s = 0; s < p.stages; ++s) {
        mbarrier_init(full + 8 * s, S::kBf16 ? 2 : kProducerWarps);
        mbarrier_init(empty + 8 * s, kConsumerWarps * p.multicast);
      }
      mbarrier_init(reduce_full, 1);
      mbarrier_init(reduce_empty, kConsumerWarps * (p.split - 1) + 1);
      fence_mbarrier_init();
      tma_prefetch_map(&map_w);
      tma_prefetch_map(&map_a);
    }
    __syncwarp();
    if (p.offsets) grid_dependency_wait();
    fill_tile_table(tile_begin, row_begin, p, S::kTokens, col_groups);
  }
  if (p.multicast * p.split > 1)
    cluster_sync();
  else
    __syncthreads();

  Schedule<S> schedule{p, tile_begin, row_begin, col_groups, multicast_idx, split_idx};

  if (warp < kProducerWarps) {
    setmaxnreg_dec<40>();
    // One thread a kind of operand, so that each has few registers to juggle: 0 weights, 1 tokens, 2 weight scales, 3
    // token scales. fill(work) returns what loads one k-block: (kb, stage, barrier) -> nothing.
    const auto produce = [&](auto&& fill) {
      Work work;
      for (int stage = 0, phase = 0; schedule.next(work);) {
        auto&& load = fill(work.tile);
        for (int kb = work.kb_begin; kb < work.kb_end; ++kb) {
          mbarrier_wait(empty + 8 * stage, phase ^ 1);
          load(kb, stage, full + 8 * stage);
          if (++stage == p.stages) stage = 0, phase ^= 1;
        }
      }
    };
    if (elect_one()) {
      if (warp == 0) {
        // Weights need not wait for the kernel before this one; only in the grouped case it tells which.
        grid_dependency_launch();
        produce([&](const TileAt& tile) {
          const int batch = p.expert_begin + tile.expert;
          return [&, batch](int kb, int stage, uint32_t bar) {
            const uint32_t dst = weights + stage * S::kWeightBytes;
            mbarrier_arrive_expect_tx(bar, S::kWeightBytes);
            tma_load_4d(dst, &map_w, bar, 0, tile.col, kb, batch, p.weight_policy);
            if constexpr (S::kGated)
              tma_load_4d(dst + S::kWeightBytes / 2, &map_w_up, bar, 0, tile.col, kb, batch, p.weight_policy);
          };
        });
      } else if (warp == 1) {
        grid_dependency_wait();
        const uint16_t mask = uint16_t(((1u << p.multicast) - 1) << (split_idx * p.multicast));
        produce([&](const TileAt& tile) {
          // Few rows come in pieces of eight (the swizzle's period), so that rows that nobody needs are not read.
          const int rows = min(tile.rows, S::kTokens), eights = (rows + 7) / 8;
          const bool few = S::kSwap && eights <= kFewEights && eights * 8 < S::kTokens;
          const int box = few ? 8 : p.a_box, boxes = (rows + box - 1) / box;
          const CUtensorMap* map = few ? &map_a8 : &map_a;
          return [&, box, boxes, map](int kb, int stage, uint32_t bar) {
            const uint32_t dst = tokens + stage * S::kTokenBytes;
            mbarrier_arrive_expect_tx(bar, boxes * box * kTileK);
            for (int b = multicast_idx; b < boxes; b += p.multicast) {
              if (p.multicast > 1)
                tma_load_3d_multicast(dst + b * box * kTileK, map, bar, 0, tile.row + b * box, kb, mask,
                                      p.token_policy);
              else
                tma_load_3d(dst + b * box * kTileK, map, bar, 0, tile.row + b * box, kb, p.token_policy);
            }
          };
        });
      } else if (!S::kBf16 && warp == 2) {
        produce([&](const TileAt& tile) {
          const int block = tile.col / kScaleBlock, bytes = 4 * scales_from(block, S::kWeightScales, p.w_scale_stride);
          const int64_t first = int64_t(p.expert_begin + tile.expert) * p.num_kb * p.w_scale_stride + (block & ~3);
          return [&, bytes, first](int kb, int stage, uint32_t bar) {
            const uint32_t dst = scales + stage * S::kScaleBytes + S::kTokenScaleBytes;
            mbarrier_arrive_expect_tx(bar, bytes * (S::kGated ? 2 : 1));
            if (bytes == 0) return;  // a block of a multicast group that has no columns
            bulk_load(dst, p.w_scales + first + kb * p.w_scale_stride, bytes, bar);
            if constexpr (S::kGated)
              bulk_load(dst + S::kWeightScaleBytes, p.w_up_scales + first + kb * p.w_scale_stride, bytes, bar);
          };
        });
      } else if (!S::kBf16) {
        grid_dependency_wait();
        produce([&](const TileAt& tile) {
          const int bytes = 4 * scales_from(tile.row, S::kTokenScales, p.a_scale_stride);
          const float* first = p.a_scales + (tile.row & ~3);
          return [&, bytes, first](int kb, int stage, uint32_t bar) {
            mbarrier_arrive_expect_tx(bar, bytes);
            bulk_load(scales + stage * S::kScaleBytes, first + int64_t(kb) * p.a_scale_stride, bytes, bar);
          };
        });
      }
    }
  } else {
    setmaxnreg_inc<232>();
    const int t0 = threadIdx.x - (kGemmThreads - kConsumerThreads);
    const int wg = __shfl_sync(0xffffffffu, t0 / 128, 0);  // so that the compiler knows it to be the same in a warp
    int stage = 0, phase = 0, done = 0, reduce_phase = 0;
    for (Work work; schedule.next(work);) {
      const TileAt& tile = work.tile;
      float acc[S::kSub][S::kTileN / 2];
#pragma unroll
      for (int sub = 0; sub < S::kSub; ++sub)
#pragma unroll
        for (int i = 0; i < S::kTileN / 2; ++i) acc[sub][i] = 0.0f;

      // The oldest stage is free: its products are done and nothing more is read from it.
      const auto release = [&] {
        __syncwarp();
        if (p.multicast == 1) {
          if (lane == 0) mbarrier_arrive(empty + 8 * done);
        } else if (lane < p.multicast) {
          mbarrier_arrive_cluster(cluster_addr(empty + 8 * done, split_idx * p.multicast + lane));
        }
        if (++done == p.stages) done = 0;
      };
      // One product: the tile's half `sub` and one k-block into part[buffer]. With two buffers the next product runs in
      // the tensor cores while the last one is scaled and added.
      float part[S::kBuffers][S::kTileN / 2];
      Scales<S> factor[S::kBuffers];
      const auto start = [&](auto buffer, int sub) {
        if (sub == 0) mbarrier_wait(full + 8 * stage, phase);
        const uint32_t w = weights + stage * S::kWeightBytes, a = tokens + stage * S::kTokenBytes;
        const uint32_t desc_m = wgmma_desc_low((S::kSwap ? w : a) + (sub * 2 + wg) * 64 * kTileK),
                       desc_n = wgmma_desc_low(S::kSwap ? a : w);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTileK / 32; ++k)
          WgmmaF8<S::kTileN>::mma(part[buffer], wgmma_desc_from(desc_m + 2 * k), wgmma_desc_from(desc_n + 2 * k),
                                  k > 0);
        wgmma_commit();
        // While the tensor cores work: the scales, so that little but arithmetic follows the wait.
        const float* stage_scales = reinterpret_cast<const float*>(smem + (scales - base) + stage * S::kScaleBytes);
        factor[buffer].load(stage_scales + tile.row % 4,
                            stage_scales + S::kTokenScaleBytes / 4 + tile.col / kScaleBlock % 4, sub, wg);
        if (sub == S::kSub - 1 && ++stage == p.stages) stage = 0, phase ^= 1;
      };
      const auto finish = [&](auto buffer, int sub, auto in_flight) {
        wgmma_wait<in_flight>();
        wgmma_pin(part[buffer]);
        if (Scales<S>::kEarly && sub == S::kSub - 1) release();
#pragma unroll
        for (int j = 0; j < S::kTileN / 8; ++j) {
          float f[4];
          factor[buffer].of(j, tile.col % kScaleBlock, f);
#pragma unroll
          for (int i = 0; i < 4; ++i) acc[sub][4 * j + i] += part[buffer][4 * j + i] * f[i];
        }
        if (!Scales<S>::kEarly && sub == S::kSub - 1) release();
      };
      constexpr std::integral_constant<int, 0> kFirst;
      constexpr std::integral_constant<int, S::kBuffers - 1> kSecond;
      constexpr std::integral_constant<int, 0> kLast;  // products that may still run after the wait
      constexpr std::integral_constant<int, 1> kOneMore;
      if constexpr (S::kBf16) {
        for (int kb = work.kb_begin; kb < work.kb_end; ++kb) {
          mbarrier_wait(full + 8 * stage, phase);
          const uint32_t w = weights + stage * S::kWeightBytes, a = tokens + stage * S::kTokenBytes;
          const uint32_t desc_n = wgmma_desc_low(S::kSwap ? a : w);
          wgmma_fence();
#pragma unroll
          for (int sub = 0; sub < S::kSub; ++sub) {
            const uint32_t desc_m = wgmma_desc_low((S::kSwap ? w : a) + (sub * 2 + wg) * 64 * kTileK);
#pragma unroll
            for (int k = 0; k < kTileK / 32; ++k)
              WgmmaBf16<S::kTileN>::mma(acc[sub], wgmma_desc_from(desc_m + 2 * k), wgmma_desc_from(desc_n + 2 * k), 1);
          }
          wgmma_commit();
          wgmma_wait<1>();
          if (kb > work.kb_begin) release();
          if (++stage == p.stages) stage = 0, phase ^= 1;
        }
        wgmma_wait<0>();
#pragma unroll
        for (int sub = 0; sub < S::kSub; ++sub) wgmma_pin(acc[sub]);
        if (work.kb_end > work.kb_begin) release();
      } else if constexpr (S::kBuffers == 2) {
        constexpr int kOdd = S::kSub - 1;  // the half of every second product
        const int products = (work.kb_end - work.kb_begin) * S::kSub;
        if (products > 0) {
          start(kFirst, 0);
          int left = products - 1;  // not yet started
          for (; left >= 2; left -= 2) {
            start(kSecond, kOdd);
            finish(kFirst, 0, kOneMore);
            start(kFirst, 0);
            finish(kSecond, kOdd, kOneMore);
          }
          if (left == 1) {
            start(kSecond, kOdd);
            finish(kFirst, 0, kOneMore);
            finish(kSecond, kOdd, kLast);
          } else {
            finish(kFirst, 0, kLast);
          }
        }
      } else {
        for (int kb = work.kb_begin; kb < work.kb_end; ++kb)
#pragma unroll
          for (int sub = 0; sub < S::kSub; ++sub) {
            start(kFirst, sub);
            finish(kFirst, sub, kLast);
          }
      }

      const auto vector = [&](int sub, int j) {
        return make_float4(acc[sub][4 * j], acc[sub][4 * j + 1], acc[sub][4 * j + 2], acc[sub][4 * j + 3]);
      };
      // Unit u of a thread: the vector, or gate's and up's, that make one output; block u / units_each owns it.
      const auto at = [](int u, int part) {  // -> {sub, j}
        constexpr int kPerSub = S::kTileN / 8;
        if constexpr (!S::kGated) return int2{u / kPerSub, u % kPerSub};
        if constexpr (S::kSwap) return int2{part, u};
        return int2{u / (kPerSub / 2), u % (kPerSub / 2) + part * (kPerSub / 2)};
      };
      const bool split = S::kCanSplit && work.split;
      const int units_each = S::kUnits / p.split, unit_shift = __ffs(units_each) - 1;
      if (split) {
        if (t0 == 0) mbarrier_arrive_expect_tx(reduce_full, S::reduce_bytes(p.split));
        mbarrier_wait_cluster(reduce_empty, reduce_phase ^ 1);
#pragma unroll
        for (int u = 0; u < S::kUnits; ++u) {
          const int owner = u >> unit_shift;
          if (owner == split_idx) continue;
          const int slot = split_idx - (split_idx > owner), peer = owner * p.multicast + multicast_idx;
#pragma unroll
          for (int w = 0; w < S::kUnit; ++w) {
            const int2 v = at(u, w);
            const int i = (slot * units_each + (u & (units_each - 1))) * S::kUnit + w;
            store_cluster_async(cluster_addr(exchange + (i * kConsumerThreads + t0) * 16, peer),
                                cluster_addr(reduce_full, peer), vector(v.x, v.y));
          }
        }
        mbarrier_wait_cluster(reduce_full, reduce_phase);
      }
      // What unit u puts out.
      const auto result = [&](int u) {
        float4 sum[S::kUnit];
#pragma unroll
        for (int w = 0; w < S::kUnit; ++w) {
          const int2 v = at(u, w);
          sum[w] = vector(v.x, v.y);
          if (!split) continue;
          const float4 own = sum[w];
          sum[w] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          for (int r = 0; r < p.split; ++r) {
            const int i = ((r - (r > split_idx)) * units_each + (u & (units_each - 1))) * S::kUnit + w;
            const float4 x =
                r == split_idx
                    ? own
                    : *reinterpret_cast<const float4*>(smem + (exchange - base) + (i * kConsumerThreads + t0) * 16);
            sum[w].x += x.x, sum[w].y += x.y, sum[w].z += x.z, sum[w].w += x.w;
          }
        }
        if constexpr (S::kGated)
          return make_float4(silu(sum[0].x) * sum[1].x, silu(sum[0].y) * sum[1].y, silu(sum[0].z) * sum[1].z,
                             silu(sum[0].w) * sum[1].w);
        else
          return sum[0];
      };
      if constexpr (S::kSwap) {
#pragma unroll
        for (int u = 0; u < S::kUnits; ++u)
          if (!split || u >> unit_shift == split_idx) store_swapped(p, tile, at(u, 0).x, at(u, 0).y, result(u));
      } else {
        constexpr int kPerSub = S::kOutCols / 8;
        float* const pass =
            reinterpret_cast<float*>(smem + (exchange - base) + S::reduce_bytes(p.split)) + t0 / 32 * 16 * S::kPassRow;
#pragma unroll
        for (int sub = 0; sub < S::kSub; ++sub)
#pragma unroll
          for (int j = 0; j < kPerSub; j += 4) {
            const int u = sub * kPerSub + j;
            if (split && u >> unit_shift != split_idx) continue;
            constexpr int kMost = 4;
            const int count = kPerSub - j < kMost ? kPerSub - j : kMost;
#pragma unroll
            for (int i = 0; i < kMost; ++i) {
              if (i >= count) break;
              const float4 v = result(u + i);
              float* const to = pass + lane / 4 * S::kPassRow + 8 * i + lane % 4 * 2;
              *reinterpret_cast<float2*>(to) = make_float2(v.x, v.y);
              *reinterpret_cast<float2*>(to + 8 * S::kPassRow) = make_float2(v.z, v.w);
            }
            store_pass<S>(p, tile, (sub * 2 + wg) * 64 + t0 % 128 / 32 * 16, 8 * j, count, pass);
          }
      }
      if (split) {
        __syncwarp();
        if (lane < p.split && lane != split_idx)
          mbarrier_arrive_cluster(cluster_addr(reduce_empty, lane * p.multicast + multicast_idx));
        if (t0 == 0) mbarrier_arrive(reduce_empty);
        reduce_phase ^= 1;
      }
    }
  }
  __syncwarp();
  // Nobody leaves while a neighbour may still write to its shared memory or barriers.
  if (p.multicast * p.split > 1) cluster_sync();
}

}  // namespace moectl::cuda::kernel
