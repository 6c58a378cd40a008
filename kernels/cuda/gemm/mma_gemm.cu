// Rows of f32 activations times a Matrix of any scaled or half dtype by the tensor cores of compute capability 8.0 and
// later: the same products, strides, batches and epilogues as plain_gemm, with both operands rounded to bf16 and sums
// in f32.
//
// Weight rows are on mma's M axis (16) and tokens on its N axis (8), so that few tokens cost little. A block takes 128
// rows of W, 32 per warp, and T tokens; k advances by 64: lane t of a quad owns k = 16 t .. 16 t + 15 of them, which it
// reads from W at once (one stage ahead, in registers) and of which four belong to each m16n8k16. The k's of an mma may
// be any as long as both operands agree. Tokens are rounded on the way into shared memory, double-buffered, in rows of
// 136 bytes, so that reads of a half warp hit all banks once. An output is one chain over k for any T, so the product
// is batch-invariant.
#include "kernels/cuda/gemm/plain_gemm.cuh"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda {
namespace kernel {

constexpr int kMmaWarps = 4, kMmaThreads = kMmaWarps * kWarp, kWarpRows = 32, kMmaStep = 64, kLaneStep = 16;
constexpr int kMmaPitch = kMmaStep + 4;  // elements from one token to the next in shared memory

// Sixteen elements of a row as they are in memory.
template <DType D>
struct Sixteen {
  static constexpr int kWords = dtype_bits(D) / 2;
  uint32_t v[kWords];
};

template <DType D>
__device__ inline Sixteen<D> load_sixteen(const std::byte* at) {
  Sixteen<D> out;
  if constexpr (Sixteen<D>::kWords == 2) {
    const uint2 x = __ldg(reinterpret_cast<const uint2*>(at));
    out.v[0] = x.x;
    out.v[1] = x.y;
  } else {
#pragma unroll
    for (int i = 0; i < Sixteen<D>::kWords; i += 4) {
      const uint4 x = __ldg(reinterpret_cast<const uint4*>(at) + i / 4);
      out.v[i] = x.x;
      out.v[i + 1] = x.y;
      out.v[i + 2] = x.z;
      out.v[i + 3] = x.w;
    }
  }
  return out;
}

// Elements 4 j .. 4 j + 3, times the scale, as two pairs of bf16.
template <DType D>
__device__ inline void widen_four(const Sixteen<D>& x, int j, float scale, float zero, uint32_t (&out)[2]) {
  float v[4] = {};
  if constexpr (D == DType::kBF16) {
    out[0] = x.v[2 * j];
    out[1] = x.v[2 * j + 1];
    return;
  }
  if constexpr (D == DType::kF16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = widen_f16(uint16_t(x.v[2 * j + i / 2] >> (16 * (i % 2))));
  } else if constexpr (D == DType::kF8E4M3) {
    const float2 low = widen_f8x2(uint16_t(x.v[j])), high = widen_f8x2(uint16_t(x.v[j] >> 16));
    v[0] = low.x * scale;
    v[1] = low.y * scale;
    v[2] = high.x * scale;
    v[3] = high.y * scale;
  } else if constexpr (D == DType::kI8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = float(int8_t(x.v[j] >> (8 * i))) * scale;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t q = x.v[j / 2] >> (16 * (j % 2) + 4 * i) & 15u;
      v[i] = (D == DType::kF4E2M1 ? widen_e2m1(q) : float(int(q)) - zero) * scale;
    }
  }
  out[0] = pack_bf16(v[0], v[1]);
  out[1] = pack_bf16(v[2], v[3]);
}

// A of one mma, from elements 4 j .. of the rows of one half of the warp's: (row g, low k's), (g + 8, low), (g, high),
// (g + 8, high).
template <DType D>
__device__ inline void widen_fragment(const Sixteen<D> (&elements)[4], const float (&scale)[4], const float (&zero)[4],
                                      int half, int j, uint32_t (&a)[4]) {
  uint32_t upper[2], lower[2];
  widen_four<D>(elements[2 * half], j, scale[2 * half], zero[2 * half], upper);
  widen_four<D>(elements[2 * half + 1], j, scale[2 * half + 1], zero[2 * half + 1], lower);
  a[0] = upper[0];
  a[1] = lower[0];
  a[2] = upper[1];
  a[3] = lower[1];
}

