// The inner loops behind gemm.h, compiled once for all operations.
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/path_begin.h"

namespace {

template <DType D>
inline F32x16 load_weight(const std::byte* p) {
  if constexpr (D == DType::kF32) return load(reinterpret_cast<const float*>(p));
  if constexpr (D == DType::kBF16) return load_bf16(reinterpret_cast<const uint16_t*>(p));
  if constexpr (D == DType::kF16) return load_f16(reinterpret_cast<const uint16_t*>(p));
  if constexpr (D == DType::kF8E4M3) return load_f8(reinterpret_cast<const uint8_t*>(p));
  if constexpr (D == DType::kI8) return load_i8(reinterpret_cast<const int8_t*>(p));
}

// Calls use(k, numbers[T]) for k in [begin, end), ascending: the sixteen rows' numbers of T tiles, without their
// scales. `zeros` are the zero points of these k's (kU4); number minus zero point is a small integer, so exact.
// `ahead`: bytes from a tile to the one that is wanted after it; hardware prefetch stops at page ends, which a tile
// often is. 0: none.
template <DType D, int T, class Use>
[[gnu::always_inline]] inline void for_each_k(const std::byte* const (&tiles)[T], const F32x16 (&zeros)[T],
                                              int64_t begin, int64_t end, int64_t ahead, Use&& use) {
  if constexpr (dtype_bits(D) == 4) {
    auto numbers = [&](const Nibbles(&words)[T], F32x16(&wk)[T]) {
      for (int t = 0; t < T; ++t) wk[t] = nibble_numbers<D>(words[t]);
      if constexpr (D == DType::kU4)
        for (int t = 0; t < T; ++t) wk[t] = wk[t] - zeros[t];
    };
    for (int64_t k = begin; k < end;) {
      const int64_t offset = k / 8 * 64;
      Nibbles words[T];
      F32x16 wk[T];
      for (int t = 0; t < T; ++t) words[t] = load_nibbles(tiles[t] + offset);
      if (ahead)
        for (int t = 0; t < T; ++t) prefetch(tiles[t] + ahead + offset);
      if (k % 8 == 0 && k + 8 <= end) {
        for (int i = 0; i < 8; ++i) {
          numbers(words, wk);
          use(k + i, wk);
          for (int t = 0; t < T; ++t) words[t] = next_nibble(words[t]);
        }
        k += 8;
        continue;
      }
      for (int64_t skip = k % 8; skip > 0; --skip)
        for (int t = 0; t < T; ++t) words[t] = next_nibble(words[t]);
      for (const int64_t stop = std::min(end, k / 8 * 8 + 8); k < stop; ++k) {
        numbers(words, wk);
        use(k, wk);
        for (int t = 0; t < T; ++t) words[t] = next_nibble(words[t]);
      }
    }
  } else {
    constexpr int kStep = 16 * dtype_bytes(D);
    for (int64_t k = begin; k < end; ++k) {
      F32x16 wk[T];
      for (int t = 0; t < T; ++t) wk[t] = load_weight<D>(tiles[t] + k * kStep);
      if constexpr (kStep >= 64) {
        if (ahead)
          for (int t = 0; t < T; ++t) prefetch(tiles[t] + ahead + k * kStep);
      } else if constexpr (kStep == 16) {
        if (k % 4 < T) prefetch(tiles[k % 4] + ahead + (k & ~int64_t{3}) * kStep);
      }
      use(k, wk);
    }
  }
}

inline F32x16 load_scale(const PackedMatrix& w, int64_t tile, int64_t s) {
  const int64_t i = (tile * w.num_segments + s) * 16;
  switch (w.scale_dtype) {
    case DType::kBF16:
      return load_bf16(reinterpret_cast<const uint16_t*>(w.scales) + i);
    case DType::kF16:
      return load_f16(reinterpret_cast<const uint16_t*>(w.scales) + i);
    case DType::kF8E8M0:
      return load_e8m0(reinterpret_cast<const uint8_t*>(w.scales) + i);
    default:
      return load(reinterpret_cast<const float*>(w.scales) + i);
  }
}

template <DType D, int T>
inline void load_zeros(const PackedMatrix& w, int64_t tile0, int64_t s, F32x16 (&zeros)[T]) {
  if constexpr (D == DType::kU4)
    for (int t = 0; t < T; ++t) zeros[t] = load_u8(w.zeros + ((tile0 + t) * w.num_segments + s) * 16);
}

}  // namespace

