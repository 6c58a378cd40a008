// out[t, h] = W[h] x[t, h] for every head: the projections of absorbed MLA (mla_project_sm90.h).
//
// These products are bound by memory: a head's weights (64 KB in FP8) are multiplied with 8 to 64 tokens per block, so
// the kernel moves every byte once and early. A block of two warpgroups takes one head, T tokens and one or more tiles
// of 128 rows of W; weight rows are on wgmma's M axis, tokens on N. Weights go from memory straight into registers, as
// A, 16 elements of a row per lane, and are widened to bf16 there (exact for e4m3: its bits are moved and multiplied by
// 2^120); the first loads are issued before the preceding kernel has ended. Tokens are rounded to bf16 into shared
// memory, as B. The k's of a slice of sixteen may be any as long as both operands agree: lane q of a quad has k = 64 i
// + 16 q .. + 15, four of which belong to each of the slices 4 i + 0 .. 3.
//
// The sum of every 128 of k is multiplied by the block's scale and added in f32, in the order of k, so an output's bits
// depend on neither T nor the tiling. The epilogue stages results in shared memory and stores whole lines; a warp that
// holds a token's 128 values also quantizes them to FP8.
#include <algorithm>

#include "kernels/cuda/attention/attention_sm90.cuh"
#include "kernels/cuda/elementwise/fp8_quantize.cuh"
#include "kernels/cuda/elementwise/rope.cuh"
#include "kernels/cuda/gemm/wgmma.cuh"
#include "kernels/cuda/mla/mla_project_sm90.h"
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/hopper.cuh"

namespace moectl::cuda {
namespace kernel {
namespace {

using namespace hopper;

constexpr int kThreads = 256, kWarps = kThreads / kWarp, kTileN = 128, kBlockK = 128, kRotated = 64;

struct ProjectParams {
  MlaProject p;
  MlaRotation rotation;
  __nv_bfloat16* bf16;  // mla_project_out, as below
  Fp8Rows fp8;
  int tiles_each;  // tiles of W per block
};

// K: inputs. kIn: f32 to bf16, with a rotary part; else bf16 to f32.
template <bool kF8_, bool kIn_, int K_, int T_>
struct ProjectShape {
  static constexpr bool kF8 = kF8_, kIn = kIn_;
  static constexpr int K = K_, T = T_;
  static constexpr int kChunks = K / 64, kChunkBytes = T * 128;  // of tokens: T rows of 64 elements, swizzled
  // Rows of results are padded by 16 bytes: the columns of a group of rows fall into different banks.
  static constexpr int kOutPitch = kTileN * (kIn ? 2 : 4) + 16, kOutRows = T < 16 ? 16 : T;
  static constexpr int kOutBytes = kOutPitch * kOutRows;
  static constexpr int kRowBytes = kF8 ? kBlockK : 2 * K;                   // from one row of W to the next
  static constexpr int kAhead = kIn || !kF8 || T > 32 ? 1 : T > 8 ? 2 : 4;  // steps whose weights are in flight
  static int shared_bytes(int tiles) { return kChunks * kChunkBytes + std::min(tiles, 2) * kOutBytes; }
};

// ------------------------------------------------------------------------------------------------ weights

// Of 128 k's: 16 elements each of rows r and r + 8 of a warp's sixteen, from k = 64 i + 16 q, i = 0, 1.
template <bool kF8>
struct LaneWeights {
  static constexpr int kWords = kF8 ? 4 : 8;
  uint32_t v[2][2][kWords];

  template <int kRowBytes>
  __device__ __forceinline__ void load(const std::byte* at) {
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int w = 0; w < kWords; w += 4) {
          const auto* from = reinterpret_cast<const uint4*>(at + row * 8 * kRowBytes + i * (kF8 ? 64 : 128)) + w / 4;
          // Volatile: the load is to be issued before the product that follows.
          asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                       : "=r"(v[row][i][w]), "=r"(v[row][i][w + 1]), "=r"(v[row][i][w + 2]), "=r"(v[row][i][w + 3])
                       : "l"(from));
        }
  }
};

// Two e4m3 values in bytes 1 and 3 to bf16: sign, exponent and mantissa are moved to their places, then the bias of the
// exponent is corrected.
__device__ __forceinline__ uint32_t widen_pair(uint32_t x) {
  const uint32_t bits = (x & 0x80008000u) | (x & 0x7f007f00u) >> 4;
  const __nv_bfloat162 v = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&bits),
                                   __nv_bfloat162(__ushort_as_bfloat16(0x7b80), __ushort_as_bfloat16(0x7b80)));
  return *reinterpret_cast<const uint32_t*>(&v);
}

