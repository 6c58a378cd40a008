// PackedMatrix: how the CPU backend lays out W [n, k]. Sixteen rows of W stand side by side: element (tile, k, lane) is
// W[tile * 16 + lane][k] in the checkpoint's own number format, so that a kernel reads memory strictly forward and one
// lane owns one output. FP8 block scales are kept per (segment of k, row): blocks of any alignment cost nothing extra.
#pragma once

#include <memory>
#include <vector>

#include "kernels/ops.h"

namespace moectl::cpu {

struct PackedMatrix {
  DType dtype = DType::kF32;
  int64_t n = 0, k = 0, num_tiles = 0;  // num_tiles = ceil(n / 16); missing rows are zero
  std::vector<int32_t> segment_end;     // ascending, the last is k; one entry {k} when there are no scales
  const std::byte* data = nullptr;      // [num_tiles, k, 16] elements
  const float* scales = nullptr;        // [num_tiles, num_segments, 16]; null: no scales

  const std::byte* tile(int64_t t) const { return data + t * k * 16 * dtype_bytes(dtype); }
  const float* tile_scales(int64_t t) const { return scales ? scales + t * int64_t(segment_end.size()) * 16 : nullptr; }
};

struct PackedWeight {
  std::vector<PackedMatrix> matrices;  // one a batch entry
  Buffer data, scales;
};

// A table whose rows are looked up: [rows, cols] as in the checkpoint, scales not supported.
struct PackedRows {
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
  Buffer data;
};

inline const PackedWeight& packed(const Weight& w) {
  return *static_cast<const PackedWeight*>(w.impl.get());
}
inline const PackedRows& packed_rows(const Weight& w) {
  return *static_cast<const PackedRows*>(w.impl.get());
}

}  // namespace moectl::cpu
