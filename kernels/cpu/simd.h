// F32x16: sixteen floats, the unit in which every CPU kernel is written. Two definitions: AVX-512 and plain loops. The
// order of every sum is part of the definition; the two paths differ in fused multiply-add and are therefore two
// numerics ids. This file and path_begin.h are the only ones that know the instruction set.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/base/dtype.h"
#if defined(MOECTL_CPU_PATH_avx512)
#include <immintrin.h>
#endif

#include "kernels/cpu/path_begin.h"

inline constexpr int kLanes = 16;

// clang-format off: one operation a line, the two definitions side by side in the mind

#if defined(MOECTL_CPU_PATH_avx512)

inline constexpr const char* kPathName = "avx512";
// load_f8 gives value / kF8Factor: e4m3 bits moved into f16 are off by 2^8, which packing folds into the block scales.
inline constexpr float kF8Factor = 256.0f;

struct F32x16 {
  __m512 v;
};
inline F32x16 zero() {
  return {_mm512_setzero_ps()};
}
inline F32x16 broadcast(float x) {
  return {_mm512_set1_ps(x)};
}
inline F32x16 load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
inline void store(float* p, F32x16 a) {
  _mm512_storeu_ps(p, a.v);
}
inline F32x16 load_part(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)};
}
inline void store_part(float* p, F32x16 a, int n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), a.v);
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
  return {_mm512_div_ps(a.v, b.v)};
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline F32x16 max(F32x16 a, F32x16 b) {
  return {_mm512_max_ps(a.v, b.v)};
}
inline F32x16 min(F32x16 a, F32x16 b) {
  return {_mm512_min_ps(a.v, b.v)};
}
inline F32x16 round_even(F32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// x * 2^n for integral n in the normal range
inline F32x16 scale_pow2(F32x16 x, F32x16 n) {
  return {_mm512_scalef_ps(x.v, n.v)};
}
inline F32x16 load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
inline F32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
}
inline F32x16 load_f8(const uint8_t* p) {
  __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));  // sign in the upper byte and in bit 7
  x = _mm256_and_si256(_mm256_slli_epi16(x, 7), _mm256_set1_epi16(short(0xBFFF)));
  return {_mm512_cvtph_ps(x)};
}
inline F32x16 load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline F32x16 load_u8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline F32x16 load_e8m0(const uint8_t* p) {  // not NaN; 0 is 2^-127
  __m512i x = _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)), 23);
  return {_mm512_castsi512_ps(_mm512_max_epu32(x, _mm512_set1_epi32(0x00400000)))};
}
// Eight nibbles a lane, the lowest first.
struct Nibbles {
  __m512i v;
};
inline Nibbles load_nibbles(const std::byte* p) {
  return {_mm512_loadu_si512(p)};
}
// What the lowest nibble of each lane stands for: e2m1, q - 8 (kI4) or q (kU4).
template <DType D>
inline F32x16 nibble_numbers(Nibbles a) {
  static constexpr float kSigned[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  static constexpr float kUnsigned[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F32x16 table = load(D == DType::kF4E2M1 ? kF4E2M1Values : D == DType::kI4 ? kSigned : kUnsigned);
  return {_mm512_permutexvar_ps(a.v, table.v)};
}
inline Nibbles next_nibble(Nibbles a) {
  return {_mm512_srli_epi32(a.v, 4)};
}
inline float first(F32x16 a) {
  return _mm512_cvtss_f32(a.v);
}
inline float reduce_max(F32x16 a) {
  return _mm512_reduce_max_ps(a.v);
}
// Lane j of the result is the sum of the lanes of a[j].
inline F32x16 reduce_add_16(const F32x16 (&a)[16]) {
  __m512 quad[4];  // quad[q]: in each 128-bit part, the part's sums of a[4q] .. a[4q + 3]
  for (int q = 0; q < 4; ++q) {
    const __m512 x0 = a[4 * q].v, x1 = a[4 * q + 1].v, x2 = a[4 * q + 2].v, x3 = a[4 * q + 3].v;
    const __m512d t01 = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(x0, x1), _mm512_unpackhi_ps(x0, x1)));
    const __m512d t23 = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(x2, x3), _mm512_unpackhi_ps(x2, x3)));
    quad[q] =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(t01, t23)), _mm512_castpd_ps(_mm512_unpackhi_pd(t01, t23)));
  }
  const __m512 s01 =
      _mm512_add_ps(_mm512_shuffle_f32x4(quad[0], quad[1], 0x88), _mm512_shuffle_f32x4(quad[0], quad[1], 0xdd));
  const __m512 s23 =
      _mm512_add_ps(_mm512_shuffle_f32x4(quad[2], quad[3], 0x88), _mm512_shuffle_f32x4(quad[2], quad[3], 0xdd));
  return {_mm512_add_ps(_mm512_shuffle_f32x4(s01, s23, 0x88), _mm512_shuffle_f32x4(s01, s23, 0xdd))};
}

#else

inline constexpr const char* kPathName = "portable";
inline constexpr float kF8Factor = 1.0f;

struct F32x16 {
  float v[16];
};
#define MOECTL_LANES(expr)                      \
  F32x16 r;                                     \
  for (int i = 0; i < 16; ++i) r.v[i] = (expr); \
  return r
