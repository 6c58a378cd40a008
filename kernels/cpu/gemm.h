// The inner product kernel of all matrix operations on CPU: rows of x times tiles of a PackedMatrix.
//
// Every output is one chain: k ascending, and within FP8 one partial sum a scale segment, added to the total in
// ascending order. How many rows or tiles are computed together changes only what stands in registers, never a chain:
// this is what makes results independent of the batch (docs/determinism.md).
#pragma once

#include <vector>

#include "core/base/check.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/weight.h"

#include "kernels/cpu/path_begin.h"

using cpu::PackedMatrix;

template <DType D>
inline F32x16 load_weight(const std::byte* p) {
  if constexpr (D == DType::kF32) return load(reinterpret_cast<const float*>(p));
  if constexpr (D == DType::kBF16) return load_bf16(reinterpret_cast<const uint16_t*>(p));
  if constexpr (D == DType::kF16) return load_f16(reinterpret_cast<const uint16_t*>(p));
  if constexpr (D == DType::kF8E4M3) return load_f8(reinterpret_cast<const uint8_t*>(p));
}

// acc[r][t] = x[r] . W[tile0 + t], R rows and T tiles in registers.
template <DType D, int R, int T>
[[gnu::noinline]] void gemm_block(const PackedMatrix& w, int64_t tile0, const float* const* x, F32x16 (&acc)[R][T]) {
  constexpr int kStep = 16 * dtype_bytes(D);
  const std::byte* tiles[T];
  for (int t = 0; t < T; ++t) tiles[t] = w.tile(tile0 + t);
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) acc[r][t] = zero();
  // The tiles after these are wanted next; hardware prefetch stops at page ends, which a tile often is.
  const int64_t ahead = w.k * kStep * T;
  if (!w.scales) {
    for (int64_t k = 0; k < w.k; ++k) {
      F32x16 wk[T];
      for (int t = 0; t < T; ++t) wk[t] = load_weight<D>(tiles[t] + k * kStep);
      if constexpr (kStep >= 64 && R <= 2)
        for (int t = 0; t < T; ++t) prefetch(tiles[t] + ahead + k * kStep);
      for (int r = 0; r < R; ++r) {
        F32x16 xk = broadcast(x[r][k]);
        for (int t = 0; t < T; ++t) acc[r][t] = fma(wk[t], xk, acc[r][t]);
      }
    }
    return;
  }
  int64_t k = 0;
  for (size_t s = 0; s < w.segment_end.size(); ++s) {
    F32x16 part[R][T];
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) part[r][t] = zero();
    for (const int64_t end = w.segment_end[s]; k < end; ++k) {
      F32x16 wk[T];
      for (int t = 0; t < T; ++t) wk[t] = load_weight<D>(tiles[t] + k * kStep);
      if (k % 4 < T) prefetch(tiles[k % 4] + ahead + (k & ~int64_t{3}) * kStep);
      for (int r = 0; r < R; ++r) {
        F32x16 xk = broadcast(x[r][k]);
        for (int t = 0; t < T; ++t) part[r][t] = fma(wk[t], xk, part[r][t]);
      }
    }
    for (int t = 0; t < T; ++t) {
      F32x16 scale = load(w.tile_scales(tile0 + t) + s * 16);
      for (int r = 0; r < R; ++r) acc[r][t] = fma(part[r][t], scale, acc[r][t]);
    }
  }
}

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
    int64_t num = tile_end - t < kStrip ? tile_end - t : kStrip;
    for (int64_t i = 0; i < num * w.k; ++i)
      store(wide.data() + i * 16, load_weight<D>(w.tile(t) + i * 16 * dtype_bytes(D)));
    PackedMatrix strip = {DType::kF32, num * 16, w.k, num, {}, reinterpret_cast<const std::byte*>(wide.data()),
                          nullptr};
    strip.segment_end = w.segment_end;
    strip.scales = w.tile_scales(t);
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
