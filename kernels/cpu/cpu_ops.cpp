// The parts of CpuOps that are not arithmetic: memory, and the embedding and row copies.
#include "kernels/cpu/cpu_ops.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

#include "kernels/cpu/simd.h"

#include "kernels/cpu/path_begin.h"

// Raise when any kernel changes a bit of its results.
inline constexpr int kKernelVersion = 1;

std::string CpuOps::numerics_id() const {
  return fmt::format("cpu-{}-{}", kPathName, kKernelVersion);
}

Buffer CpuOps::alloc(int64_t num_bytes) {
  CHECK(num_bytes >= 0, "allocation of {} bytes", num_bytes);
  // Pages come zeroed and are touched first by their user; what is never used costs nothing.
  size_t size = size_t(num_bytes > 0 ? num_bytes : 1);
  void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    throw Error(Code::kResourceExhausted,
                fmt::format("cannot allocate {} bytes of memory; lower --kv-cache-memory-bytes or "
                            "--max-num-batched-tokens, or use a machine with more memory",
                            size));
  return Buffer(static_cast<std::byte*>(p), [size](std::byte* q) { munmap(q, size); });
}

void CpuOps::upload(void* device, const void* host, int64_t num_bytes) {
  if (num_bytes > 0) std::memcpy(device, host, size_t(num_bytes));  // empty batches have null pointers
}

const float* const* CpuOps::row_pointers(const float* x, int64_t num_rows, int64_t stride) {
  row_pointers_.clear();
  for (int64_t i = 0; i < num_rows; ++i) row_pointers_.push_back(x + i * stride);
  return row_pointers_.data();
}

void CpuOps::embed(const EmbedArgs& a, Stream) {
  const auto& table = cpu::packed_rows(a.table);
  const int64_t cols = table.cols;
  for (int64_t i = 0; i < a.token_ids.dim(0); ++i) {
    int64_t id = a.token_ids(i);
    CHECK(id >= 0 && id < table.rows, "token id {} of a vocabulary of {}", id, table.rows);
    float* out = a.out.row(i);
    const std::byte* row = table.data.get() + id * cols * dtype_bytes(table.dtype);
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
  for (int64_t i = 0; i < a.row_idx.dim(0); ++i)
    std::memcpy(a.out.row(i), a.x.row(a.row_idx(i)), size_t(a.x.row_size()) * sizeof(float));
}

#include "kernels/cpu/path_end.h"
