// FP8 copies of activations. One warp a piece of 128 columns, four values a lane, so that the maximum is five shuffles
// and each piece is one read of 512 bytes and one write of 128. RMSNorm: one block a row, which keeps the row in
// registers.
#include <cuda_bf16.h>

#include <climits>

#include "core/base/check.h"
#include "kernels/cuda/elementwise/fp8_quantize.cuh"
#include "kernels/cuda/elementwise/fp8_quantize.h"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda {

int64_t fp8_rows_bytes(int64_t rows, int64_t k) {
  const int64_t data = (rows * k + 255) / 256 * 256;
  return data + k / kFp8Block * ((rows + 3) / 4 * 4) * int64_t(sizeof(float));
}

Fp8Rows fp8_rows_at(void* memory, int64_t rows, int64_t k) {
  CHECK(k > 0 && k % kFp8Block == 0 && rows >= 0, "an FP8 copy of [{}, {}]: k must be a multiple of 128", rows, k);
  auto* data = static_cast<uint8_t*>(memory);
  return {.data = data,
          .scales = reinterpret_cast<float*>(data + (rows * k + 255) / 256 * 256),
          .rows = rows,
          .k = k,
          .scale_stride = (rows + 3) / 4 * 4};
}

namespace kernel {

constexpr int kWarpsABlock = 8;

__device__ __forceinline__ float4 load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ __forceinline__ float4 load4(const __nv_bfloat16* p) {
  const uint2 bits = *reinterpret_cast<const uint2*>(p);
  return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u), __uint_as_float(bits.y << 16),
          __uint_as_float(bits.y & 0xffff0000u)};
}

template <class T>
__global__ void __launch_bounds__(32 * kWarpsABlock) fp8_quantize(const T* x, Fp8Rows out, const int32_t* num_rows) {
  wait_for_earlier();
  const int64_t piece = int64_t{blockIdx.x} * kWarpsABlock + threadIdx.x / 32, pieces = out.k / kFp8Block;
  const int64_t row = piece / pieces, kb = piece % pieces;
  if (row >= (num_rows ? *num_rows : out.rows)) return;
  quantize_piece(load4(x + row * out.k + kb * kFp8Block + threadIdx.x % 32 * 4), out, row, kb);
}

__device__ __forceinline__ float swiglu(float g, float u) {
  return g / (1.0f + __expf(-g)) * u;
}

template <class T>
__global__ void __launch_bounds__(32 * kWarpsABlock)
    swiglu_quantize(const T* gate, const T* up, int64_t stride, Fp8Rows out, const int32_t* num_rows) {
  const int64_t piece = int64_t{blockIdx.x} * kWarpsABlock + threadIdx.x / 32, pieces = out.k / kFp8Block;
  const int64_t row = piece / pieces, kb = piece % pieces;
  if (row >= (num_rows ? *num_rows : out.rows)) return;
  const int64_t at = row * stride + kb * kFp8Block + threadIdx.x % 32 * 4;
  const float4 g = load4(gate + at), u = load4(up + at);
  quantize_piece({swiglu(g.x, u.x), swiglu(g.y, u.y), swiglu(g.z, u.z), swiglu(g.w, u.w)}, out, row, kb);
}

constexpr int kNormThreads = 512, kNormWarps = kNormThreads / 32, kMaxPieces = 8;  // of a warp: rows of up to 16384

// One block a row. Warp w takes pieces w, w + 16, ..., up to kEach of them; the sum of squares meets in a fixed tree.
template <int kEach>
__global__ void __launch_bounds__(kNormThreads) rms_norm_copies(const float* x, float* residual, const float* weight,
                                                                float* norm, int size, RowCopies copies, float eps) {
  __shared__ float partial[kNormWarps];
  wait_for_earlier();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t begin = int64_t{blockIdx.x} * size;
  const int pieces = size / kFp8Block;
  float4 v[kEach], w[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int kb = warp + i * kNormWarps;
    const int at = kb * kFp8Block + lane * 4;
    v[i] = kb < pieces ? load4(x + begin + at) : float4{};
    w[i] = weight && kb < pieces ? load4(weight + at) : float4{1.0f, 1.0f, 1.0f, 1.0f};
  }
  if (residual) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int kb = warp + i * kNormWarps;
      const float4 r = kb < pieces ? load4(residual + begin + kb * kFp8Block + lane * 4) : float4{};
      v[i] = {r.x + v[i].x, r.y + v[i].y, r.z + v[i].z, r.w + v[i].w};
    }
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int kb = warp + i * kNormWarps;
    if (residual && kb < pieces) *reinterpret_cast<float4*>(residual + begin + kb * kFp8Block + lane * 4) = v[i];
    squares += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
  }
  for (int offset = 16; offset > 0; offset /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, offset);
  if (lane == 0) partial[warp] = squares;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kNormWarps; ++i) sum += partial[i];
  const float inv = 1.0f / sqrtf(sum / float(size) + eps);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    v[i] = {v[i].x * inv * w[i].x, v[i].y * inv * w[i].y, v[i].z * inv * w[i].z, v[i].w * inv * w[i].w};
  Fp8Piece piece[kEach];
  if (copies.fp8.data)