// Four rows per lane, g, g + 8, g + 16, g + 24 of the warp's, and where their scales are.
template <DType D>
struct RowReader {
  static constexpr bool kScaled = dtype_bits(D) < 16;
  const std::byte* rows[4];
  int64_t scales[4];
  int first;

  __device__ RowReader(const Matrix& w, int64_t entry, int64_t n0) {
    first = !kScaled ? 0 : w.is_fp8_block() ? int(w.segment) : w.first_segment[entry];
    const int group = int(threadIdx.x) % kWarp / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t n = n0 + group + 8 * i < w.n ? n0 + group + 8 * i : w.n - 1;
      rows[i] = w.data + entry * w.entry_bytes + n * w.row_bytes;
      if constexpr (kScaled) scales[i] = entry * w.entry_scales + n / w.block_n * w.row_scales;
    }
  }
  // k: a multiple of 16. Beyond w.k: zeros.
  __device__ void load(const Matrix& w, int k, Sixteen<D> (&elements)[4], float (&scale)[4], float (&zero)[4]) const {
    if (k >= int(w.k)) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (uint32_t& word : elements[i].v) word = 0;
        scale[i] = zero[i] = 0.0f;
      }
      return;
    }
    constexpr int kBits = dtype_bits(D);
    const int64_t at = k / 128 * w.step_bytes + k % 128 * kBits / 8;
    const int64_t segment = kScaled ? segment_of(k, first, int(w.segment)) * w.segment_scales : 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      elements[i] = load_sixteen<D>(rows[i] + at);
      scale[i] = kScaled ? load_scale(w, scales[i] + segment) : 1.0f;
      zero[i] = D == DType::kU4 ? float(w.zeros[scales[i] + segment]) : D == DType::kI4 ? 8.0f : 0.0f;
    }
  }
};

// Tokens [row0, row0 + T) x k's [k, k + 64) on their way to shared memory as bf16, zeros where there are none: loaded
// into registers before the current stage is computed, stored after it.
template <int T, bool kAligned>
struct TokenStage {
  static constexpr int kItems = T * (kMmaStep / 4), kEach = (kItems + kMmaThreads - 1) / kMmaThreads;
  Four v[kEach];

  __device__ void load(const PlainGemm& p, int64_t batch, int64_t row0, int64_t row_end, int k) {
    const float* x = p.x + batch * p.x_batch;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int item = i * kMmaThreads + int(threadIdx.x);
      const int token = item / (kMmaStep / 4), part = item % (kMmaStep / 4) * 4;
      v[i] = {};
      if (item < kItems && row0 + token < row_end && k + part < int(p.w.k))
        v[i] = load_x<kAligned>(x + (row0 + token) * p.x_row, k + part, p.w.k);
    }
  }
  __device__ void store(__nv_bfloat16* to) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int item = i * kMmaThreads + int(threadIdx.x);
      const int token = item / (kMmaStep / 4), part = item % (kMmaStep / 4) * 4;
      if (item >= kItems) break;
      uint2 two;
      two.x = pack_bf16(v[i].v[0], v[i].v[1]);
      two.y = pack_bf16(v[i].v[2], v[i].v[3]);
      *reinterpret_cast<uint2*>(to + token * kMmaPitch + part) = two;
    }
  }
};

