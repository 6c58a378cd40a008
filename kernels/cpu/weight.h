// PackedMatrix: how the CPU backend lays out W [n, k]. Sixteen rows of W stand side by side: element (tile, k, lane) is
// W[tile * 16 + lane][k] in the checkpoint's own number format, so that a kernel reads memory strictly forward and one
// lane owns one output. In the 4-bit formats a lane's word holds eight k's, the lowest in its low bits: as they stand
// in rows of a checkpoint. Scales are kept per (segment of k, row): blocks of any alignment cost nothing extra.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/ops.h"

namespace moectl::cpu {

struct PackedMatrix {
  DType dtype = DType::kF32;
  int64_t n = 0, k = 0, num_tiles = 0;  // num_tiles = ceil(n / 16); missing rows are zero
  const std::byte* data = nullptr;      // [num_tiles, k, 16] elements; 4-bit: [num_tiles, ceil(k / 8), 16] words
  // Stretches of k that share a scale: the first one ends at first_segment, each other is `segment` long, the last one
  // ends at k. One when there are no scales.
  int64_t num_segments = 1, first_segment = 0, segment = 0;
  DType scale_dtype = DType::kF32;    // f32 for FP8, which has kF8Factor in its scales; else the checkpoint's own
  const std::byte* scales = nullptr;  // [num_tiles, num_segments, 16]; null: no scales
  const uint8_t* zeros = nullptr;     // kU4: [num_tiles, num_segments, 16] zero points

  int64_t segment_end(int64_t s) const { return std::min(k, first_segment + s * segment); }
  int64_t tile_bytes() const { return dtype_bits(dtype) == 4 ? (k + 7) / 8 * 64 : k * 16 * dtype_bytes(dtype); }
  const std::byte* tile(int64_t t) const { return data + t * tile_bytes(); }
};

struct PackedWeight {
  std::vector<PackedMatrix> matrices;  // one a batch entry
  Buffer data, scales, zeros;
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

// All that this backend keeps is f32.
inline float* cache_data(const KvView& cache) {
  CHECK(cache.dtype == DType::kF32, "a cache of {} on the CPU", dtype_name(cache.dtype));
  return static_cast<float*>(cache.data);
}

}  // namespace moectl::cpu
