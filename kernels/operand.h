// Operand: rows of activations in one dtype. Operands: the same rows in each dtype that a consumer multiplies with. The
// producer (a norm, a projection, a permutation) writes every dtype that is given; consumers take the one that their
// weight asks for (Weight::operand). Views only: they own nothing.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "core/base/check.h"
#include "core/base/dtype.h"
#include "core/base/tensor.h"

namespace moectl {

// Columns that share a scale (DeepSeek-V3 report, section 3.3.2: 1 x 128 tiles).
inline constexpr int kFp8Block = 128;

// f32, bf16: row-major and contiguous. f8_e4m3, [rows, k] with k a multiple of 128: stored k-block by k-block, so that
// a tile of 128 columns is contiguous: element (i, j) is byte (j / 128 * rows + i) * 128 + j % 128 of `data`, and its
// value is number * scales[j / 128 * scale_stride(rows) + i].
struct Operand {
  void* data = nullptr;  // null: not given
  DType dtype = DType::kF32;
  float* scales = nullptr;  // f8_e4m3: [k / 128, scale_stride(rows)], 16-byte aligned
  std::array<int64_t, 4> shape{};
  int rank = 0;

  Operand() = default;
  // In `memory` of at least num_bytes(dtype, dims), 256-byte aligned for f8_e4m3.
  Operand(void* memory, DType t, std::initializer_list<int64_t> dims) : data(memory), dtype(t), rank(int(dims.size())) {
    CHECK(dims.size() <= 4, "an operand has at most four dimensions, not {}", dims.size());
    int i = 0;
    for (int64_t d : dims) shape[size_t(i++)] = d;
    place_scales();
  }
  Operand(const View<float>& v) : data(v.data), shape(v.shape), rank(v.rank) {}  // NOLINT: a view of f32 is one
  Operand(const View<const float>& v)  // NOLINT: consumers do not write their operands
      : data(const_cast<float*>(v.data)), shape(v.shape), rank(v.rank) {}

  explicit operator bool() const { return data != nullptr; }
  int64_t dim(int i) const { return shape[size_t(i)]; }
  int64_t row_size() const {
    int64_t n = 1;
    for (int i = 1; i < rank; ++i) n *= shape[size_t(i)];
    return n;
  }
  int64_t size() const { return rank ? shape[0] * row_size() : 0; }
  int64_t num_bytes() const { return rank ? num_bytes(dtype, shape[0], row_size()) : 0; }
  static int64_t scale_stride(int64_t rows) { return (rows + 3) / 4 * 4; }
  static int64_t num_bytes(DType dtype, int64_t rows, int64_t row_size) {
    const int64_t numbers = rows * row_size * dtype_bytes(dtype);
    if (dtype != DType::kF8E4M3) return numbers;
    return (numbers + 255) / 256 * 256 + row_size / kFp8Block * scale_stride(rows) * int64_t(sizeof(float));
  }

  // The same memory as [dims]: for f8_e4m3 another number of rows is another layout.
  Operand reshaped(std::initializer_list<int64_t> dims) const { return Operand(data, dtype, dims); }
  Operand first(int64_t rows) const {
    Operand o = *this;
    o.shape[0] = rows;
    o.place_scales();
    return o;
  }
  View<float> f32() const {
    CHECK(!data || dtype == DType::kF32, "an operand of {} where f32 is expected", dtype_name(dtype));
    View<float> v;
    v.data = static_cast<float*>(data);
    v.shape = shape;
    v.rank = rank;
    return v;
  }

 private:
  void place_scales() {
    if (dtype != DType::kF8E4M3 || !data) return;
    CHECK(row_size() % kFp8Block == 0, "FP8 rows of {} are no multiple of {}", row_size(), kFp8Block);
    scales = reinterpret_cast<float*>(static_cast<std::byte*>(data) + (size() + 255) / 256 * 256);
  }
};

// Which of an operand's dtypes are wanted.
struct DTypeSet {
  bool f32 = false, bf16 = false, fp8 = false;

  DTypeSet() = default;
  DTypeSet(std::initializer_list<DType> dtypes) {  // NOLINT: a list of dtypes is a set
    for (DType t : dtypes) add(t);
  }
  void add(DType t) {
    CHECK(t == DType::kF32 || t == DType::kBF16 || t == DType::kF8E4M3, "no operand of {}", dtype_name(t));
    (t == DType::kF32 ? f32 : t == DType::kBF16 ? bf16 : fp8) = true;
  }
  bool has(DType t) const { return t == DType::kF32 ? f32 : t == DType::kBF16 ? bf16 : t == DType::kF8E4M3 && fp8; }
  bool operator==(const DTypeSet&) const = default;
};

struct Operands {
  Operand f32, bf16, fp8;  // of the same shape; null: not wanted

  Operands() = default;
  Operands(const Operand& o) { set(o); }      // NOLINT: one dtype is a set of one
  Operands(const View<float>& v) : f32(v) {}  // NOLINT
  Operand& slot(DType t) { return t == DType::kF32 ? f32 : t == DType::kBF16 ? bf16 : fp8; }
  void set(const Operand& o) { slot(o.dtype) = o; }
  const Operand& any() const { return f32 ? f32 : bf16 ? bf16 : fp8; }
  explicit operator bool() const { return bool(any()); }
  int64_t dim(int i) const { return any().dim(i); }
  int64_t row_size() const { return any().row_size(); }
  int64_t size() const { return any().size(); }
  // For a consumer: throws Error{kInternal} when the producer was not asked for this dtype.
  const Operand& get(DType t) const {
    const Operand& o = t == DType::kF32 ? f32 : t == DType::kBF16 ? bf16 : fp8;
    CHECK(o, "no rows of {}: the producer was not asked for them", dtype_name(t));
    return o;
  }
};

}  // namespace moectl