// Grid: rows of W / 128, token tiles of a batch (strided), batches.
template <DType D, int T, bool kAligned>
__global__ void __launch_bounds__(kMmaThreads) mma_gemm(const __grid_constant__ PlainGemm p) {
  __shared__ __align__(16) __nv_bfloat16 tokens[2][T * kMmaPitch];
  constexpr int kTiles = T / 8;
  const Matrix& w = p.w;
  const int lane = int(threadIdx.x) % kWarp, group = lane / 4, quad = lane % 4;
  const int64_t batch = blockIdx.z, n0 = (int64_t{blockIdx.x} * kMmaWarps + threadIdx.x / kWarp) * kWarpRows;
  const int64_t row_begin = p.offsets ? p.offsets[batch] : 0;
  const int64_t row_end = p.offsets ? p.offsets[batch + 1] : p.num_rows;
  if (row_begin + int64_t{blockIdx.y} * T >= row_end) return;
  const RowReader<D> reader(w, p.w_begin + batch, n0);
  for (int64_t row0 = row_begin + int64_t{blockIdx.y} * T; row0 < row_end; row0 += int64_t{gridDim.y} * T) {
    float acc[2][kTiles][4] = {};
    Sixteen<D> elements[4];
    float scale[4], zero[4];
    reader.load(w, quad * kLaneStep, elements, scale, zero);
    TokenStage<T, kAligned> stage;
    stage.load(p, batch, row0, row_end, 0);
    __syncthreads();  // the last row tile has been read
    stage.store(tokens[0]);
    int buffer = 0;
    for (int k = 0; k < int(w.k); k += kMmaStep, buffer ^= 1) {
      __syncthreads();
      Sixteen<D> next[4];
      float next_scale[4], next_zero[4];
      const bool more = k + kMmaStep < int(w.k);
      if (more) {
        reader.load(w, k + kMmaStep + quad * kLaneStep, next, next_scale, next_zero);
        stage.load(p, batch, row0, row_end, k + kMmaStep);
      }
      const __nv_bfloat16* lane_tokens = tokens[buffer] + group * kMmaPitch + quad * kLaneStep;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t a[2][4];
        widen_fragment<D>(elements, scale, zero, 0, j, a[0]);
        widen_fragment<D>(elements, scale, zero, 1, j, a[1]);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const uint2 b = *reinterpret_cast<const uint2*>(lane_tokens + t * 8 * kMmaPitch + 4 * j);
          mma_m16n8k16(acc[0][t], a[0], b.x, b.y);
          mma_m16n8k16(acc[1][t], a[1], b.x, b.y);
        }
      }
      if (more) {
        stage.store(tokens[buffer ^ 1]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          elements[i] = next[i];
          scale[i] = next_scale[i];
          zero[i] = next_zero[i];
        }
      }
    }
    const bool simple = !p.row_scale && !p.bias && p.epilogue == PlainGemm::Epilogue::kStore;
    float* out = p.out + batch * p.out_batch + n0 + group;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t row = row0 + t * 8 + quad * 2 + i;
        if (row >= row_end) continue;
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const int64_t column = n0 + part * 8 + group;
          const float value = acc[part / 2][t][part % 2 * 2 + i];
          if (column >= w.n) continue;
          if (simple)
            out[row * p.out_row + part * 8] = value;
          else
            finish(p, value, batch, row, column);
        }
      }
  }
}

// Grid: rows of W / 32, token tiles of a batch (strided), batches.
template <DType D, bool kAligned>
__global__ void __launch_bounds__(kMmaThreads) mma_gemm_few(const __grid_constant__ PlainGemm p) {
  __shared__ float sums[kMmaWarps][8][kWarp];
  constexpr int kStride = kMmaWarps * kMmaStep;
  const Matrix& w = p.w;
  const int lane = int(threadIdx.x) % kWarp, group = lane / 4, quad = lane % 4, warp = int(threadIdx.x) / kWarp;
  const int64_t batch = blockIdx.z, n0 = int64_t{blockIdx.x} * kWarpRows;
  const int64_t row_begin = p.offsets ? p.offsets[batch] : 0;
  const int64_t row_end = p.offsets ? p.offsets[batch + 1] : p.num_rows;
  if (row_begin + int64_t{blockIdx.y} * 8 >= row_end) return;
  const RowReader<D> reader(w, p.w_begin + batch, n0);
  for (int64_t row0 = row_begin + int64_t{blockIdx.y} * 8; row0 < row_end; row0 += int64_t{gridDim.y} * 8) {
    const float* x = p.x + batch * p.x_batch + (row0 + group) * p.x_row;
    const bool has_row = row0 + group < row_end;
    auto load_tokens = [&](int k, Four(&to)[4]) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        to[j] = {};
        if (has_row && k < int(w.k)) to[j] = load_x<kAligned>(x, k + 4 * j, w.k);
      }
    };
    float acc[2][4] = {};
    Sixteen<D> elements[4];
    float scale[4], zero[4];
    Four lane_tokens[4];
    int k = warp * kMmaStep + quad * kLaneStep;
    reader.load(w, k, elements, scale, zero);
    load_tokens(k, lane_tokens);
    for (; k - quad * kLaneStep < int(w.k); k += kStride) {
      Sixteen<D> next[4];
      float next_scale[4], next_zero[4];
      Four next_tokens[4];
      reader.load(w, k + kStride, next, next_scale, next_zero);
      load_tokens(k + kStride, next_tokens);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t b0 = pack_bf16(lane_tokens[j].v[0], lane_tokens[j].v[1]),
                       b1 = pack_bf16(lane_tokens[j].v[2], lane_tokens[j].v[3]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t a[4];
          widen_fragment<D>(elements, scale, zero, half, j, a);
          mma_m16n8k16(acc[half], a, b0, b1);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        elements[i] = next[i];
        scale[i] = next_scale[i];
        zero[i] = next_zero[i];
        lane_tokens[i] = next_tokens[i];
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[warp][i][lane] = acc[i / 4][i % 4];
    __syncthreads();
    // Each warp finishes two of the eight sums of every lane.
#pragma unroll
    for (int i = warp * 2; i < warp * 2 + 2; ++i) {
      float value = sums[0][i][lane];
#pragma unroll
      for (int other = 1; other < kMmaWarps; ++other) value += sums[other][i][lane];
      const int64_t row = row0 + quad * 2 + i % 2, column = n0 + i / 4 * 16 + group + i % 4 / 2 * 8;
      if (row < row_end && column < w.n) finish(p, value, batch, row, column);
    }
    __syncthreads();
  }
}

}  // namespace kernel

