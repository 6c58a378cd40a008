// Number formats of checkpoints and caches, and their exact widening to f32.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace moectl {

// kF4E2M1, kI4 and kU4 are the 4-bit numbers that packed words hold; kI4 ones stand there as number + 8, kU4 ones go
// with zero points (MatrixSpec in kernels/ops.h).
enum class DType : uint8_t {
  kF32,
  kBF16,
  kF16,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kF4E2M1,
  kI4,
  kU4,
  kI8,
  kU8,
  kI16,
  kI32,
  kI64,
  kBool
};

struct DTypeInfo {
  std::string_view name;
  int bits;
};

constexpr DTypeInfo dtype_info(DType t) {
  switch (t) {
    case DType::kF32:
      return {"f32", 32};
    case DType::kBF16:
      return {"bf16", 16};
    case DType::kF16:
      return {"f16", 16};
    case DType::kF8E4M3:
      return {"f8_e4m3", 8};
    case DType::kF8E5M2:
      return {"f8_e5m2", 8};
    case DType::kF8E8M0:
      return {"f8_e8m0", 8};
    case DType::kF4E2M1:
      return {"f4_e2m1", 4};
    case DType::kI4:
      return {"i4", 4};
    case DType::kU4:
      return {"u4", 4};
    case DType::kI8:
      return {"i8", 8};
    case DType::kU8:
      return {"u8", 8};
    case DType::kI16:
      return {"i16", 16};
    case DType::kI32:
      return {"i32", 32};
    case DType::kI64:
      return {"i64", 64};
    case DType::kBool:
      return {"bool", 8};
  }
  return {"?", 0};
}

constexpr std::string_view dtype_name(DType t) {
  return dtype_info(t).name;
}
constexpr int dtype_bits(DType t) {
  return dtype_info(t).bits;
}
// Of one element; 0 for the 4-bit formats, whose elements have no address of their own.
constexpr int dtype_bytes(DType t) {
  return dtype_bits(t) / 8;
}

inline float bf16_to_f32(uint16_t x) {
  return std::bit_cast<float>(uint32_t{x} << 16);
}

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t f32_to_bf16(float x) {
  uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 0x40);
  return uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

inline float f16_to_f32(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000u) << 16, exp = (h >> 10) & 31u, man = h & 0x3ffu;
  if (exp == 31) return std::bit_cast<float>(sign | 0x7f800000u | (man << 13));
  if (exp != 0) return std::bit_cast<float>(sign | ((exp + 112) << 23) | (man << 13));
  float sub = float(man) * 0x1p-24f;
  return sign ? -sub : sub;
}

// OCP FP8 e4m3fn: bias 7, no infinities, S.1111.111 is NaN.
inline float f8_e4m3_to_f32(uint8_t b) {
  uint32_t sign = uint32_t(b & 0x80u) << 24, exp = (b >> 3) & 15u, man = b & 7u;
  if (exp == 15 && man == 7) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exp != 0) return std::bit_cast<float>(sign | ((exp + 120) << 23) | (man << 20));
  float sub = float(man) * 0x1p-9f;
  return sign ? -sub : sub;
}

// OCP MX scale e8m0: 2^(x - 127), 0xff is NaN. 2^-127 is subnormal in f32 and exact there too.
inline float f8_e8m0_to_f32(uint8_t x) {
  if (x == 0xff) return std::bit_cast<float>(0x7fc00000u);
  return std::bit_cast<float>(x == 0 ? 0x00400000u : uint32_t{x} << 23);
}

// OCP FP4 e2m1, by the four bits.
inline constexpr float kF4E2M1Values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                            -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

}  // namespace moectl