// A of slice 4 i + s: elements 4 s .. 4 s + 3 of each sixteen, the first two at the low k's, the others at the high
// ones.
template <bool kF8>
__device__ __forceinline__ void fragment(const LaneWeights<kF8>& w, int i, int s, uint32_t (&a)[4]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    if constexpr (kF8) {
      a[row] = widen_pair(__byte_perm(w.v[row][i][s], 0, 0x1404));
      a[row + 2] = widen_pair(__byte_perm(w.v[row][i][s], 0, 0x3424));
    } else {
      a[row] = w.v[row][i][2 * s];
      a[row + 2] = w.v[row][i][2 * s + 1];
    }
  }
}

// ------------------------------------------------------------------------------------------------ tokens

// 16 elements of one token.
template <class X>
struct LaneTokens {
  static constexpr int kWords = sizeof(X);  // of 16 bytes
  uint4 raw[kWords];

  __device__ __forceinline__ void load(const X* x) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) raw[i] = __ldg(reinterpret_cast<const uint4*>(x) + i);
  }
  // Elements 2 j and 2 j + 1 in bf16.
  __device__ __forceinline__ uint32_t pair(int j) const {
    if constexpr (kWords == 4) {
      const uint4 v = raw[j / 2];
      return j % 2 ? pack_bf16(__uint_as_float(v.z), __uint_as_float(v.w))
                   : pack_bf16(__uint_as_float(v.x), __uint_as_float(v.y));
    } else {
      const uint4 v = raw[j / 4];
      return j % 4 == 0 ? v.x : j % 4 == 1 ? v.y : j % 4 == 2 ? v.z : v.w;
    }
  }
};

// The block's tokens to shared memory; `meanwhile` runs while the loads are in flight. A warp takes eight tokens and 64
// k's at a time: four lanes per token, whose words of one store are in 32 banks. Tokens beyond the last repeat it;
// their results are not stored.
template <class S, class X, class Meanwhile>
__device__ __forceinline__ void load_tokens(uint32_t smem, const X* x, int64_t x_row, int rows, Meanwhile&& meanwhile) {
  constexpr int kItems = S::T / 8 * S::kChunks, kEach = (kItems + kWarps - 1) / kWarps;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane % 4, group = lane / 4;
  LaneTokens<X> lane_tokens[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int item = i * kWarps + warp, token = item / S::kChunks * 8 + group, chunk = item % S::kChunks;
    lane_tokens[i].load(x + min(token, rows - 1) * x_row + chunk * 64 + quad * 16);
  }
  meanwhile();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int item = i * kWarps + warp, token = item / S::kChunks * 8 + group, chunk = item % S::kChunks;
    if (kItems % kWarps != 0 && item >= kItems) break;
    const uint32_t at = smem + chunk * S::kChunkBytes + token * 128 + quad * 4;
#pragma unroll
    for (int j = 0; j < 8; ++j)
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(at + ((j ^ group) << 4)), "r"(lane_tokens[i].pair(j)) : "memory");
  }
}