namespace {

template <DType D>
void launch_few(const PlainGemm& p, int64_t rows_expected, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.w.n, kernel::kWarpRows), blocks_for(rows_expected, 8, 4096), unsigned(p.num_batches));
  (kernel::aligned(p) ? kernel::mma_gemm_few<D, true>
                      : kernel::mma_gemm_few<D, false>)<<<grid, kernel::kMmaThreads, 0, stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

template <DType D, int T>
void launch(const PlainGemm& p, int64_t rows_expected, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.w.n, kernel::kMmaWarps * kernel::kWarpRows), blocks_for(rows_expected, T, 4096),
                  unsigned(p.num_batches));
  (kernel::aligned(p) ? kernel::mma_gemm<D, T, true>
                      : kernel::mma_gemm<D, T, false>)<<<grid, kernel::kMmaThreads, 0, stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

template <DType D>
void launch_rows(const PlainGemm& p, cudaStream_t stream) {
  const int64_t rows = expected_rows(p);
  if (rows <= 8 && !p.deterministic) return launch_few<D>(p, rows, stream);
  if (rows <= 8) return launch<D, 8>(p, rows, stream);
  if (rows <= 32) return launch<D, 32>(p, rows, stream);
  return launch<D, 64>(p, rows, stream);
}

}  // namespace

bool mma_gemm_fits(const Matrix& w) {
  return w.dtype != DType::kF32 && w.k % kernel::kLaneStep == 0 && (!w.scales || w.segments_of_sixteen);
}

void mma_gemm(const PlainGemm& p, Stream stream) {
  check(p);
  CHECK(mma_gemm_fits(p.w), "mma_gemm: {} inputs of {}", p.w.k, dtype_name(p.w.dtype));
  if (p.num_rows == 0 || p.num_batches == 0) return;
  const cudaStream_t s = handle(stream);
  switch (p.w.dtype) {
    case DType::kBF16:
      return launch_rows<DType::kBF16>(p, s);
    case DType::kF16:
      return launch_rows<DType::kF16>(p, s);
    case DType::kF8E4M3:
      return launch_rows<DType::kF8E4M3>(p, s);
    case DType::kI8:
      return launch_rows<DType::kI8>(p, s);
    case DType::kF4E2M1:
      return launch_rows<DType::kF4E2M1>(p, s);
    case DType::kI4:
      return launch_rows<DType::kI4>(p, s);
    case DType::kU4:
      return launch_rows<DType::kU4>(p, s);
    default:
      CHECK(false, "no product with weights of {}", dtype_name(p.w.dtype));
  }
}

}  // namespace moectl::cuda