#pragma unroll
    for (int i = 0; i < kEach; ++i) piece[i] = quantize(v[i]);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int kb = warp + i * kNormWarps;
    if (kb >= pieces) break;
    const int64_t at = begin + kb * kFp8Block + lane * 4;
    if (norm) *reinterpret_cast<float4*>(norm + at) = v[i];
    if (copies.fp8.data) store_piece(piece[i], copies.fp8, blockIdx.x, kb);
    if (copies.bf16) store_bf16(static_cast<__nv_bfloat16*>(copies.bf16) + at, v[i]);
  }
}

}  // namespace kernel

namespace {

unsigned num_piece_blocks(const Fp8Rows& out, DType type, const char* what) {
  CHECK(out.k > 0 && out.k % kFp8Block == 0, "{}: k is {}, not a multiple of 128", what, out.k);
  CHECK(type == DType::kF32 || type == DType::kBF16, "{}: values must be f32 or bf16", what);
  const int64_t pieces = out.rows * (out.k / kFp8Block);
  const int64_t blocks = (pieces + kernel::kWarpsABlock - 1) / kernel::kWarpsABlock;
  CHECK(blocks <= INT_MAX, "{}: [{}, {}] is too large for one launch", what, out.rows, out.k);
  return unsigned(blocks);
}

}  // namespace

void fp8_quantize(const Fp8QuantizeArgs& a, Stream stream) {
  const unsigned blocks = num_piece_blocks(a.out, a.type, "fp8_quantize");
  if (blocks == 0) return;
  const auto s = static_cast<cudaStream_t>(stream.handle);
  constexpr unsigned kThreads = 32 * kernel::kWarpsABlock;
  if (a.type == DType::kF32)
    launch_early(kernel::fp8_quantize<float>, blocks, kThreads, 0, s, static_cast<const float*>(a.x), a.out,
                 a.num_rows);
  else
    launch_early(kernel::fp8_quantize<__nv_bfloat16>, blocks, kThreads, 0, s, static_cast<const __nv_bfloat16*>(a.x),
                 a.out, a.num_rows);
}

void swiglu_quantize(const SwigluQuantizeArgs& a, Stream stream) {
  const unsigned blocks = num_piece_blocks(a.out, a.type, "swiglu_quantize");
  CHECK(a.stride >= a.out.k && a.stride % 4 == 0, "swiglu_quantize: rows of {} that are {} apart", a.out.k, a.stride);
  if (blocks == 0) return;
  const auto s = static_cast<cudaStream_t>(stream.handle);
  if (a.type == DType::kF32)
    kernel::swiglu_quantize<<<blocks, 32 * kernel::kWarpsABlock, 0, s>>>(
        static_cast<const float*>(a.gate), static_cast<const float*>(a.up), a.stride, a.out, a.num_rows);
  else
    kernel::swiglu_quantize<<<blocks, 32 * kernel::kWarpsABlock, 0, s>>>(static_cast<const __nv_bfloat16*>(a.gate),
                                                                         static_cast<const __nv_bfloat16*>(a.up),
                                                                         a.stride, a.out, a.num_rows);
  CUDA_CHECK(cudaGetLastError());
}

void rms_norm_copies(const RmsNormArgs& a, const RowCopies& copies, Stream stream) {
  const int64_t rows = a.x.dim(0), k = a.x.row_size();
  const Fp8Rows& out = copies.fp8;
  CHECK(!out.data || (out.rows == rows && out.k == k), "rms_norm_copies: [{}, {}] into a copy of [{}, {}]", rows, k,
        out.rows, out.k);
  CHECK(k > 0 && k % kFp8Block == 0 && k <= int64_t{kFp8Block} * kernel::kNormWarps * kernel::kMaxPieces &&
            rows <= INT_MAX,
        "rms_norm_copies: [{}, {}]: k must be a multiple of 128, at most 16384", rows, k);
  CHECK(!a.weight || a.weight.size() == k, "rms_norm_copies: rows of {}, a weight of {}", k, a.weight.size());
  CHECK(!a.residual || a.residual.size() == rows * k, "rms_norm_copies: a residual of {} for {} values",
        a.residual.size(), rows * k);
  CHECK(!a.out || a.out.size() == rows * k, "rms_norm_copies: {} values into {}", rows * k, a.out.size());
  if (rows == 0) return;
  const bool few = k <= int64_t{kFp8Block} * kernel::kNormWarps * kernel::kMaxPieces / 2;
  launch_early(few ? kernel::rms_norm_copies<kernel::kMaxPieces / 2> : kernel::rms_norm_copies<kernel::kMaxPieces>,
               unsigned(rows), kernel::kNormThreads, 0, handle(stream), a.x.data, a.residual.data, a.weight.data,
               a.out.data, int(k), copies, a.eps);
}

}  // namespace moectl::cuda