// The rotary part of `rows` tokens from `token`, head `head`: four pairs per thread at a time.
template <class S>
__device__ __forceinline__ void rotate_rows(const ProjectParams& q, int token, int rows, int head) {
  constexpr int kHalf = kRotated / 2, kParts = kHalf / 4, kEach = (S::T * kParts + kThreads - 1) / kThreads;
  const bool interleaved = q.rotation.interleaved;
  float4 x[kEach][2], cos[kEach], sin[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int item = i * kThreads + int(threadIdx.x), part = item % kParts;
    const int64_t t = token + min(item / kParts, rows - 1);
    const float* in = static_cast<const float*>(q.p.x) + t * q.p.x_row + head * q.p.x_head + S::K;
    const float* table = q.rotation.cos_sin + t * kRotated + part * 4;
    x[i][0] = __ldg(reinterpret_cast<const float4*>(in + part * (interleaved ? 8 : 4)));
    x[i][1] = __ldg(reinterpret_cast<const float4*>(in + (interleaved ? part * 8 + 4 : kHalf + part * 4)));
    cos[i] = __ldg(reinterpret_cast<const float4*>(table));
    sin[i] = __ldg(reinterpret_cast<const float4*>(table + kHalf));
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int item = i * kThreads + int(threadIdx.x), part = item % kParts, row = item / kParts;
    if (row >= rows) break;
    auto* to =
        static_cast<__nv_bfloat16*>(q.p.out) + int64_t{token + row} * q.p.out_row + head * q.p.out_head + q.p.w.n;
    const float4 a = x[i][0], b = x[i][1], c = cos[i], s = sin[i];
    if (interleaved) {
      const float2 r0 = rotate(a.x, a.y, c.x, s.x), r1 = rotate(a.z, a.w, c.y, s.y), r2 = rotate(b.x, b.y, c.z, s.z),
                   r3 = rotate(b.z, b.w, c.w, s.w);
      *reinterpret_cast<uint4*>(to + part * 8) = {pack_bf16(r0.x, r0.y), pack_bf16(r1.x, r1.y), pack_bf16(r2.x, r2.y),
                                                  pack_bf16(r3.x, r3.y)};
    } else {
      const float2 r0 = rotate(a.x, b.x, c.x, s.x), r1 = rotate(a.y, b.y, c.y, s.y), r2 = rotate(a.z, b.z, c.z, s.z),
                   r3 = rotate(a.w, b.w, c.w, s.w);
      *reinterpret_cast<uint2*>(to + part * 4) = {pack_bf16(r0.x, r1.x), pack_bf16(r2.x, r3.x)};
      *reinterpret_cast<uint2*>(to + kHalf + part * 4) = {pack_bf16(r0.y, r1.y), pack_bf16(r2.y, r3.y)};
    }
  }
}

// ------------------------------------------------------------------------------------------------ results

// This warp's sixteen columns of all tokens, from the accumulators (wgmma.cuh) to rows in shared memory.
template <class S>
__device__ __forceinline__ void stage_results(uint8_t* to, const float (&d)[S::T / 2]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if constexpr (S::kIn) {
    const uint32_t at = smem_addr(to) + (lane / 16 * 8 + lane % 8) * S::kOutPitch + (warp * 16 + lane / 8 % 2 * 8) * 2;
#pragma unroll
    for (int j = 0; j < S::T / 8; j += 2) {
      constexpr bool kLone = S::T == 8;  // the rows of a second group exist, but are not used
      const int other = kLone ? 0 : 4;
      stmatrix_x4<true>(at + j * 8 * S::kOutPitch, pack_bf16(d[4 * j], d[4 * j + 1]),
                        pack_bf16(d[4 * j + 2], d[4 * j + 3]), pack_bf16(d[4 * j + other], d[4 * j + other + 1]),
                        pack_bf16(d[4 * j + other + 2], d[4 * j + other + 3]));
    }
  } else {
    uint8_t* at = to + lane % 4 * 2 * S::kOutPitch + (warp * 16 + lane / 4) * 4;
#pragma unroll
    for (int j = 0; j < S::T / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        *reinterpret_cast<float*>(at + (8 * j + i % 2) * S::kOutPitch + i / 2 * 32) = d[4 * j + i];
  }
}

// Rows in shared memory to memory; a warp stores one row of f32 or two of bf16 at a time.
template <class S>
__device__ __forceinline__ void store_results(const ProjectParams& q, const uint8_t* from, int token, int rows,
                                              int head, int column) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if constexpr (S::kIn) {
    auto* out =
        static_cast<__nv_bfloat16*>(q.p.out) + token * q.p.out_row + head * q.p.out_head + column + lane % 16 * 8;
#pragma unroll
    for (int row0 = 0; row0 < S::kOutRows; row0 += 2 * kWarps) {
      const int row = row0 + warp * 2 + lane / 16;
      if (row < rows)
        *reinterpret_cast<uint4*>(out + row * q.p.out_row) =
            *reinterpret_cast<const uint4*>(from + row * S::kOutPitch + lane % 16 * 16);
    }
  } else {
    constexpr int kEach = S::T / kWarps;
    auto* out = static_cast<float*>(q.p.out) + token * q.p.out_row + head * q.p.out_head + column + lane * 4;
    float4 v[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int row = i * kWarps + warp;
      v[i] = *reinterpret_cast<const float4*>(from + row * S::kOutPitch + lane * 16);
      if (q.p.out && row < rows) *reinterpret_cast<float4*>(out + row * q.p.out_row) = v[i];
    }
    if (q.bf16) {
      auto* to = q.bf16 + token * q.p.out_row + head * q.p.out_head + column + lane * 4;
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        if (const int row = i * kWarps + warp; row < rows) store_bf16(to + row * q.p.out_row, v[i]);
    }
    if (!q.fp8.data) return;
    const int64_t kb = (head * q.p.out_head + column) / kTileN;
    Fp8Piece piece[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) piece[i] = quantize(v[i]);
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (i * kWarps + warp < rows) store_piece(piece[i], q.fp8, token + i * kWarps + warp, kb);
  }
}

