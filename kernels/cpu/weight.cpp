// Packing of checkpoint matrices into the CPU layout (weight.h), once at load.
#include "kernels/cpu/weight.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/simd.h"
#include "kernels/matrix_spec.h"

#include "kernels/cpu/path_begin.h"

using cpu::PackedMatrix;
using cpu::PackedRows;
using cpu::PackedWeight;
using namespace spec;

namespace {

// ------------------------------------------------------------------------------------- writing a PackedMatrix

// Numbers of k that share a scale, or k itself. A rectangle may start anywhere in the block grid.
void set_segments(const MatrixSpec& m, PackedMatrix& p) {
  p.first_segment = p.segment = p.k;
  if (!m.scales) return;
  const int64_t block = m.transpose ? m.block_n : m.block_k, begin = m.transpose ? m.row_begin : m.col_begin;
  p.segment = block;
  p.first_segment = std::min(p.k, block - begin % block);
  p.num_segments = 1 + ceil_div(p.k - p.first_segment, block);
}

// Calls write(n, lane of its tile, tile) for every row of W.
template <class Write>
void for_each_row(const PackedMatrix& p, Write&& write) {
  for (int64_t n = 0; n < p.n; ++n) write(n, n % 16, n / 16);
}

// T: an unsigned integer as large as the matrix's elements.
template <class T>
void pack_elements(const MatrixSpec& m, const PackedMatrix& p, std::byte* data) {
  const int64_t stride = row_bytes(m);
  const int64_t step = m.transpose ? stride * m.row_step : m.col_step * int64_t(sizeof(T));
  const T flip = m.dtype == DType::kU8 ? T(0x80) : T(0);  // q + 128 as a signed number
  for_each_row(p, [&](int64_t n, int64_t lane, int64_t tile) {
    const Place first = place(m, n, 0);
    const std::byte* in = m.data + first.row * stride + first.col * int64_t(sizeof(T));
    T* out = reinterpret_cast<T*>(data) + tile * p.k * 16 + lane;
    for (int64_t k = 0; k < p.k; ++k) {
      T x;
      std::memcpy(&x, in + k * step, sizeof x);
      out[k * 16] = x ^ flip;
    }
  });
}

// AWQ's words hold eight outputs of one k: eight of them become eight words of eight k's.
void pack_awq(const MatrixSpec& m, const PackedMatrix& p, std::byte* data) {
  const int64_t words = ceil_div(p.k, 8);
  for (int64_t n = 0; n < p.n; n += 8)
    for (int64_t i = 0; i < words; ++i) {
      uint32_t in[8] = {};
      for (int64_t k = i * 8; k < std::min(p.k, i * 8 + 8); ++k)
        std::memcpy(&in[k % 8], m.data + ((m.col_begin + k) * (m.rows / 8) + (m.row_begin + n) / 8) * 4, sizeof in[0]);
      uint32_t* out = reinterpret_cast<uint32_t*>(data) + (n / 16 * words + i) * 16 + n % 16;
      for (int64_t j = 0; j < std::min<int64_t>(8, p.n - n); ++j)
        for (int k = 0; k < 8; ++k) out[j] |= (in[k] >> (4 * kAwqNibble[j]) & 15) << (4 * k);
    }
}

void pack_nibbles(const MatrixSpec& m, const PackedMatrix& p, std::byte* data) {
  if (m.nibble_order == NibbleOrder::kAwq && !m.transpose && m.row_step == 1 && m.col_step == 1 && m.row_begin % 8 == 0)
    return pack_awq(m, p, data);
  const int64_t words = ceil_div(p.k, 8);
  // Rows of the checkpoint hold these very words.
  const bool same = m.nibble_order == NibbleOrder::kRows && !m.transpose && m.col_step == 1 && m.col_begin % 8 == 0;
  for_each_row(p, [&](int64_t n, int64_t lane, int64_t tile) {
    uint32_t* out = reinterpret_cast<uint32_t*>(data) + tile * words * 16 + lane;
    const Place first = place(m, n, 0);
    const std::byte* in = m.data + first.row * row_bytes(m) + first.col / 8 * 4;
    for (int64_t i = 0; i < words; ++i) {
      uint32_t w = 0;
      if (same)
        std::memcpy(&w, in + i * 4, sizeof w);
      else
        for (int64_t k = i * 8; k < std::min(p.k, i * 8 + 8); ++k) w |= nibble_at(m, place(m, n, k)) << (k % 8 * 4);
      out[i * 16] = w;
    }
  });
}

void pack_widened(const MatrixSpec& m, const PackedMatrix& p, std::byte* data) {
  for_each_row(p, [&](int64_t n, int64_t lane, int64_t tile) {
    float* out = reinterpret_cast<float*>(data) + tile * p.k * 16 + lane;
    for (int64_t k = 0; k < p.k; ++k) {
      const Place at = place(m, n, k);
      out[k * 16] = scale_at(m, at) * number_at(m, at);
    }
  });
}

void pack_scales(const MatrixSpec& m, const PackedMatrix& p, std::byte* scales, uint8_t* zeros) {
  const int size = dtype_bytes(p.scale_dtype);
  for_each_row(p, [&](int64_t n, int64_t lane, int64_t tile) {
    for (int64_t s = 0; s < p.num_segments; ++s) {
      const Place at = place(m, n, s ? p.segment_end(s - 1) : 0);
      const int64_t out = (tile * p.num_segments + s) * 16 + lane;
      const float scale = scale_at(m, at);
      if (m.dtype == DType::kF8E4M3) {
        const float folded = scale * kF8Factor;
        std::memcpy(scales + out * size, &folded, sizeof folded);
      } else {
        std::memcpy(scales + out * size, m.scales + scale_index(m, at) * size, size_t(size));
      }
      if (zeros) zeros[out] = uint8_t(zero_at(m, at));
    }
  });
}

void pack_one(const MatrixSpec& m, const PackedMatrix& p) {
  auto* data = const_cast<std::byte*>(p.data);
  if (m.dtype == DType::kF8E4M3) check_no_f8_nan(m);
  if (m.scales && !p.scales) return pack_widened(m, p, data);
  if (is_nibble(m.dtype))
    pack_nibbles(m, p, data);
  else if (dtype_bytes(m.dtype) == 1)
    pack_elements<uint8_t>(m, p, data);
  else if (dtype_bytes(m.dtype) == 2)
    pack_elements<uint16_t>(m, p, data);
  else
    pack_elements<uint32_t>(m, p, data);
  if (m.scales) pack_scales(m, p, const_cast<std::byte*>(p.scales), const_cast<uint8_t*>(p.zeros));
}

}  // namespace

