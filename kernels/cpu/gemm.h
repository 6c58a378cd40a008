// The inner product kernel of all matrix operations on CPU: rows of x times tiles of a PackedMatrix.
//
// Every output is one chain: k ascending, and where there are scales one partial sum a scale segment, multiplied by the
// scale as it is added to the total, in ascending order. A partial sum is of x times the numbers that are stored, less
// their zero points: every such number is exact in f32, in registers and in widened strips alike. How many rows or
// tiles are computed together changes only what stands in registers, never a chain: this is what makes results
// independent of the batch (docs/determinism.md).
#pragma once

#include <algorithm>
#include <vector>

#include "core/base/check.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/weight.h"

#include "kernels/cpu/path_begin.h"

using cpu::PackedMatrix;

// acc[r][t] = x[r] . W[tile0 + t], R rows and T tiles in registers. Compiled in gemm.cpp for the R and T used below.
template <DType D, int R, int T>
void gemm_block(const PackedMatrix& w, int64_t tile0, const float* const* x, F32x16 (&acc)[R][T]);

// The numbers of a tile, without their scales, as f32: out[k, 16].
template <DType D>
void widen_tile(const PackedMatrix& w, int64_t tile, float* out);

// Calls sink(row index, tile index, F32x16) for rows [0, num_rows) and tiles [tile_begin, tile_end). `x` holds row
// pointers.
template <DType D, int R, int T, class Sink>
inline void gemm_rows(const PackedMatrix& w, int64_t tile_begin, int64_t tile_end, const float* const* x, int64_t row0,
                      Sink&& sink) {
  int64_t tile = tile_begin;
  for (; tile + T <= tile_end; tile += T) {
    F32x16 acc[R][T];
    gemm_block<D, R, T>(w, tile, x + row0, acc);
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) sink(row0 + r, tile + t, acc[r][t]);
  }
  if constexpr (T > 4)
    if (tile + 4 <= tile_end) {
      F32x16 acc[R][4];
      gemm_block<D, R, 4>(w, tile, x + row0, acc);
      for (int r = 0; r < R; ++r)
        for (int t = 0; t < 4; ++t) sink(row0 + r, tile + t, acc[r][t]);
      tile += 4;
    }
  for (; tile < tile_end; ++tile) {
    F32x16 acc[R][1];
    gemm_block<D, R, 1>(w, tile, x + row0, acc);
    for (int r = 0; r < R; ++r) sink(row0 + r, tile, acc[r][0]);
  }
}

template <DType D, class Sink>
inline void gemm_strip(const PackedMatrix& w, int64_t tile_begin, int64_t tile_end, const float* const* x,
                       int64_t num_rows, Sink&& sink) {
  int64_t row = 0;
  for (; row + 6 <= num_rows; row += 6) gemm_rows<D, 6, 4>(w, tile_begin, tile_end, x, row, sink);
  switch (num_rows - row) {
    case 5:
      return gemm_rows<D, 5, 4>(w, tile_begin, tile_end, x, row, sink);
    case 4:
      return gemm_rows<D, 4, 4>(w, tile_begin, tile_end, x, row, sink);
    case 3:
      return gemm_rows<D, 3, 4>(w, tile_begin, tile_end, x, row, sink);
    case 2:
      return gemm_rows<D, 2, 4>(w, tile_begin, tile_end, x, row, sink);
    case 1:
      return gemm_rows<D, 1, 8>(w, tile_begin, tile_end, x, row, sink);
    default:
      return;
  }
}

// Many rows: a strip of tiles is widened to f32 once and stays in cache while all rows pass over it. The numbers that
// enter the chains are the same ones.
template <DType D, class Sink>
inline void gemm_typed(const PackedMatrix& w, int64_t tile_begin, int64_t tile_end, const float* const* x,
                       int64_t num_rows, Sink&& sink) {
  constexpr int64_t kWidenFromRows = 12, kStrip = 4;
  if (D == DType::kF32 || num_rows < kWidenFromRows) {
    constexpr int64_t kTiles = 8;
    for (int64_t t = tile_begin; t < tile_end; t += kTiles)
      gemm_strip<D>(w, t, t + kTiles < tile_end ? t + kTiles : tile_end, x, num_rows, sink);
    return;
  }
  thread_local std::vector<float> wide;
  if (int64_t(wide.size()) < kStrip * w.k * 16) wide.resize(size_t(kStrip * w.k * 16));
  for (int64_t t = tile_begin; t < tile_end; t += kStrip) {
    const int64_t num = std::min(kStrip, tile_end - t);
    for (int64_t i = 0; i < num; ++i) widen_tile<D>(w, t + i, wide.data() + i * w.k * 16);
    PackedMatrix strip = w;
    strip.dtype = DType::kF32;
    strip.n = num * 16;
    strip.num_tiles = num;
    strip.data = reinterpret_cast<const std::byte*>(wide.data());
    strip.zeros = nullptr;
    if (w.scales) strip.scales += t * w.num_segments * 16 * dtype_bytes(w.scale_dtype);
    gemm_strip<DType::kF32>(strip, 0, num, x, num_rows,
                            [&](int64_t r, int64_t tile, F32x16 v) { sink(r, t + tile, v); });
  }
}

template <class Sink>
inline void gemm(const PackedMatrix& w, int64_t tile_begin, int64_t tile_end, const float* const* x, int64_t num_rows,
                 Sink&& sink) {
  switch (w.dtype) {
    case DType::kF32:
      return gemm_typed<DType::kF32>(w, tile_begin, tile_end, x, num_rows, sink);
    case DType::kBF16:
      return gemm_typed<DType::kBF16>(w, tile_begin, tile_end, x, num_rows, sink);
    case DType::kF16:
      return gemm_typed<DType::kF16>(w, tile_begin, tile_end, x, num_rows, sink);
    case DType::kF8E4M3:
      return gemm_typed<DType::kF8E4M3>(w, tile_begin, tile_end, x, num_rows, sink);
    case DType::kI8:
      return gemm_typed<DType::kI8>(w, tile_begin, tile_end, x, num_rows, sink);
    case DType::kF4E2M1:
      return gemm_typed<DType::kF4E2M1>(w, tile_begin, tile_end, x, num_rows, sink);
    case DType::kI4:
      return gemm_typed<DType::kI4>(w, tile_begin, tile_end, x, num_rows, sink);
    case DType::kU4:
      return gemm_typed<DType::kU4>(w, tile_begin, tile_end, x, num_rows, sink);
    default:
      CHECK(false, "no GEMM for weights of {}", dtype_name(w.dtype));
  }
}

// Stores lanes of one tile into a row of `n` outputs.
inline void store_tile(float* row, int64_t tile, int64_t n, F32x16 value) {
  int64_t left = n - tile * 16;
  if (left >= 16)
    store(row + tile * 16, value);
  else
    store_part(row + tile * 16, value, int(left));
}

// The part of a bias of `n` values that belongs to one tile.
inline F32x16 tile_bias(const float* bias, int64_t tile, int64_t n) {
  const int64_t left = n - tile * 16;
  return left >= 16 ? load(bias + tile * 16) : load_part(bias + tile * 16, int(left));
}

// Multiply-adds below which handing work to another thread costs more than it saves.
inline constexpr int64_t kMinWorkPerThread = 32 << 10;

inline int64_t min_tiles_per_thread(int64_t k, int64_t num_rows) {
  int64_t per_tile = 16 * k * (num_rows > 0 ? num_rows : 1);
  return (kMinWorkPerThread + per_tile - 1) / per_tile;
}

#include "kernels/cpu/path_end.h"
