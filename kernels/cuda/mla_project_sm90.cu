// out[t, h] = W[h] x[t, h] for every head: the absorbed projections of latent attention (mla_project_sm90.h).
//
// These products move memory: a head's weights (64 KB in FP8) meet 8 to 64 tokens a block, so everything is arranged
// that bytes move once and early. A block of two warpgroups takes one head, T tokens and one or more tiles of 128 rows
// of W; wgmma's M axis are weight rows, N the tokens. Weights go from memory straight into registers, as A, 16 numbers
// of a row a lane, and become bf16 there (exact for e4m3: its bits are moved and multiplied by 2^120); the first of
// them are on their way before the kernel in front of this one has ended, and L2 is told of the others. Tokens are
// rounded to bf16 into shared memory, as B. Where a slice's sixteen k's come from is free as long as both operands
// agree: lane q of a quad owns k = 64 i + 16 q .. + 15, four of which make its share of slice 4 i + 0 .. 3.
//
// Every 128 of k have their sum multiplied by the block's scale and added in f32, in the order of k, so an output's
// bits depend on neither T nor the tiling. Results pass through shared memory and leave in whole lines; a warp that
// holds a token's 128 values also makes their FP8 copy.
#include <algorithm>

#include "kernels/cuda/attention_sm90.cuh"
#include "kernels/cuda/check.h"
#include "kernels/cuda/fp8_quantize.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/mla_project_sm90.h"
#include "kernels/cuda/rope.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace moectl::cuda {
namespace kernel {
namespace {

using namespace hopper;

constexpr int kThreads = 256, kWarps = kThreads / 32, kTileN = 128, kBlockK = 128;

struct ProjectParams {
  MlaProject p;
  MlaRotation rotation;
  Fp8Rows copy;
  int tiles_each;  // tiles of W a block
};

// K: inputs. kIn: f32 to bf16, with a rotary part; else bf16 to f32.
template <bool kF8_, bool kIn_, int K_, int T_>
struct ProjectShape {
  static constexpr bool kF8 = kF8_, kIn = kIn_;
  static constexpr int K = K_, T = T_;
  static constexpr int kChunks = K / 64, kChunkBytes = T * 128;  // of tokens: T rows of 64 numbers, swizzled
  // Rows of results are padded by 16 bytes: columns of a group of rows fall into different banks.
  static constexpr int kOutPitch = kTileN * (kIn ? 2 : 4) + 16, kOutRows = T < 16 ? 16 : T;
  static constexpr int kOutBytes = kOutPitch * kOutRows;
  static constexpr int kRowBytes = kF8 ? kBlockK : 2 * K;  // from one row of W to the next
  static int shared_bytes(int tiles) { return kChunks * kChunkBytes + std::min(tiles, 2) * kOutBytes; }
};

// ------------------------------------------------------------------------------------------------ weights

// Of 128 k's: 16 numbers each of rows r and r + 8 of a warp's sixteen, from k = 64 i + 16 q, i = 0, 1.
template <bool kF8>
struct RowShare {
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
          const uint4 x =
              __ldg(reinterpret_cast<const uint4*>(at + row * 8 * kRowBytes + i * (kF8 ? 64 : 128)) + w / 4);
          v[row][i][w] = x.x, v[row][i][w + 1] = x.y, v[row][i][w + 2] = x.z, v[row][i][w + 3] = x.w;
        }
  }
};

// Two e4m3 numbers in bytes 1 and 3 to bf16: sign, exponent and mantissa to their places, then the exponent's bias.
__device__ __forceinline__ uint32_t widen_pair(uint32_t x) {
  const uint32_t bits = (x & 0x80008000u) | (x & 0x7f007f00u) >> 4;
  const __nv_bfloat162 v = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&bits),
                                   __nv_bfloat162(__ushort_as_bfloat16(0x7b80), __ushort_as_bfloat16(0x7b80)));
  return *reinterpret_cast<const uint32_t*>(&v);
}

// A of slice 4 i + s: numbers 4 s .. 4 s + 3 of each share, the first two at the low k's, the others at the high ones.
template <bool kF8>
__device__ __forceinline__ void fragment(const RowShare<kF8>& w, int i, int s, uint32_t (&a)[4]) {
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

// 16 numbers of one token, as eight pairs.
struct TokenShare {
  uint32_t pairs[8];

  __device__ __forceinline__ void load(const float* x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 v = __ldg(reinterpret_cast<const float4*>(x) + i);
      pairs[2 * i] = pack_bf16(v.x, v.y);
      pairs[2 * i + 1] = pack_bf16(v.z, v.w);
    }
  }
  __device__ __forceinline__ void load(const __nv_bfloat16* x) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 v = __ldg(reinterpret_cast<const uint4*>(x) + i);
      pairs[4 * i] = v.x, pairs[4 * i + 1] = v.y, pairs[4 * i + 2] = v.z, pairs[4 * i + 3] = v.w;
    }
  }
};

