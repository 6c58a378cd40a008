// Random matrices in the scaled formats: made of plain numbers and written down by an encoder of their own, so that a
// test compares with the numbers, not with another reading of the bytes. Host memory only.
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "tests/harness/generate.h"

namespace moectl::test {

// block_n, block_k: 0 for the whole dimension.
struct QuantFormat {
  const char* name;
  DType dtype, scale_dtype;
  int block_n, block_k;
  NibbleOrder order = NibbleOrder::kRows;
};

inline const std::vector<QuantFormat>& quant_formats() {
  static const std::vector<QuantFormat> all = {
      {"mxfp4", DType::kF4E2M1, DType::kF8E8M0, 1, 32},
      {"int4_group32", DType::kI4, DType::kBF16, 1, 32},
      {"int4_group128", DType::kI4, DType::kF16, 1, 128},
      {"int4_channel", DType::kI4, DType::kF32, 1, 0},
      {"int4_asymmetric", DType::kU4, DType::kBF16, 1, 64},
      {"awq_group32", DType::kU4, DType::kF16, 1, 32, NibbleOrder::kAwq},
      {"awq_channel", DType::kU4, DType::kF16, 1, 0, NibbleOrder::kAwq},
      {"awq_symmetric", DType::kI4, DType::kF16, 1, 64, NibbleOrder::kAwq},
      {"int8_group128", DType::kU8, DType::kBF16, 1, 128},
      {"int8_channel", DType::kI8, DType::kF32, 1, 0},
      {"fp8_block_bf16", DType::kF8E4M3, DType::kBF16, 128, 128},
      {"fp8_block_e8m0", DType::kF8E4M3, DType::kF8E8M0, 128, 128},
      {"fp8_channel", DType::kF8E4M3, DType::kBF16, 1, 0},
      {"fp8_tensor", DType::kF8E4M3, DType::kF32, 0, 0},
  };
  return all;
}

struct QuantMatrix {
  QuantFormat format;
  int64_t rows = 0, cols = 0;
  std::vector<double> values;                             // [rows, cols]: scale * number
  std::vector<std::byte> bytes, scale_bytes, zero_bytes;  // each begins one byte off any alignment

  double value(int64_t row, int64_t col) const { return values[size_t(row * cols + col)]; }
  MatrixSpec whole() const {
    MatrixSpec m;
    m.name = "random matrix";
    m.data = bytes.data() + 1;
    m.dtype = format.dtype;
    m.rows = m.num_rows = rows;
    m.cols = m.num_cols = cols;
    m.scales = scale_bytes.data() + 1;
    m.scale_dtype = format.scale_dtype;
    if (!zero_bytes.empty()) m.zeros = zero_bytes.data() + 1;
    m.nibble_order = format.order;
    m.block_n = format.block_n ? format.block_n : int(rows);
    m.block_k = format.block_k ? format.block_k : int(cols);
    return m;
  }
  // W[n][k] of a rectangle of it.
  double value(const MatrixSpec& m, int64_t n, int64_t k) const {
    return value(m.row_begin + m.row_step * (m.transpose ? k : n), m.col_begin + m.col_step * (m.transpose ? n : k));
  }
};

namespace quant {

// Sets element `i` of a row of words of `bits`-bit numbers.
inline void put(std::vector<std::byte>& bytes, int64_t bit, int bits, uint32_t x) {
  for (int b = 0; b < bits; ++b)
    if (x >> b & 1) bytes[size_t(1 + (bit + b) / 8)] |= std::byte(1 << ((bit + b) % 8));
}

// A random finite scale: its bits in `dtype`, and its value.
inline double random_scale(Random& random, DType dtype, uint32_t& bits) {
  switch (dtype) {
    case DType::kF8E8M0:
      bits = uint32_t(120 + random.below(8));
      return std::ldexp(1.0, int(bits) - 127);
    case DType::kBF16:
      bits = uint32_t(0x3c00 + random.below(0x100));  // [2^-7, 2^-5)
      return bf16_to_f32(uint16_t(bits));
    case DType::kF16:
      bits = uint32_t(random.below(0x2800));  // subnormals too
      return f16_to_f32(uint16_t(bits));
    default: {
      const float f = random.uniform(0.001f, 0.01f);
      std::memcpy(&bits, &f, sizeof f);
      return f;
    }
  }
}

}  // namespace quant

inline QuantMatrix random_quantized(QuantFormat format, int64_t rows, int64_t cols, uint64_t seed) {
  static constexpr int kAwqOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};  // nibble i holds element kAwqOrder[i]
  Random random(seed);
  QuantMatrix m = {.format = format, .rows = rows, .cols = cols};
  const bool awq = format.order == NibbleOrder::kAwq, nibbles = dtype_bits(format.dtype) == 4;
  const int64_t bn = format.block_n ? format.block_n : rows, bk = format.block_k ? format.block_k : cols;
  const int64_t down = (rows + bn - 1) / bn, across = (cols + bk - 1) / bk;
  const int scale_size = dtype_bytes(format.scale_dtype);
  const int64_t row_bits = nibbles ? (cols + 7) / 8 * 32 : format.dtype == DType::kU8 ? (cols + 3) / 4 * 32 : cols * 8;
  m.bytes.resize(size_t(1 + (awq ? cols * rows / 2 : rows * row_bits / 8)));
  m.scale_bytes.resize(size_t(1 + down * across * scale_size));
  if (format.dtype == DType::kU4) m.zero_bytes.resize(size_t(1 + (down + 7) / 8 * 4 * across));

