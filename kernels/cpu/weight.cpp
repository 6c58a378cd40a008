// Packing of checkpoint matrices into the CPU layout (weight.h), once at load.
#include "kernels/cpu/weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/simd.h"

#include "kernels/cpu/path_begin.h"

using cpu::PackedMatrix;
using cpu::PackedRows;
using cpu::PackedWeight;

namespace {

// Ends of the stretches of k that share a scale, for a rectangle that starts anywhere in the block grid.
std::vector<int32_t> scale_segments(const MatrixSpec& m, int64_t k) {
  if (!m.scales) return {int32_t(k)};
  int64_t block = m.transpose ? m.block_n : m.block_k, begin = m.transpose ? m.row_begin : m.col_begin;
  std::vector<int32_t> ends;
  for (int64_t end = block - begin % block; end < k; end += block) ends.push_back(int32_t(end));
  ends.push_back(int32_t(k));
  return ends;
}

float scale_at(const MatrixSpec& m, int64_t row, int64_t col) {
  int64_t cols = (m.cols + m.block_k - 1) / m.block_k;
  float s;
  std::memcpy(&s, m.scales + ((row / m.block_n) * cols + col / m.block_k) * int64_t(sizeof s), sizeof s);
  if (!std::isfinite(s))
    throw Error(Code::kBadData,
                fmt::format("{}: the scale of block ({}, {}) is not a finite number; the file is damaged: "
                            "download the checkpoint again",
                            m.name, row / m.block_n, col / m.block_k));
  return s;
}

void check_no_f8_nan(const MatrixSpec& m) {
  for (int64_t row = m.row_begin; row < m.row_begin + m.num_rows; ++row) {
    const auto* p = reinterpret_cast<const uint8_t*>(m.data) + row * m.cols;
    for (int64_t col = m.col_begin; col < m.col_begin + m.num_cols; ++col)
      if ((p[col] & 0x7f) == 0x7f)
        throw Error(Code::kBadData,
                    fmt::format("{}: element ({}, {}) is NaN; the file is damaged: download the checkpoint again",
                                m.name, row, col));
  }
}

// T: an unsigned integer as large as the matrix's elements.
template <class T>
void pack_one(const MatrixSpec& m, PackedMatrix& p, std::byte* data, float* scales) {
  for (int64_t tile = 0; tile < p.num_tiles; ++tile) {
    T* out = reinterpret_cast<T*>(data) + tile * p.k * 16;
    const int lanes = int(std::min<int64_t>(16, p.n - tile * 16));
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t n = tile * 16 + lane;
      const int64_t row = m.row_begin + (m.transpose ? 0 : n) * m.row_step,
                    col = m.col_begin + (m.transpose ? n : 0) * m.col_step;
      const std::byte* in = m.data + (row * m.cols + col) * int64_t(sizeof(T));
      const int64_t step = (m.transpose ? m.cols * m.row_step : m.col_step) * int64_t(sizeof(T));
      for (int64_t k = 0; k < p.k; ++k) std::memcpy(out + k * 16 + lane, in + k * step, sizeof(T));
      if (!scales) continue;
      float* s = scales + tile * int64_t(p.segment_end.size()) * 16 + lane;
      int64_t k = 0;
      for (int32_t end : p.segment_end) {
        int64_t row = m.row_begin + (m.transpose ? k : n), col = m.col_begin + (m.transpose ? n : k);
        *s = scale_at(m, row, col) * kF8Factor;
        s += 16;
        k = end;
      }
    }
  }
}

}  // namespace

Weight CpuOps::pack(std::span<const MatrixSpec> batch) {
  CHECK(!batch.empty(), "pack needs at least one matrix");
  auto weight = std::make_shared<PackedWeight>();
  const MatrixSpec& first = batch[0];
  const int size = dtype_bytes(first.dtype);
  const int64_t n = first.transpose ? first.num_cols : first.num_rows,
                k = first.transpose ? first.num_rows : first.num_cols;
  CHECK(n > 0 && k > 0, "{}: cannot pack a {} x {} matrix", first.name, n, k);
  const int64_t num_tiles = (n + 15) / 16, matrix_bytes = num_tiles * k * 16 * size;
  int64_t scale_floats = 0;
  for (const MatrixSpec& m : batch) {
    PackedMatrix p;
    p.dtype = m.dtype;
    p.n = m.transpose ? m.num_cols : m.num_rows;
    p.k = m.transpose ? m.num_rows : m.num_cols;
    CHECK(p.n == n && p.k == k && m.dtype == first.dtype, "{} differs in shape or dtype from {}", m.name, first.name);
    CHECK((m.dtype == DType::kF8E4M3) == (m.scales != nullptr), "{}: FP8 and scales go together", m.name);
    CHECK(!m.scales || (m.row_step == 1 && m.col_step == 1), "{}: scales and steps do not go together", m.name);
    p.num_tiles = num_tiles;
    p.segment_end = scale_segments(m, k);
    if (m.scales) scale_floats += num_tiles * int64_t(p.segment_end.size()) * 16;
    weight->matrices.push_back(std::move(p));
  }
  weight->data = alloc(matrix_bytes * int64_t(batch.size()));
  if (scale_floats) weight->scales = alloc(scale_floats * int64_t(sizeof(float)));
  float* scales = reinterpret_cast<float*>(weight->scales.get());
  for (size_t i = 0; i < batch.size(); ++i) {
    PackedMatrix& p = weight->matrices[i];
    p.data = weight->data.get() + matrix_bytes * int64_t(i);
    if (!batch[i].scales) continue;
    p.scales = scales;
    scales += num_tiles * int64_t(p.segment_end.size()) * 16;
  }
  pool_.parallel_for(int64_t(batch.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const MatrixSpec& m = batch[size_t(i)];
      PackedMatrix& p = weight->matrices[size_t(i)];
      if (m.dtype == DType::kF8E4M3) check_no_f8_nan(m);
      auto* data = const_cast<std::byte*>(p.data);
      auto* s = const_cast<float*>(p.scales);
      switch (size) {
        case 1:
          pack_one<uint8_t>(m, p, data, s);
          break;
        case 2:
          pack_one<uint16_t>(m, p, data, s);
          break;
        default:
          pack_one<uint32_t>(m, p, data, s);
          break;
      }
    }
  });
  return {int64_t(batch.size()), n, k, first.dtype, matrix_bytes * int64_t(batch.size()) + scale_floats * 4, weight};
}

Weight CpuOps::pack_rows(const MatrixSpec& table) {
  CHECK(!table.scales, "{}: tables with scales are not supported", table.name);
  auto rows = std::make_shared<PackedRows>();
  rows->dtype = table.dtype;
  rows->rows = table.rows;
  rows->cols = table.cols;
  int64_t num_bytes = table.rows * table.cols * dtype_bytes(table.dtype);
  rows->data = alloc(num_bytes);
  std::memcpy(rows->data.get(), table.data, size_t(num_bytes));
  return {1, table.rows, table.cols, table.dtype, num_bytes, rows};
}

#include "kernels/cpu/path_end.h"