// The block's tokens to shared memory, zeros where there are none; `meanwhile` runs while the first are on their way. A
// warp takes eight tokens and 64 k's at a time: four lanes a token, whose words of one store lie in 32 banks.
template <class S, class X, class Meanwhile>
__device__ __forceinline__ void load_tokens(uint32_t smem, const X* x, int64_t x_row, int rows, Meanwhile&& meanwhile) {
  constexpr int kItems = S::T / 8 * S::kChunks, kBatch = std::min(S::kIn ? 2 : 4, (kItems + kWarps - 1) / kWarps);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane % 4, group = lane / 4;
#pragma unroll
  for (int first = 0; first < kItems; first += kBatch * kWarps) {
    TokenShare share[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int item = first + b * kWarps + warp, token = item / S::kChunks * 8 + group, chunk = item % S::kChunks;
      share[b] = {};
      if (item < kItems && token < rows) share[b].load(x + token * x_row + chunk * 64 + quad * 16);
    }
    if (first == 0) meanwhile();
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int item = first + b * kWarps + warp, token = item / S::kChunks * 8 + group, chunk = item % S::kChunks;
      if (item >= kItems) break;
      const uint32_t at = smem + chunk * S::kChunkBytes + token * 128 + quad * 4;
#pragma unroll
      for (int j = 0; j < 8; ++j)
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(at + ((j ^ group) << 4)), "r"(share[b].pairs[j]) : "memory");
    }
  }
}

// Of `rows` tokens from `token`, head `head`.
__device__ __forceinline__ void rotate_rows(const ProjectParams& q, int token, int rows, int head, int k, int n) {
  const int dim = int(q.rotation.rope_dim), half = dim / 2;
  for (int i = threadIdx.x; i < rows * half; i += kThreads) {
    const int64_t t = token + i / half;
    const float* in = static_cast<const float*>(q.p.x) + t * q.p.x_row + head * q.p.x_head + k;
    auto* to = static_cast<__nv_bfloat16*>(q.p.out) + t * q.p.out_row + head * q.p.out_head + n;
    const RopePair pair = rope_pair(i % half, dim, q.rotation.interleaved);
    const float2 r = rotate(in[pair.a], in[pair.b], q.rotation.cos_sin + t * dim, i % half, dim);
    to[pair.a] = __float2bfloat16_rn(r.x);
    to[pair.b] = __float2bfloat16_rn(r.y);
  }
}

// ------------------------------------------------------------------------------------------------ results

