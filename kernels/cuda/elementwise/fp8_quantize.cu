// FP8 activations. One warp per 128 columns, four values per lane, so that the maximum is five shuffles, and one read
// of 512 bytes and one write of 128.
#include <cuda_bf16.h>

#include <climits>

#include "core/base/check.h"
#include "kernels/cuda/elementwise/fp8_quantize.cuh"
#include "kernels/cuda/elementwise/fp8_quantize.h"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda {

int64_t fp8_rows_bytes(int64_t rows, int64_t k) {
  return Operand::num_bytes(DType::kF8E4M3, rows, k);
}

Fp8Rows fp8_rows_at(void* memory, int64_t rows, int64_t k) {
  return fp8_rows(Operand(memory, DType::kF8E4M3, {rows, k}));
}

Fp8Rows fp8_rows(const Operand& o) {
  if (!o) return {};
  CHECK(o.dtype == DType::kF8E4M3, "rows of {} where FP8 ones are expected", dtype_name(o.dtype));
  return {.data = static_cast<uint8_t*>(o.data),
          .scales = o.scales,
          .rows = o.dim(0),
          .k = o.row_size(),
          .scale_stride = Operand::scale_stride(o.dim(0))};
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

}  // namespace moectl::cuda
