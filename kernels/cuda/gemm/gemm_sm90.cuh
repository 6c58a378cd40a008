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
// run. What runs once a tile is kept short: its code comes from memory each time, and nobody multiplies meanwhile.
//
// Two orientations: tokens on wgmma's M axis (many rows), or weight rows there and tokens on N (`kSwap`, few rows: the
// tensor core's M = 64 is then filled, and the time is that of reading the weights). An output's bits are the same in
// all tilings that divide k alike.
#pragma once

#include <type_traits>

#include "kernels/cuda/gemm/gemm_plan_sm90.cuh"
#include "kernels/cuda/gemm/gemm_tile_sm90.cuh"
#include "kernels/cuda/gemm/wgmma.cuh"
#include "kernels/cuda/runtime/hopper.cuh"

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
                 scales = tokens + p.stages * S::kTokenBytes,
                 exchange = p.exchange_in_ring ? weights : scales + p.stages * S::kScaleBytes,
                 passes = scales + p.stages * S::kScaleBytes + (p.exchange_in_ring ? 0 : S::reduce_bytes(p.split));

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // multicast is a power of two: it divides a tile's tokens.
  const int multicast_bits = __ffs(p.multicast) - 1, rank = int(cluster_ctarank());
  const int multicast_idx = rank & (p.multicast - 1), split_idx = rank >> multicast_bits;
  const int col_tiles = (p.n + S::kOutCols - 1) / S::kOutCols,
            col_groups = (col_tiles + p.multicast - 1) >> multicast_bits;

  if (warp == 0) {
    if (lane < p.stages) {
      mbarrier_init(full + 8 * lane, S::kBf16 ? 2 : kProducerWarps);
      mbarrier_init(empty + 8 * lane, kConsumerWarps * p.multicast);
    }
    if (lane == 0) {
      mbarrier_init(reduce_full, 1);
      mbarrier_init(reduce_empty, kConsumerWarps * p.split);
      tma_prefetch_map(&map_w);
      tma_prefetch_map(&map_a);
    }
    fence_mbarrier_init();
    __syncwarp();
    if (p.offsets && !p.offsets_settled) grid_dependency_wait();
    fill_tile_table(tile_begin, row_begin, p, S::kTokens, col_groups);
  }
  if (p.multicast * p.split > 1)
    cluster_sync();
  else
    __syncthreads();

  GemmSchedule<S> schedule{p, tile_begin, row_begin, col_groups, multicast_idx, split_idx};

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
        // Weights need not wait for the kernel before this one, unless it tells which.
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
      constexpr int kWhole = S::kBf16 ? 8 : S::kTileN;
      uint32_t rows[S::kFromRegs ? S::kBuffers : 1][4][4];
      float part[S::kBuffers][kWhole / 2];
      Scales<S> factor[S::kBuffers];
      const auto start = [&](auto buffer, int sub) {
        if (sub == 0) mbarrier_wait(full + 8 * stage, phase);
        const uint32_t w = weights + stage * S::kWeightBytes, a = tokens + stage * S::kTokenBytes;
        const uint32_t m = (S::kSwap ? w : a) + (sub * 2 + wg) * 64 * kTileK, desc_m = wgmma_desc_low(m),
                       desc_n = wgmma_desc_low(S::kSwap ? a : w);
        if constexpr (S::kFromRegs) {
          const uint32_t row = m + (t0 % 128 / 32 * 16 + lane % 16) * kTileK;
#pragma unroll
          for (int k = 0; k < kTileK / 32; ++k)
            ldmatrix_x4(row + ((2 * k + lane / 16) ^ (lane % 8)) * 16, rows[buffer][k]);
        }
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kTileK / 32; ++k)
          if constexpr (S::kFromRegs)
            WgmmaF8Reg<kWhole>::mma(part[buffer], rows[buffer][k], wgmma_desc_from(desc_n + 2 * k), k > 0);
          else
            WgmmaF8<kWhole>::mma(part[buffer], wgmma_desc_from(desc_m + 2 * k), wgmma_desc_from(desc_n + 2 * k), k > 0);
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

      // Unit u of a thread: the vector of four sums, or gate's and up's, that make one output.
      const auto at = [](int u, int part) {  // -> {sub, j}
        constexpr int kPerSub = S::kTileN / 8;
        if constexpr (!S::kGated) return int2{u / kPerSub, u % kPerSub};
        if constexpr (S::kSwap) return int2{part, u};
        return int2{u / (kPerSub / 2), u % (kPerSub / 2) + part * (kPerSub / 2)};
      };
      const auto vector = [&](int u, int part) {
        const int2 v = at(u, part);
        return make_float4(acc[v.x][4 * v.y], acc[v.x][4 * v.y + 1], acc[v.x][4 * v.y + 2], acc[v.x][4 * v.y + 3]);
      };
      float* const pass = reinterpret_cast<float*>(smem + (passes - base)) + t0 / 32 * S::kPassFloats;
      const int row0 = wg * 64 + t0 % 128 / 32 * 16;  // of this warp on the M axis
      if (S::kCanSplit && work.split) {
        // Block owner_of(u) of the cluster adds up unit u and puts it out: loops over what lies in shared memory, its
        // own sums too, so that the code is short.
        const auto owner_of = [&](int u) { return u * p.split / S::kUnits; };
        const auto first_of = [&](int owner) { return (owner * S::kUnits + p.split - 1) / p.split; };
        const int units_each = S::units_each(p.split), own_begin = first_of(split_idx),
                  own_end = first_of(split_idx + 1);
        // Everybody may write to this block's exchange.
        const auto invite = [&] {
          __syncwarp();
          if (lane < p.split) mbarrier_arrive_cluster(cluster_addr(reduce_empty, lane * p.multicast + multicast_idx));
        };
        const uint32_t slot = exchange + (split_idx * units_each * S::kUnit * kConsumerThreads + t0) * 16;
        if (p.exchange_in_ring) invite();
        mbarrier_wait_cluster(reduce_empty, reduce_phase ^ (p.exchange_in_ring ? 0 : 1));
        // Behind the wait: a block that owns no unit expects nothing, so that this arrival ends the phase; every warp
        // must be past the wait for the phase before. (Sums that come earlier are counted all the same.)
        if (t0 == 0)
          mbarrier_arrive_expect_tx(reduce_full, p.split * (own_end - own_begin) * S::kUnit * kConsumerThreads * 16);
        int owner = -1;
        uint32_t to = 0, to_bar = 0;
#pragma unroll
        for (int u = 0; u < S::kUnits; ++u) {
          if (owner_of(u) != owner) {
            owner = owner_of(u);
            to = cluster_addr(slot, owner * p.multicast + multicast_idx);
            to_bar = cluster_addr(reduce_full, owner * p.multicast + multicast_idx);
          }
#pragma unroll
          for (int w = 0; w < S::kUnit; ++w, to += kConsumerThreads * 16) store_cluster_async(to, to_bar, vector(u, w));
        }
        mbarrier_wait_cluster(reduce_full, reduce_phase);
        const auto sum_of = [&](int u, int part) {
          const float4* from = reinterpret_cast<const float4*>(smem + (exchange - base)) +
                               ((u - own_begin) * S::kUnit + part) * kConsumerThreads + t0;
          float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
          for (int r = 0; r < p.split; ++r, from += units_each * S::kUnit * kConsumerThreads) {
            const float4 x = *from;
            sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
          }
          return sum;
        };
        if constexpr (S::kSwap) {
#pragma unroll 1
          for (int u = own_begin; u < own_end; ++u) {
            const float4 gate = sum_of(u, 0);
            store_swapped<S>(p, tile, at(u, 0).x * 128 + row0, at(u, 0).y,
                             S::kGated ? silu_times(gate, sum_of(u, S::kUnit - 1)) : gate, pass);
          }
        } else {
          const auto store = [&](auto bf16) {
            constexpr int kMost = bf16 ? 8 : 4;
#pragma unroll 1
            for (int u = own_begin; u < own_end; u += kMost) {
              const int count = min(kMost, own_end - u);
#pragma unroll 1
              for (int i = 0; i < count; ++i) put_in_pass<S, bf16>(pass, i, sum_of(u + i, 0));
              store_pass<S, bf16>(p, tile, row0, 8 * u, count, pass);
            }
          };
          if (p.out_bf16)
            store(std::true_type{});
          else
            store(std::false_type{});
        }
        if (!p.one_tile) invite();
        reduce_phase ^= 1;
      } else {
        const auto result = [&](int u) {
          return S::kGated ? silu_times(vector(u, 0), vector(u, S::kUnit - 1)) : vector(u, 0);
        };
        if constexpr (S::kSwap) {
#pragma unroll
          for (int u = 0; u < S::kUnits; ++u)
            store_swapped<S>(p, tile, at(u, 0).x * 128 + row0, at(u, 0).y, result(u), pass);
        } else {
          const auto store = [&](auto bf16) {
            constexpr int kPerSub = S::kOutCols / 8, kMost = bf16 ? 8 : 4;
            constexpr auto least = [](int a, int b) { return a < b ? a : b; };
#pragma unroll
            for (int sub = 0; sub < S::kSub; ++sub)
#pragma unroll
              for (int j = 0; j < kPerSub; j += kMost) {
#pragma unroll
                for (int i = 0; i < least(kMost, kPerSub - j); ++i)
                  put_in_pass<S, bf16>(pass, i, result(sub * kPerSub + j + i));
                store_pass<S, bf16>(p, tile, sub * 128 + row0, 8 * j, least(kMost, kPerSub - j), pass);
              }
          };
          if (p.out_bf16)
            store(std::true_type{});
          else
            store(std::false_type{});
        }
      }
    }
  }
  __syncwarp();
  // Nobody leaves while a neighbour may still write to its shared memory or barriers. After one shared tile nobody can:
  // this block has had all partial sums, and with them all invitations.
  if (p.multicast * p.split > 1 && !(p.multicast == 1 && p.one_tile)) cluster_sync();
}

}  // namespace moectl::cuda::kernel