template <DType D, int R, int T>
void gemm_block(const PackedMatrix& w, int64_t tile0, const float* const* x, F32x16 (&acc)[R][T]) {
  const std::byte* tiles[T];
  for (int t = 0; t < T; ++t) tiles[t] = w.tile(tile0 + t);
  // Sums are kept in arrays of this function: the compiler cannot know that `acc` is no part of x, and would store it
  // after every k.
  F32x16 part[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) part[r][t] = zero();
  const int64_t ahead = R <= 2 || dtype_bits(D) < 16 ? w.tile_bytes() * T : 0;
  F32x16 zeros[T];
  if (!w.scales) {
    for_each_k<D, T>(tiles, zeros, 0, w.k, ahead, [&](int64_t k, const F32x16(&wk)[T]) {
      for (int r = 0; r < R; ++r) {
        F32x16 xk = broadcast(x[r][k]);
        for (int t = 0; t < T; ++t) part[r][t] = fma(wk[t], xk, part[r][t]);
      }
    });
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) acc[r][t] = part[r][t];
    return;
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) acc[r][t] = zero();
  for (int64_t s = 0, begin = 0; s < w.num_segments; ++s) {
    const int64_t end = w.segment_end(s);
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) part[r][t] = zero();
    load_zeros<D>(w, tile0, s, zeros);
    for_each_k<D, T>(tiles, zeros, begin, end, ahead, [&](int64_t k, const F32x16(&wk)[T]) {
      for (int r = 0; r < R; ++r) {
        F32x16 xk = broadcast(x[r][k]);
        for (int t = 0; t < T; ++t) part[r][t] = fma(wk[t], xk, part[r][t]);
      }
    });
    for (int t = 0; t < T; ++t) {
      F32x16 scale = load_scale(w, tile0 + t, s);
      for (int r = 0; r < R; ++r) acc[r][t] = fma(part[r][t], scale, acc[r][t]);
    }
    begin = end;
  }
}

template <DType D>
void widen_tile(const PackedMatrix& w, int64_t tile, float* out) {
  const std::byte* tiles[1] = {w.tile(tile)};
  F32x16 zeros[1];
  for (int64_t s = 0, begin = 0; s < w.num_segments; ++s) {
    load_zeros<D>(w, tile, s, zeros);
    const int64_t end = w.segment_end(s);
    for_each_k<D, 1>(tiles, zeros, begin, end, 0, [&](int64_t k, const F32x16(&wk)[1]) { store(out + k * 16, wk[0]); });
    begin = end;
  }
}

#define MOECTL_GEMM(D, R, T) \
  template void gemm_block<D, R, T>(const PackedMatrix&, int64_t, const float* const*, F32x16(&)[R][T]);
#define MOECTL_GEMM_DTYPE(D) \
  MOECTL_GEMM(D, 1, 8)       \
  MOECTL_GEMM(D, 1, 4)       \
  MOECTL_GEMM(D, 1, 1)       \
  MOECTL_GEMM(D, 2, 4)       \
  MOECTL_GEMM(D, 2, 1)       \
  MOECTL_GEMM(D, 3, 4)       \
  MOECTL_GEMM(D, 3, 1)       \
  MOECTL_GEMM(D, 4, 4)       \
  MOECTL_GEMM(D, 4, 1)       \
  MOECTL_GEMM(D, 5, 4)       \
  MOECTL_GEMM(D, 5, 1)       \
  MOECTL_GEMM(D, 6, 4)       \
  MOECTL_GEMM(D, 6, 1)       \
  template void widen_tile<D>(const PackedMatrix&, int64_t, float*);

MOECTL_GEMM_DTYPE(DType::kF32)
MOECTL_GEMM_DTYPE(DType::kBF16)
MOECTL_GEMM_DTYPE(DType::kF16)
MOECTL_GEMM_DTYPE(DType::kF8E4M3)
MOECTL_GEMM_DTYPE(DType::kI8)
MOECTL_GEMM_DTYPE(DType::kF4E2M1)
MOECTL_GEMM_DTYPE(DType::kI4)
MOECTL_GEMM_DTYPE(DType::kU4)

#undef MOECTL_GEMM_DTYPE
#undef MOECTL_GEMM

#include "kernels/cpu/path_end.h"
