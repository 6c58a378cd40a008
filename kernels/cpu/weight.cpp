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

// ------------------------------------------------------------------------------------- reading a MatrixSpec

bool is_nibble(DType t) {
  return dtype_bits(t) == 4;
}
int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

struct Place {
  int64_t row, col;
};
// Where W[n][k] of the rectangle stands in the tensor.
Place place(const MatrixSpec& m, int64_t n, int64_t k) {
  return {m.row_begin + (m.transpose ? k : n) * m.row_step, m.col_begin + (m.transpose ? n : k) * m.col_step};
}

// Bytes from a row to the next one: packed formats fill whole words.
int64_t row_bytes(const MatrixSpec& m) {
  const int64_t bits = m.cols * dtype_bits(m.dtype);
  return is_nibble(m.dtype) || m.dtype == DType::kU8 ? ceil_div(bits, 32) * 4 : bits / 8;
}

constexpr int kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

uint32_t nibble(const std::byte* words, int64_t word, int i) {
  uint32_t w;
  std::memcpy(&w, words + word * 4, sizeof w);
  return w >> (4 * i) & 15;
}

uint32_t nibble_at(const MatrixSpec& m, Place p) {
  if (m.nibble_order == NibbleOrder::kAwq)
    return nibble(m.data, p.col * (m.rows / 8) + p.row / 8, kAwqNibble[p.row % 8]);
  return nibble(m.data, p.row * (row_bytes(m) / 4) + p.col / 8, int(p.col % 8));
}

uint32_t zero_at(const MatrixSpec& m, Place p) {
  const int64_t down = p.row / m.block_n, across = p.col / m.block_k;
  if (m.nibble_order == NibbleOrder::kAwq)
    return nibble(m.zeros, across * (m.rows / 8) + down / 8, kAwqNibble[down % 8]);
  return nibble(m.zeros, down / 8 * ceil_div(m.cols, m.block_k) + across, int(down % 8));
}

// Index of the scale in the tensor of scales.
int64_t scale_index(const MatrixSpec& m, Place p) {
  const int64_t down = p.row / m.block_n, across = p.col / m.block_k;
  if (m.nibble_order == NibbleOrder::kAwq) return across * ceil_div(m.rows, m.block_n) + down;
  return down * ceil_div(m.cols, m.block_k) + across;
}

float scale_at(const MatrixSpec& m, Place p) {
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
float number_at(const MatrixSpec& m, Place p) {
  if (!is_nibble(m.dtype)) {
    const uint8_t b = uint8_t(m.data[p.row * row_bytes(m) + p.col]);
    return m.dtype == DType::kF8E4M3 ? f8_e4m3_to_f32(b) : m.dtype == DType::kI8 ? float(int8_t(b)) : float(b) - 128.0f;
  }
  const uint32_t q = nibble_at(m, p);
  if (m.dtype == DType::kF4E2M1) return kF4E2M1Values[q];
  return float(q) - (m.dtype == DType::kU4 ? float(zero_at(m, p)) : 8.0f);
}

void check_no_f8_nan(const MatrixSpec& m) {
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

int64_t num_outputs(const MatrixSpec& m) {
  return m.transpose ? m.num_cols : m.num_rows;
}
int64_t num_inputs(const MatrixSpec& m) {
  return m.transpose ? m.num_rows : m.num_cols;
}

void check(const MatrixSpec& m, const MatrixSpec& first) {
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

// Scales that change from one k to the next (of a transposed matrix with a scale a row) would take more memory than
// the numbers, and a multiplication a number: such a matrix is multiplied out at load. The parts of kv_b_proj in MLA
// and every other column of a matrix are the cases.
bool needs_widening(const MatrixSpec& m) {
  constexpr int64_t kMinSegment = 16;
  const int64_t block = m.transpose ? m.block_n : m.block_k;
  return m.scales && ((block < kMinSegment && block < num_inputs(m)) || (m.transpose ? m.row_step : m.col_step) != 1);
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
    check(m, first);
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
  weight->data = alloc(num_bytes);
  if (num_scales) weight->scales = alloc(num_scales * scale_bytes);
  if (num_scales && first.zeros) weight->zeros = alloc(num_scales);
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
  return {int64_t(batch.size()), n, k, dtype, num_bytes, weight};
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
