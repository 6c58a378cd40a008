// How a MatrixSpec is read: where a number, its scale and its zero point stand in the checkpoint's bytes, and what of
// it is refused. Shared by the packing of every backend; host memory only, any thread.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/base/check.h"
#include "kernels/ops.h"

namespace moectl::spec {

inline bool is_nibble(DType t) {
  return dtype_bits(t) == 4;
}
inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

struct Place {
  int64_t row, col;
};
// Where W[n][k] of the rectangle stands in the tensor.
inline Place place(const MatrixSpec& m, int64_t n, int64_t k) {
  return {m.row_begin + (m.transpose ? k : n) * m.row_step, m.col_begin + (m.transpose ? n : k) * m.col_step};
}

// Bytes from a row to the next one: packed formats fill whole words.
inline int64_t row_bytes(const MatrixSpec& m) {
  const int64_t bits = m.cols * dtype_bits(m.dtype);
  return is_nibble(m.dtype) || m.dtype == DType::kU8 ? ceil_div(bits, 32) * 4 : bits / 8;
}

inline constexpr int kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

inline uint32_t nibble(const std::byte* words, int64_t word, int i) {
  uint32_t w;
  std::memcpy(&w, words + word * 4, sizeof w);
  return w >> (4 * i) & 15;
}

inline uint32_t nibble_at(const MatrixSpec& m, Place p) {
  if (m.nibble_order == NibbleOrder::kAwq)
    return nibble(m.data, p.col * (m.rows / 8) + p.row / 8, kAwqNibble[p.row % 8]);
  return nibble(m.data, p.row * (row_bytes(m) / 4) + p.col / 8, int(p.col % 8));
}

inline uint32_t zero_at(const MatrixSpec& m, Place p) {
  const int64_t down = p.row / m.block_n, across = p.col / m.block_k;
  if (m.nibble_order == NibbleOrder::kAwq)
    return nibble(m.zeros, across * (m.rows / 8) + down / 8, kAwqNibble[down % 8]);
  return nibble(m.zeros, down / 8 * ceil_div(m.cols, m.block_k) + across, int(down % 8));
}

// Index of the scale in the tensor of scales.
inline int64_t scale_index(const MatrixSpec& m, Place p) {
  const int64_t down = p.row / m.block_n, across = p.col / m.block_k;
  if (m.nibble_order == NibbleOrder::kAwq) return across * ceil_div(m.rows, m.block_n) + down;
  return down * ceil_div(m.cols, m.block_k) + across;
}

inline float scale_at(const MatrixSpec& m, Place p) {
  const std::byte* at = m.scales + scale_index(m, p) * dtype_bytes(m.scale_dtype);
  uint16_t half = 0;
  float s = 0;
  switch (m.scale_dtype) {
    case DType::kF32:
      std::memcpy(&s, at, sizeof s);
      break;
    case DType::kBF16:
      std::memcpy(&half, at, sizeof half);
      s = bf16_to_f32(half);
      break;
    case DType::kF16:
      std::memcpy(&half, at, sizeof half);
      s = f16_to_f32(half);
      break;
    default:
      s = f8_e8m0_to_f32(uint8_t(*at));
      break;
  }
  // With the room that FP8's factor and e2m1's 6 take.
  if (!(std::abs(s) < 0x1p119f))
    throw Error(Code::kBadData,
                fmt::format("{}: the scale of block ({}, {}) is {}, no finite number of any use; the file is damaged: "
                            "download the checkpoint again",
                            m.name, p.row / m.block_n, p.col / m.block_k, s));
  return s;
}

// The stored number, less its zero point.
inline float number_at(const MatrixSpec& m, Place p) {
  if (!is_nibble(m.dtype)) {
    const uint8_t b = uint8_t(m.data[p.row * row_bytes(m) + p.col]);
    return m.dtype == DType::kF8E4M3 ? f8_e4m3_to_f32(b) : m.dtype == DType::kI8 ? float(int8_t(b)) : float(b) - 128.0f;
  }
  const uint32_t q = nibble_at(m, p);
  if (m.dtype == DType::kF4E2M1) return kF4E2M1Values[q];
  return float(q) - (m.dtype == DType::kU4 ? float(zero_at(m, p)) : 8.0f);
}

inline void check_no_f8_nan(const MatrixSpec& m) {
  for (int64_t i = 0; i < m.num_rows; ++i) {
    const int64_t row = m.row_begin + i * m.row_step;
    const auto* p = reinterpret_cast<const uint8_t*>(m.data) + row * m.cols;
    for (int64_t j = 0; j < m.num_cols; ++j)
      if ((p[m.col_begin + j * m.col_step] & 0x7f) == 0x7f)
        throw Error(Code::kBadData,
                    fmt::format("{}: element ({}, {}) is NaN; the file is damaged: download the checkpoint again",
                                m.name, row, m.col_begin + j * m.col_step));
  }
}

inline int64_t num_outputs(const MatrixSpec& m) {
  return m.transpose ? m.num_cols : m.num_rows;
}
inline int64_t num_inputs(const MatrixSpec& m) {
  return m.transpose ? m.num_rows : m.num_cols;
}

inline void check_matrix(const MatrixSpec& m, const MatrixSpec& first) {
  CHECK(num_outputs(m) == num_outputs(first) && num_inputs(m) == num_inputs(first) && m.dtype == first.dtype &&
            m.scale_dtype == first.scale_dtype,
        "{} differs in shape or dtype from {}", m.name, first.name);
  const bool plain = m.dtype == DType::kF32 || m.dtype == DType::kBF16 || m.dtype == DType::kF16;
  CHECK(plain == (m.scales == nullptr), "{}: {} numbers {} scales", m.name, dtype_name(m.dtype),
        plain ? "have no" : "need");
  CHECK(plain || (m.block_n > 0 && m.block_k > 0), "{}: scales of {} x {} blocks", m.name, m.block_n, m.block_k);
  CHECK((m.dtype == DType::kU4) == (m.zeros != nullptr), "{}: u4 and zero points go together", m.name);
  CHECK(m.nibble_order == NibbleOrder::kRows || (is_nibble(m.dtype) && m.rows % 8 == 0 && m.block_n == 1),
        "{}: not in AWQ's layout", m.name);
}

// Scales that change from one k to the next (of a transposed matrix with a scale a row) would take more memory than
// the numbers, and a multiplication a number: such a matrix is multiplied out at load. The parts of kv_b_proj in MLA
// and every other column of a matrix are the cases.
inline bool needs_widening(const MatrixSpec& m) {
  constexpr int64_t kMinSegment = 16;
  const int64_t block = m.transpose ? m.block_n : m.block_k;
  return m.scales && ((block < kMinSegment && block < num_inputs(m)) || (m.transpose ? m.row_step : m.col_step) != 1);
}

}  // namespace moectl::spec