Weight CpuOps::pack(std::span<const MatrixSpec> batch) {
  CHECK(!batch.empty(), "pack needs at least one matrix");
  auto weight = std::make_shared<PackedWeight>();
  const MatrixSpec& first = batch[0];
  const bool widened = needs_widening(first);
  const DType dtype = widened ? DType::kF32 : first.dtype == DType::kU8 ? DType::kI8 : first.dtype;
  const int64_t n = num_outputs(first), k = num_inputs(first);
  CHECK(n > 0 && k > 0, "{}: cannot pack a {} x {} matrix", first.name, n, k);
  int64_t num_scales = 0;
  for (const MatrixSpec& m : batch) {
    check_matrix(m, first);
    PackedMatrix p = {.dtype = dtype, .n = n, .k = k, .num_tiles = ceil_div(n, 16), .first_segment = k, .segment = k};
    CHECK(needs_widening(m) == widened, "{} has other blocks than {}", m.name, first.name);
    if (!widened) set_segments(m, p);
    if (first.dtype != DType::kF8E4M3) p.scale_dtype = first.scale_dtype;
    if (m.scales && !widened) num_scales += p.num_tiles * p.num_segments * 16;
    weight->matrices.push_back(p);
  }
  const PackedMatrix& shape = weight->matrices[0];
  const int64_t matrix_bytes = shape.num_tiles * shape.tile_bytes(), scale_bytes = dtype_bytes(shape.scale_dtype);
  int64_t num_bytes = matrix_bytes * int64_t(batch.size());
  weight->data = device_.alloc(num_bytes);
  if (num_scales) weight->scales = device_.alloc(num_scales * scale_bytes);
  if (num_scales && first.zeros) weight->zeros = device_.alloc(num_scales);
  int64_t scale = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    PackedMatrix& p = weight->matrices[i];
    p.data = weight->data.get() + matrix_bytes * int64_t(i);
    if (!num_scales) continue;
    p.scales = weight->scales.get() + scale * scale_bytes;
    if (first.zeros) p.zeros = reinterpret_cast<const uint8_t*>(weight->zeros.get()) + scale;
    scale += p.num_tiles * p.num_segments * 16;
  }
  num_bytes += num_scales * (scale_bytes + (first.zeros ? 1 : 0));
  pool_.parallel_for(int64_t(batch.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pack_one(batch[size_t(i)], weight->matrices[size_t(i)]);
  });
  return {int64_t(batch.size()), n, k, dtype, DType::kF32, num_bytes, weight};
}

Weight CpuOps::pack_rows(const MatrixSpec& table) {
  CHECK(!table.scales, "{}: tables with scales are not supported", table.name);
  auto rows = std::make_shared<PackedRows>();
  rows->dtype = table.dtype;
  rows->rows = table.rows;
  rows->cols = table.cols;
  int64_t num_bytes = table.rows * table.cols * dtype_bytes(table.dtype);
  rows->data = device_.alloc(num_bytes);
  std::memcpy(rows->data.get(), table.data, size_t(num_bytes));
  return {1, table.rows, table.cols, table.dtype, DType::kF32, num_bytes, rows};
}

#include "kernels/cpu/path_end.h"