// ------------------------------------------------------------------------------------------------ kernel

// Grid: heads, token tiles, groups of tiles_each tiles of W.
template <class S>
__global__ void __launch_bounds__(kThreads, 2) mla_project(const __grid_constant__ ProjectParams q) {
  extern __shared__ __align__(1024) uint8_t smem[];
  constexpr int kBlocks = S::K / kBlockK, kSlices = kBlockK / 16;
  const MlaProject& p = q.p;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.x, token = blockIdx.y * S::T;
  const int tile_begin = blockIdx.z * q.tiles_each, rows = min(S::T, int(p.num_tokens) - token);
  const uint32_t tokens = smem_addr(smem);
  uint8_t* const results = smem + S::kChunks * S::kChunkBytes;

  // A step multiplies 128 rows by 128 k's of W: steps are tiles of rows, or (kIn is false) blocks along k of one tile.
  const int num_steps = S::kIn ? q.tiles_each : kBlocks;
  const int64_t step_bytes = S::kIn ? kTileN * S::kRowBytes : p.w.step_bytes;
  const std::byte* weights = p.w.data + head * p.w.entry_bytes +
                             (int64_t{tile_begin} * kTileN + warp * 16 + lane / 4) * S::kRowBytes +
                             lane % 4 * (S::kF8 ? 16 : 32);
  LaneWeights<S::kF8> w[S::kAhead];
#pragma unroll
  for (int i = 0; i < S::kAhead; ++i)
    if (i < num_steps) w[i].template load<S::kRowBytes>(weights + i * step_bytes);
  wait_for_earlier();
  {
    using X = std::conditional_t<S::kIn, float, __nv_bfloat16>;
    const X* x = static_cast<const X*>(p.x) + token * p.x_row + head * p.x_head;
    load_tokens<S>(tokens, x, p.x_row, rows, [&] {
      if (S::kIn && blockIdx.z == 0) rotate_rows<S>(q, token, rows, head);
    });
  }
  fence_proxy_async();
  __syncthreads();

  const float* scales = reinterpret_cast<const float*>(p.w.scales) + head * p.w.entry_scales + tile_begin;
  const int64_t step_scales = S::kIn ? 1 : p.w.segment_scales;
  float sum[S::T / 2] = {};
#pragma unroll 1
  for (int first = 0; first < num_steps; first += S::kAhead)
#pragma unroll
    for (int i = 0; i < S::kAhead; ++i) {
      const int step = first + i;
      if (step >= num_steps) break;
      uint32_t a[kSlices][4];
#pragma unroll
      for (int s = 0; s < kSlices; ++s) fragment<S::kF8>(w[i], s / 4, s % 4, a[s]);
      if (step + S::kAhead < num_steps) w[i].template load<S::kRowBytes>(weights + (step + S::kAhead) * step_bytes);
      const float scale = S::kF8 ? scales[step * step_scales] : 1.0f;
      float part[S::T / 2];
      float(&d)[S::T / 2] = S::kF8 || S::kIn ? part : sum;
#pragma unroll
      for (int s = 0; s < kSlices; ++s)
#pragma unroll
        for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(a[s][j])::"memory");
      wgmma_pin(d);
      wgmma_fence();
      const uint32_t operand = tokens + (S::kIn ? 0 : step) * 2 * S::kChunkBytes;
#pragma unroll
      for (int s = 0; s < kSlices; ++s)
        WgmmaBf16Reg<S::T>::mma(d, a[s], wgmma_desc(operand + s / 4 * S::kChunkBytes) + 2 * (s % 4),
                                s > 0 || !(S::kF8 || S::kIn));
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_pin(d);
      if constexpr (S::kIn) {
#pragma unroll
        for (int j = 0; j < S::T / 2; ++j) part[j] *= scale;
        uint8_t* const to = results + step % 2 * S::kOutBytes;
        stage_results<S>(to, part);
        __syncthreads();
        store_results<S>(q, to, token, rows, head, (tile_begin + step) * kTileN);
      } else if constexpr (S::kF8) {
#pragma unroll
        for (int j = 0; j < S::T / 2; ++j) sum[j] += part[j] * scale;
      }
    }
  if constexpr (!S::kIn) {
    stage_results<S>(results, sum);
    __syncthreads();
    store_results<S>(q, results, token, rows, head, tile_begin * kTileN);
  }
}

}  // namespace
}  // namespace kernel

