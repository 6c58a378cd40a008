// Random weights in the layouts of kernels/cuda/gemm/weight.h, generated in device memory.
#include "kernels/cuda/bench/bench.h"
#include "kernels/cuda/gemm/fp8_gemm.h"
#include "kernels/cuda/gemm/weight.h"

namespace moectl::cuda::bench {
namespace {

int64_t round_up(int64_t v, int64_t to) {
  return (v + to - 1) / to * to;
}

const std::byte* bytes(const void* p) {
  return static_cast<const std::byte*>(p);
}

}  // namespace

Weight random_weight(Memory& memory, bool f8, int64_t batch, int64_t n, int64_t k) {
  auto weight = std::make_shared<DeviceWeight>();
  Matrix& w = weight->matrix;
  w.n = n;
  w.k = k;
  if (f8) {
    CHECK(n % 8 == 0 && k % kFp8Block == 0, "[{}, {}] has no FP8 layout", n, k);
    w.dtype = DType::kF8E4M3;
    w.row_bytes = kFp8Block;
    w.step_bytes = n * kFp8Block;
    w.entry_bytes = n * k;
    w.block_n = kFp8Block;
    w.segment = kFp8Block;
    w.num_segments = k / kFp8Block;
    w.row_scales = 1;
    w.segment_scales = round_up(round_up(n, kFp8Block) / kFp8Block, 4);
    w.entry_scales = w.num_segments * w.segment_scales;
    w.segments_of_four = w.segments_of_sixteen = true;
    w.data = bytes(memory.f8(batch * w.entry_bytes));
    w.scales = bytes(memory.positive(batch * w.entry_scales, 1e-4f, 3e-4f));
    w.first_segment = memory.upload(std::vector<int32_t>(size_t(batch), kFp8Block));
  } else {
    CHECK(k % 64 == 0, "[{}, {}] would need padding", n, k);
    w.dtype = DType::kBF16;
    w.row_bytes = k * 2;
    w.step_bytes = int64_t{kFp8Block} * 2;
    w.entry_bytes = n * w.row_bytes;
    w.data = bytes(memory.bf16(batch * n * k, 0.02f));
  }
  return {.batch = batch, .n = n, .k = k, .dtype = w.dtype, .num_bytes = batch * w.entry_bytes, .impl = weight};
}

const std::byte* weight_data(const Weight& weight) {
  return matrix_of(weight).data;
}

Fp8Rows random_fp8_rows(Memory& memory, int64_t rows, int64_t k) {
  const int64_t stride = round_up(rows, 4);
  return {memory.f8(rows * k), memory.positive(k / kFp8Block * stride, 1e-3f, 2e-3f), rows, k, stride};
}

Fp8Weight fp8_weight_of(const Weight& weight) {
  const Matrix& w = matrix_of(weight);
  return fp8_weight_at(w.data, w.scales, weight.batch, w.n, w.k);
}

}  // namespace moectl::cuda::bench