// This warp's sixteen columns of all tokens, from the accumulators (wgmma.cuh) to rows of shared memory.
template <class S>
__device__ __forceinline__ void put_results(uint8_t* to, const float (&d)[S::T / 2]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if constexpr (S::kIn) {
    const uint32_t at = smem_addr(to) + (lane / 16 * 8 + lane % 8) * S::kOutPitch + (warp * 16 + lane / 8 % 2 * 8) * 2;
#pragma unroll
    for (int j = 0; j < S::T / 8; j += 2) {
      constexpr bool kLone = S::T == 8;  // the second group's rows are there, but nobody's
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

// Rows of shared memory to memory; a warp has one row of f32 or two of bf16 at a time.
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
    auto* out = static_cast<float*>(q.p.out) + token * q.p.out_row + head * q.p.out_head + column + lane * 4;
#pragma unroll
    for (int row0 = 0; row0 < S::T; row0 += kWarps) {
      const int row = row0 + warp;
      if (row >= rows) break;
      const float4 v = *reinterpret_cast<const float4*>(from + row * S::kOutPitch + lane * 16);
      *reinterpret_cast<float4*>(out + row * q.p.out_row) = v;
      if (q.copy.data) quantize_piece(v, q.copy, token + row, (head * q.p.out_head + column) / kTileN);
    }
  }
}

// ------------------------------------------------------------------------------------------------ kernel

// Grid: heads, token tiles, groups of tiles_each tiles of W.
template <class S>
__global__ void __launch_bounds__(kThreads, 2) mla_project(const __grid_constant__ ProjectParams q) {
  extern __shared__ __align__(1024) uint8_t smem[];
  constexpr int kSteps = S::K / kBlockK, kSlices = kBlockK / 16;
  const MlaProject& p = q.p;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.x, token = blockIdx.y * S::T;
  const int tiles = S::kIn ? q.tiles_each : 1;
  const int tile_begin = blockIdx.z * tiles, rows = min(S::T, int(p.num_tokens) - token);
  const uint32_t tokens = smem_addr(smem);
  uint8_t* const results = smem + S::kChunks * S::kChunkBytes;

  const std::byte* first = p.w.data + head * p.w.entry_bytes + int64_t{tile_begin} * kTileN * S::kRowBytes;
  const std::byte* mine = first + (warp * 16 + lane / 4) * S::kRowBytes + lane % 4 * (S::kF8 ? 16 : 32);
  RowShare<S::kF8> w;
  w.template load<S::kRowBytes>(mine);
  if (threadIdx.x == 0) {
    const uint32_t bytes = uint32_t(tiles * kTileN * S::kRowBytes);
    for (int step = 0; step < (S::kF8 ? kSteps : 1); ++step) prefetch_l2(first + step * p.w.step_bytes, bytes);
  }
  grid_dependency_launch();
  grid_dependency_wait();
  {
    using X = std::conditional_t<S::kIn, float, __nv_bfloat16>;
    const X* x = static_cast<const X*>(p.x) + token * p.x_row + head * p.x_head;
    load_tokens<S>(tokens, x, p.x_row, rows, [&] {
      if (S::kIn && blockIdx.z == 0) rotate_rows(q, token, rows, head, S::K, int(p.w.n));
    });
  }
  fence_proxy_async();
  __syncthreads();

  const float* scales = reinterpret_cast<const float*>(p.w.scales) + head * p.w.entry_scales + tile_begin;
  for (int tile = 0; tile < tiles; ++tile) {
    float sum[S::T / 2] = {};
#pragma unroll 1
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[kSlices][4];
#pragma unroll
      for (int s = 0; s < kSlices; ++s) fragment<S::kF8>(w, s / 4, s % 4, a[s]);
      const bool last = step == kSteps - 1;
      if (!last || tile + 1 < tiles)
        w.template load<S::kRowBytes>(mine + (tile + last) * kTileN * S::kRowBytes +
                                      (last ? 0 : (step + 1) * p.w.step_bytes));
      const float scale = S::kF8 ? scales[tile + step * p.w.segment_scales] : 1.0f;
      float part[S::T / 2];
      float(&d)[S::T / 2] = S::kF8 ? part : sum;
#pragma unroll
      for (int s = 0; s < kSlices; ++s)
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[s][i])::"memory");
      wgmma_pin(d);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < kSlices; ++s)
        WgmmaBf16Reg<S::T>::mma(d, a[s], wgmma_desc(tokens + (2 * step + s / 4) * S::kChunkBytes) + 2 * (s % 4),
                                s > 0 || !S::kF8);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_pin(d);
      if constexpr (S::kF8)
#pragma unroll
        for (int i = 0; i < S::T / 2; ++i) sum[i] += part[i] * scale;
    }
    uint8_t* const to = results + tile % 2 * S::kOutBytes;
    put_results<S>(to, sum);
    __syncthreads();
    store_results<S>(q, to, token, rows, head, (tile_begin + tile) * kTileN);
  }
}

}  // namespace
}  // namespace kernel

namespace {

template <class S>
void launch(const kernel::ProjectParams& params, cudaStream_t stream) {
  kernel::ProjectParams q = params;
  // Blocks for every multiprocessor, twice, where the weights' tiles suffice for that.
  constexpr int64_t kEnough = 256;
  const int64_t tiles = q.p.w.n / kernel::kTileN, token_tiles = (q.p.num_tokens + S::T - 1) / S::T;
  int64_t groups = S::kIn ? 1 : tiles;
  while (groups < tiles && tiles % (2 * groups) == 0 && (S::T <= 8 || q.p.num_heads * token_tiles * groups < kEnough))
    groups *= 2;
  q.tiles_each = int(tiles / groups);
  CHECK(token_tiles <= 65535, "mla_project: {} tokens", q.p.num_tokens);
  auto* const kernel = kernel::mla_project<S>;
  static const cudaError_t prepared =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::shared_bytes(2));
  CUDA_CHECK(prepared);
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(q.p.num_heads), unsigned(token_tiles), unsigned(groups));
  config.blockDim = dim3(kernel::kThreads);
  config.dynamicSmemBytes = size_t(S::shared_bytes(q.tiles_each));
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, q));
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
  CHECK(mla_project_in_fits(p.w), "mla_project_in: weights [{}, {}]", p.w.n, p.w.k);
  launch_any<true, kInputs>({.p = p, .rotation = rotation}, stream);
}

void mla_project_out(const MlaProject& p, const Fp8Rows& copy, Stream stream) {
  CHECK(mla_project_out_fits(p.w), "mla_project_out: weights [{}, {}]", p.w.n, p.w.k);
  CHECK(!copy.data || (copy.rows == p.num_tokens && copy.k == p.num_heads * p.w.n && p.out_head == p.w.n),
        "mla_project_out: [{}, {} x {}] into a copy of [{}, {}]", p.num_tokens, p.num_heads, p.w.n, copy.rows, copy.k);
  launch_any<false, kLatent>({.p = p, .copy = copy}, stream);
}

}  // namespace moectl::cuda