  std::vector<double> scales;
  std::vector<int> zeros;
  for (int64_t i = 0; i < down; ++i)
    for (int64_t j = 0; j < across; ++j) {
      uint32_t bits = 0;
      scales.push_back(quant::random_scale(random, format.scale_dtype, bits));
      std::memcpy(m.scale_bytes.data() + 1 + (awq ? j * down + i : i * across + j) * scale_size, &bits,
                  size_t(scale_size));
      zeros.push_back(format.dtype == DType::kU4 ? int(random.below(16)) : format.dtype == DType::kI4 ? 8 : 0);
      if (format.dtype != DType::kU4) continue;
      if (!awq) quant::put(m.zero_bytes, (i / 8 * across + j) * 32 + i % 8 * 4, 4, uint32_t(zeros.back()));
      for (int nibble = 0; awq && nibble < 8; ++nibble)
        if (kAwqOrder[nibble] == i % 8)
          quant::put(m.zero_bytes, (j * (down / 8) + i / 8) * 32 + nibble * 4, 4, uint32_t(zeros.back()));
    }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      const size_t block = size_t(i / bn * across + j / bk);
      double number;
      if (nibbles) {
        const uint32_t q = uint32_t(random.below(16));
        static constexpr double kE2M1[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
        number = format.dtype == DType::kF4E2M1 ? (q & 8 ? -kE2M1[q & 7] : kE2M1[q & 7]) : int(q) - zeros[block];
        if (!awq) quant::put(m.bytes, i * row_bits + j * 4, 4, q);
        for (int nibble = 0; awq && nibble < 8; ++nibble)
          if (kAwqOrder[nibble] == i % 8) quant::put(m.bytes, (j * (rows / 8) + i / 8) * 32 + nibble * 4, 4, q);
      } else {
        uint32_t b = uint32_t(random.below(256));
        if (format.dtype == DType::kF8E4M3 && (b & 0x7f) == 0x7f) b ^= 1;
        number = format.dtype == DType::kF8E4M3 ? double(f8_e4m3_to_f32(uint8_t(b)))
                 : format.dtype == DType::kU8   ? int(b) - 128
                                                : int(int8_t(b));
        quant::put(m.bytes, i * row_bits + j * 8, 8, b);
      }
      m.values.push_back(number * scales[block]);
    }
  return m;
}

}  // namespace moectl::test
