// The parts of CpuOps that are not arithmetic: the embedding and row copies.
#include "kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/simd.h"

#include "kernels/cpu/path_begin.h"

// Raise when any kernel changes a bit of its results.
inline constexpr int kKernelVersion = 1;

std::string CpuOps::numerics_id() const {
  return fmt::format("cpu-{}-{}", kPathName, kKernelVersion);
}

const float* const* CpuOps::row_pointers(const float* x, int64_t num_rows, int64_t stride) {
  row_pointers_.clear();
  for (int64_t i = 0; i < num_rows; ++i) row_pointers_.push_back(x + i * stride);
  return row_pointers_.data();
}

void CpuOps::embed(const EmbedArgs& a, Stream) {
  const auto& table = cpu::packed_rows(a.table);
  const int64_t cols = table.cols, vocab_size = a.vocab_size ? a.vocab_size : table.rows;
  for (int64_t i = 0; i < a.token_ids.dim(0); ++i) {
    const int64_t id = a.token_ids(i), row_idx = id - a.first_id;
    CHECK(id >= 0 && id < vocab_size, "token id {} of a vocabulary of {}", id, vocab_size);
    float* out = a.out.row(i);
    if (row_idx < 0 || row_idx >= table.rows) {
      std::fill_n(out, cols, 0.0f);
      continue;
    }
    const std::byte* row = table.data.get() + row_idx * cols * dtype_bytes(table.dtype);
    for (int64_t c = 0; c < cols; ++c) {
      switch (table.dtype) {
        case DType::kF32:
          out[c] = reinterpret_cast<const float*>(row)[c];
          break;
        case DType::kBF16:
          out[c] = bf16_to_f32(reinterpret_cast<const uint16_t*>(row)[c]);
          break;
        case DType::kF16:
          out[c] = f16_to_f32(reinterpret_cast<const uint16_t*>(row)[c]);
          break;
        default:
          CHECK(false, "no embedding table of {}", dtype_name(table.dtype));
      }
    }
  }
}

void CpuOps::gather(const GatherArgs& a, Stream) {
  const View<float> x = a.x.f32(), out = a.out.f32();
  for (int64_t i = 0; i < a.row_idx.dim(0); ++i)
    std::memcpy(out.row(i), x.row(a.row_idx(i)), size_t(x.row_size()) * sizeof(float));
}

void CpuOps::concat_columns(const ConcatColumnsArgs& a, Stream) {
  const int64_t num_rows = a.out.dim(0), size = a.out.row_size();
  for (int64_t part = 0; part < a.parts.dim(0); ++part) {
    const int64_t begin = part * a.width, width = std::min(a.width, size - begin);
    CHECK(width > 0 && num_rows * width <= a.parts.row_size(), "[{}, {}] of a part of {}", num_rows, width,
          a.parts.row_size());
    for (int64_t i = 0; i < num_rows; ++i)
      std::memcpy(a.out.row(i) + begin, a.parts.row(part) + i * width, size_t(width) * sizeof(float));
  }
}

void CpuOps::quantize(const QuantizeArgs& a, Stream) {
  CHECK(!a.out.bf16 && !a.out.fp8, "the CPU backend's operands are f32");
  const View<float> out = a.out.f32.f32();
  if (out && out.data != a.x.data) std::memcpy(out.data, a.x.data, size_t(a.x.size()) * sizeof(float));
}

#include "kernels/cpu/path_end.h"
