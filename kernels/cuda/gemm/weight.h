// DeviceWeight: how the CUDA backend lays out W [batch, n, k]. Elements keep the checkpoint's dtype and run along k, in
// panels: a panel holds some k's of every row. FP8 with block scales has the layout of fp8_gemm.h, panels of 128;
// everything else is one panel of rows, each padded with zeros to a multiple of 16 bytes (bf16: of 64 elements, for
// bf16_gemm.h). Owns the device memory; kernels receive the struct Matrix.
#pragma once

#include "kernels/ops.h"

namespace moectl::cuda {

// What a kernel needs to know, passed by value. 4-bit elements: eight in a little-endian word, the lowest k in its low
// bits. kI8 is signed; kI4 is stored as value + 8.
struct Matrix {
  DType dtype = DType::kF32;
  int64_t n = 0, k = 0;
  // Bytes from one batch entry, 128 k's and row to the next; within 128 k's a row is contiguous.
  int64_t entry_bytes = 0, step_bytes = 0, row_bytes = 0;
  const std::byte* data = nullptr;
  // Scales, null: none. Of entry b the first segment of k ends at first_segment[b], each other one is `segment` long,
  // the last one ends at k. A block of block_n rows shares one: block_n is 128 for FP8 in panels (then every segment is
  // one of 128), else 1. Scale (b, block of rows, segment) is element b * entry_scales + block * row_scales + segment *
  // segment_scales.
  DType scale_dtype = DType::kF32;  // f32 for FP8, else the checkpoint's own
  int block_n = 1;
  int64_t segment = 0, num_segments = 0;
  int64_t entry_scales = 0, row_scales = 0, segment_scales = 0;
  bool segments_of_four = false, segments_of_sixteen = false;  // every segment begins at a multiple of so many
  const std::byte* scales = nullptr;
  const int32_t* first_segment = nullptr;  // [batch], on the device
  const uint8_t* zeros = nullptr;          // kU4: a zero point where the scale is

  // In panels, with 128 x 128 block scales: what fp8_gemm reads.
  constexpr bool is_fp8_block() const { return block_n == 128; }
};

struct DeviceWeight {
  Matrix matrix;
  Buffer data, scales, zeros, first_segment;
};

inline const Matrix& matrix_of(const Weight& w) {
  return static_cast<const DeviceWeight*>(w.impl.get())->matrix;
}

}  // namespace moectl::cuda
