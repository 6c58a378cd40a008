// Shapes and random inputs shared by kernel tests and benchmarks. Everything is a function of its seed; data is random,
// never zeros. Host memory only.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "kernels/ops.h"

namespace moectl::test {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t below(int64_t n) { return int64_t(engine_() % uint64_t(n)); }
  float uniform(float low, float high) { return low + (high - low) * float(engine_() >> 40) * 0x1p-24f; }
  std::vector<float> floats(int64_t n, float scale = 1.0f) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = uniform(-scale, scale);
    return v;
  }
  template <class T>
  void shuffle(std::vector<T>& v) {
    for (size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[size_t(below(int64_t(i)))]);
  }

 private:
  std::mt19937_64 engine_;
};

// A checkpoint matrix that owns its bytes. They begin one byte off any alignment, as they may in a file.
struct Matrix {
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
  int block_n = 0, block_k = 0;  // FP8 only
  std::vector<std::byte> bytes, scale_bytes;

  std::byte* element(int64_t row, int64_t col) { return bytes.data() + 1 + (row * cols + col) * dtype_bytes(dtype); }
  std::byte* scale(int64_t block_row, int64_t block_col) {
    return scale_bytes.data() + 1 + (block_row * ((cols + block_k - 1) / block_k) + block_col) * int64_t(sizeof(float));
  }
  MatrixSpec rectangle(int64_t row_begin, int64_t num_rows, int64_t col_begin, int64_t num_cols,
                       bool transpose = false) const {
    MatrixSpec m;
    m.name = "random matrix";
    m.data = bytes.data() + 1;
    m.dtype = dtype;
    m.rows = rows;
    m.cols = cols;
    if (!scale_bytes.empty()) m.scales = scale_bytes.data() + 1;
    m.block_n = block_n;
    m.block_k = block_k;
    m.row_begin = row_begin;
    m.num_rows = num_rows;
    m.col_begin = col_begin;
    m.num_cols = num_cols;
    m.transpose = transpose;
    return m;
  }
  MatrixSpec whole() const { return rectangle(0, rows, 0, cols); }
};

inline double element_value(const MatrixSpec& m, int64_t row, int64_t col) {
  const std::byte* p = m.data + (row * m.cols + col) * dtype_bytes(m.dtype);
  uint16_t half;
  float f;
  switch (m.dtype) {
    case DType::kF32:
      std::memcpy(&f, p, sizeof f);
      return f;
    case DType::kBF16:
      std::memcpy(&half, p, sizeof half);
      return bf16_to_f32(half);
    case DType::kF16:
      std::memcpy(&half, p, sizeof half);
      return f16_to_f32(half);
    default:
      break;
  }
  const double value = f8_e4m3_to_f32(uint8_t(*p));
  if (!m.scales) return value;
  std::memcpy(
      &f, m.scales + (row / m.block_n * ((m.cols + m.block_k - 1) / m.block_k) + col / m.block_k) * int64_t(sizeof f),
      sizeof f);
  return value * double(f);
}

// W[n, k] of the rectangle, as the definition in ops.h has it.
inline double weight_value(const MatrixSpec& m, int64_t n, int64_t k) {
  return m.transpose ? element_value(m, m.row_begin + k, m.col_begin + n)
                     : element_value(m, m.row_begin + n, m.col_begin + k);
}

inline Matrix random_matrix(DType dtype, int64_t rows, int64_t cols, uint64_t seed, int block = 128) {
  Random random(seed);
  Matrix m;
  m.dtype = dtype;
  m.rows = rows;
  m.cols = cols;
  m.bytes.resize(size_t(1 + rows * cols * dtype_bytes(dtype)));
  for (int64_t i = 0; i < rows * cols; ++i) {
    std::byte* p = m.element(0, i);
    if (dtype == DType::kF32) {
      const float f = random.uniform(-1.0f, 1.0f);
      std::memcpy(p, &f, sizeof f);
    } else if (dtype == DType::kBF16) {
      const uint16_t h = f32_to_bf16(random.uniform(-1.0f, 1.0f));
      std::memcpy(p, &h, sizeof h);
    } else if (dtype == DType::kF16) {
      const uint16_t h =
          uint16_t(random.below(2) << 15 | random.below(15) << 10 | random.below(1024));  // subnormals too
      std::memcpy(p, &h, sizeof h);
    } else {
      const uint8_t b = uint8_t(random.below(2) << 7 | random.below(127));  // all but NaN
      std::memcpy(p, &b, sizeof b);
    }
  }
  if (dtype == DType::kF8E4M3) {
    m.block_n = m.block_k = block;
    const int64_t blocks_down = (rows + block - 1) / block, blocks_across = (cols + block - 1) / block;
    m.scale_bytes.resize(size_t(1 + blocks_down * blocks_across * int64_t(sizeof(float))));
    for (int64_t i = 0; i < blocks_down * blocks_across; ++i) {
      const float s = random.uniform(0.25f, 4.0f) / 448.0f;
      std::memcpy(m.scale(0, i), &s, sizeof s);
    }
  }
  return m;
}

inline const std::vector<DType>& weight_dtypes() {
  static const std::vector<DType> all = {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3};
  return all;
}

struct LinearShape {
  int64_t n, k;
};
// One element; below, at and above the width of a tile; partial FP8 blocks; enough work for several threads.
inline const std::vector<LinearShape>& linear_shapes() {
  static const std::vector<LinearShape> all = {{1, 1},    {15, 17},   {16, 16},   {17, 3},    {33, 127},
                                               {64, 128}, {129, 129}, {130, 260}, {200, 384}, {1040, 70}};
  return all;
}

// Rows of each expert, as prefix sums: empty experts at both ends and inside, one row, more rows than any row block.
inline const std::vector<std::vector<int32_t>>& expert_offsets() {
  static const std::vector<std::vector<int32_t>> all = {
      {0, 0, 0}, {0, 1}, {0, 0, 1, 1}, {0, 3, 3, 10, 11, 11}, {0, 5, 18, 18, 20, 57, 58, 64, 70}, {0, 0, 0, 40, 40}};
  return all;
}

// Positions around the page boundaries of 64, and the maximum that tests reach.
inline const std::vector<int32_t>& attention_positions() {
  static const std::vector<int32_t> all = {0, 1, 15, 16, 62, 63, 64, 65, 127, 128, 200};
  return all;
}

}  // namespace moectl::test