inline F32x16 zero() {
  MOECTL_LANES(0.0f);
}
inline F32x16 broadcast(float x) {
  MOECTL_LANES(x);
}
inline F32x16 load(const float* p) {
  MOECTL_LANES(p[i]);
}
inline void store(float* p, F32x16 a) {
  std::memcpy(p, a.v, sizeof a.v);
}
inline F32x16 load_part(const float* p, int n) {
  MOECTL_LANES(i < n ? p[i] : 0.0f);
}
inline void store_part(float* p, F32x16 a, int n) {
  std::memcpy(p, a.v, size_t(n) * sizeof(float));
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
  MOECTL_LANES(a.v[i] + b.v[i]);
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
  MOECTL_LANES(a.v[i] - b.v[i]);
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
  MOECTL_LANES(a.v[i] * b.v[i]);
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
  MOECTL_LANES(a.v[i] / b.v[i]);
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  MOECTL_LANES(a.v[i] * b.v[i] + c.v[i]);
}
inline F32x16 max(F32x16 a, F32x16 b) {
  MOECTL_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
inline F32x16 min(F32x16 a, F32x16 b) {
  MOECTL_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
inline F32x16 round_even(F32x16 a) {
  MOECTL_LANES(std::nearbyint(a.v[i]));
}
inline F32x16 scale_pow2(F32x16 x, F32x16 n) {
  MOECTL_LANES(std::ldexp(x.v[i], int(n.v[i])));
}
// A number of few bits, whose magnitude stands in `m` where f32 has exponent and mantissa and whose exponent has the
// bias 127 - `bias`. Subnormals are the difference of two normal numbers. Signed integers and a mask: compilers make
// vectors of it.
inline float small_float(int32_t m, uint32_t sign, int32_t bias) {
  const float normal = std::bit_cast<float>(m + (bias << 23)), one = std::bit_cast<float>((bias + 1) << 23);
  const float subnormal = std::bit_cast<float>(m + ((bias + 1) << 23)) - one;
  const int32_t mask = -(m < (1 << 23));
  const int32_t r = (std::bit_cast<int32_t>(subnormal) & mask) | (std::bit_cast<int32_t>(normal) & ~mask);
  return std::bit_cast<float>(uint32_t(r) | sign);
}
inline F32x16 load_bf16(const uint16_t* p) {
  MOECTL_LANES(bf16_to_f32(p[i]));
}
inline F32x16 load_f16(const uint16_t* p) {
  MOECTL_LANES(f16_to_f32(p[i]));
}
// As f8_e4m3_to_f32, without branches; not for NaN.
inline F32x16 load_f8(const uint8_t* p) {
  MOECTL_LANES(small_float(int32_t(p[i] & 0x7f) << 20, uint32_t(p[i] & 0x80) << 24, 120));
}
inline F32x16 load_i8(const int8_t* p) {
  MOECTL_LANES(float(p[i]));
}
inline F32x16 load_u8(const uint8_t* p) {
  MOECTL_LANES(float(p[i]));
}
inline F32x16 load_e8m0(const uint8_t* p) {
  MOECTL_LANES(f8_e8m0_to_f32(p[i]));
}
struct Nibbles {
  uint32_t v[16];
};
inline Nibbles load_nibbles(const std::byte* p) {
  Nibbles r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
template <DType D>
inline F32x16 nibble_numbers(const Nibbles& a) {
  if constexpr (D == DType::kF4E2M1) {
    MOECTL_LANES(small_float(int32_t(a.v[i] & 7) << 22, (a.v[i] & 8) << 28, 126));
  } else {
    MOECTL_LANES(float(int32_t(a.v[i] & 15) - (D == DType::kI4 ? 8 : 0)));
  }
}
inline Nibbles next_nibble(const Nibbles& a) {
  Nibbles r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] >> 4;
  return r;
}
inline float first(F32x16 a) {
  return a.v[0];
}
inline float reduce_max(F32x16 a) {
  float m = a.v[0];
  for (int i = 1; i < 16; ++i) m = a.v[i] > m ? a.v[i] : m;
  return m;
}
inline F32x16 reduce_add_16(const F32x16 (&a)[16]) {
  F32x16 r;
  for (int j = 0; j < 16; ++j) {
    float t[16];
    std::memcpy(t, a[j].v, sizeof t);
    for (int half = 8; half; half /= 2)
      for (int i = 0; i < half; ++i) t[i] = t[i] + t[i + half];
    r.v[j] = t[0];
  }
  return r;
}
#undef MOECTL_LANES

#endif

// clang-format on

// A hint only: any address is allowed.
inline void prefetch(const void* p) {
  __builtin_prefetch(p, 0, 3);
}

// Sum of the lanes as a fixed tree: (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1).
inline float reduce_add(F32x16 a) {
  float t[16];
  store(t, a);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) t[i] = t[i] + t[i + half];
  return t[0];
}

// e^x with a relative error below 2e-7 for x in [-87.33, 88]; saturates outside.
inline F32x16 exp(F32x16 x) {
  x = min(max(x, broadcast(-87.33f)), broadcast(88.0f));
  F32x16 n = round_even(x * broadcast(1.44269504f));
  F32x16 r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  F32x16 p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r) + broadcast(1.0f);
  return scale_pow2(p, n);
}

inline F32x16 silu(F32x16 x) {
  return x / (broadcast(1.0f) + exp(zero() - x));
}

// Sum of a[i] * b[i], i = 0 .. n-1: lane l sums i = l mod 16 in ascending order, then the tree.
inline float dot(const float* a, const float* b, int64_t n) {
  F32x16 acc = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) acc = fma(load(a + i), load(b + i), acc);
  if (i < n) acc = fma(load_part(a + i, int(n - i)), load_part(b + i, int(n - i)), acc);
  return reduce_add(acc);
}

#include "kernels/cpu/path_end.h"