namespace {

template <class S>
void launch(const kernel::ProjectParams& params, cudaStream_t stream) {
  kernel::ProjectParams q = params;
  // Two blocks per multiprocessor of an H200, where the weights have tiles enough for that.
  constexpr int64_t kEnough = 256;
  const int64_t tiles = q.p.w.n / kernel::kTileN, token_tiles = (q.p.num_tokens + S::T - 1) / S::T;
  int64_t groups = S::kIn ? 1 : tiles;
  while (groups < tiles && tiles % (2 * groups) == 0 && (S::T <= 8 || q.p.num_heads * token_tiles * groups < kEnough))
    groups *= 2;
  q.tiles_each = int(tiles / groups);
  CHECK(token_tiles <= 65535, "mla_project: {} tokens", q.p.num_tokens);
  allow_shared_memory<kernel::mla_project<S>>(S::shared_bytes(2));
  launch_early(kernel::mla_project<S>, dim3(unsigned(q.p.num_heads), unsigned(token_tiles), unsigned(groups)),
               kernel::kThreads, size_t(S::shared_bytes(q.tiles_each)), stream, q);
}

template <bool kIn, int K>
void launch_any(const kernel::ProjectParams& q, Stream stream) {
  const auto s = static_cast<cudaStream_t>(stream.handle);
  const bool f8 = q.p.w.dtype == DType::kF8E4M3;
  if (q.p.num_tokens == 0) return;
#define MOECTL_LAUNCH(T) \
  return f8 ? launch<kernel::ProjectShape<true, kIn, K, T>>(q, s) : launch<kernel::ProjectShape<false, kIn, K, T>>(q, s)
  if (q.p.num_tokens <= 8) MOECTL_LAUNCH(8);
  if (q.p.num_tokens <= 32 || (q.p.num_tokens <= 64 && q.p.w.n == kernel::kTileN)) MOECTL_LAUNCH(32);
  MOECTL_LAUNCH(64);
#undef MOECTL_LAUNCH
}

constexpr int64_t kInputs = 128, kLatent = 512;

bool fits(const Matrix& w) {
  return (w.is_fp8_block() || w.dtype == DType::kBF16) && w.n % kernel::kTileN == 0;
}

}  // namespace

bool mla_project_in_fits(const Matrix& w) {
  return fits(w) && w.k == kInputs;
}
bool mla_project_out_fits(const Matrix& w) {
  return fits(w) && w.k == kLatent;
}

void mla_project_in(const MlaProject& p, const MlaRotation& rotation, Stream stream) {
  CHECK(rotation.rope_dim == kernel::kRotated, "mla_project_in: {} rotated", rotation.rope_dim);
  CHECK(mla_project_in_fits(p.w), "mla_project_in: weights [{}, {}]", p.w.n, p.w.k);
  launch_any<true, kInputs>({.p = p, .rotation = rotation}, stream);
}

void mla_project_out(const MlaProject& p, void* bf16, const Fp8Rows& fp8, Stream stream) {
  const int64_t size = p.num_heads * p.w.n;
  CHECK(mla_project_out_fits(p.w), "mla_project_out: weights [{}, {}]", p.w.n, p.w.k);
  CHECK(!fp8.data || (fp8.rows == p.num_tokens && fp8.k == size), "mla_project_out: [{}, {}] into FP8 rows of [{}, {}]",
        p.num_tokens, size, fp8.rows, fp8.k);
  CHECK((!fp8.data && !bf16) || (p.out_row == size && p.out_head == p.w.n),
        "mla_project_out: operands of rows that are {} apart, heads {}", p.out_row, p.out_head);
  launch_any<false, kLatent>({.p = p, .bf16 = static_cast<__nv_bfloat16*>(bf16), .fp8 = fp8}, stream);
}

}  // namespace moectl::cuda
