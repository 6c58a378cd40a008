// Row copies: embedding look-ups, which widen a table's numbers, gathers, and rows whose columns are in several parts.
// One block per row.
#include "kernels/cuda/gemm/fp8_gemm.h"
#include "kernels/cuda/gemm/weight.h"
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256;

// Four numbers of type T at once.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

template <class T>
__device__ void copy_row(const T* from, int size, float* to) {
  if (size % 4 != 0) {  // then rows do not begin at multiples of four, either
    for (int i = threadIdx.x; i < size; i += kThreads) to[i] = to_f32(from[i]);
    return;
  }
  for (int i = threadIdx.x; i < size / 4; i += kThreads) {
    const Four<T> x = reinterpret_cast<const Four<T>*>(from)[i];
    reinterpret_cast<float4*>(to)[i] = {to_f32(x.v[0]), to_f32(x.v[1]), to_f32(x.v[2]), to_f32(x.v[3])};
  }
}

__device__ void clear_row(int size, float* to) {
  for (int i = threadIdx.x; i < size; i += kThreads) to[i] = 0.0f;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    embed(const int32_t* token_ids, const int32_t* sampled, int64_t num_sampled, const std::byte* table,
          int64_t first_id, int64_t num_rows, int64_t row_bytes, int size, float* out) {
  int64_t id = token_ids[blockIdx.x];
  if (id < 0 && -1 - id < num_sampled) id = sampled[-1 - id];
  id -= first_id;
  out += int64_t{blockIdx.x} * size;
  if (id < 0 || id >= num_rows) return clear_row(size, out);
  copy_row(reinterpret_cast<const T*>(table + id * row_bytes), size, out);
}

// Row-major rows of row_bytes.
__global__ void __launch_bounds__(kThreads)
    gather(const std::byte* x, int64_t num_rows, const int32_t* row_idx, int64_t row_bytes, std::byte* out) {
  const int64_t from = row_idx[blockIdx.x];
  const bool exists = from >= 0 && from < num_rows;
  x += from * row_bytes;
  out += int64_t{blockIdx.x} * row_bytes;
  if (row_bytes % 16 == 0 && (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(out)) % 16 == 0) {
    for (int64_t i = threadIdx.x; i < row_bytes / 16; i += kThreads)
      reinterpret_cast<uint4*>(out)[i] = exists ? reinterpret_cast<const uint4*>(x)[i] : uint4{};
  } else {
    for (int64_t i = threadIdx.x; i < row_bytes / 2; i += kThreads)
      reinterpret_cast<uint16_t*>(out)[i] = exists ? reinterpret_cast<const uint16_t*>(x)[i] : uint16_t{0};
  }
}

__global__ void __launch_bounds__(kThreads) gather_fp8(Fp8Rows x, const int32_t* row_idx, Fp8Rows out) {
  const int64_t from = row_idx[blockIdx.x], to = blockIdx.x;
  const bool exists = from >= 0 && from < x.rows;
  constexpr int kUnits = kFp8Block / 16;
  for (int64_t i = threadIdx.x; i < x.k / 16; i += kThreads) {
    const int64_t kb = i / kUnits, at = i % kUnits * 16;
    *reinterpret_cast<uint4*>(out.data + (kb * out.rows + to) * kFp8Block + at) =
        exists ? *reinterpret_cast<const uint4*>(x.data + (kb * x.rows + from) * kFp8Block + at) : uint4{};
    if (at == 0) out.scales[kb * out.scale_stride + to] = exists ? x.scales[kb * x.scale_stride + from] : 1.0f;
  }
}

// parts [num_parts, part_size]: ConcatColumnsArgs. Any alignment: the width of a part of the vocabulary may be odd.
__global__ void __launch_bounds__(kThreads)
    concat_columns(const float* parts, int64_t part_size, int64_t width, int64_t size, float* out) {
  const int64_t row = blockIdx.x;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    const int64_t part = i / width, begin = part * width;
    const int64_t held = width < size - begin ? width : size - begin;
    out[row * size + i] = parts[part * part_size + row * held + i - begin];
  }
}

}  // namespace kernel

void embed(const EmbedArgs& a, Stream stream) {
  const Matrix& table = matrix_of(a.table);
  const int64_t num_rows = a.token_ids.dim(0);
  CHECK(a.out.row_size() == table.k, "embed: rows of {}, a table of {}", a.out.row_size(), table.k);
  if (num_rows == 0) return;
  auto launch = [&](auto kernel) {
    kernel<<<unsigned(num_rows), kernel::kThreads, 0, handle(stream)>>>(
        a.token_ids.data, a.sampled.data, a.sampled.dim(0), table.data, a.first_id, table.n, table.row_bytes,
        int(table.k), a.out.data);
  };
  switch (table.dtype) {
    case DType::kF32:
      launch(kernel::embed<float>);
      break;
    case DType::kBF16:
      launch(kernel::embed<__nv_bfloat16>);
      break;
    case DType::kF16:
      launch(kernel::embed<__half>);
      break;
    default:
      CHECK(false, "no embedding table of {}", dtype_name(table.dtype));
  }
  CUDA_CHECK(cudaGetLastError());
}

void concat_columns(const ConcatColumnsArgs& a, Stream stream) {
  const int64_t num_rows = a.out.dim(0), size = a.out.row_size(), num_parts = a.parts.dim(0);
  CHECK((num_parts - 1) * a.width < size && size <= num_parts * a.width && num_rows * a.width <= a.parts.row_size(),
        "concat_columns: {} parts of {} columns in {} values each into [{}, {}]", num_parts, a.width,
        a.parts.row_size(), num_rows, size);
  if (num_rows == 0) return;
  kernel::concat_columns<<<unsigned(num_rows), kernel::kThreads, 0, handle(stream)>>>(a.parts.data, a.parts.row_size(),
                                                                                      a.width, size, a.out.data);
  CUDA_CHECK(cudaGetLastError());
}

void gather(const GatherArgs& a, Stream stream) {
  const int64_t num_rows = a.row_idx.dim(0), size = a.x.row_size();
  CHECK(a.out.row_size() == size && a.out.dtype == a.x.dtype, "gather: rows of {} {} into rows of {} {}", size,
        dtype_name(a.x.dtype), a.out.row_size(), dtype_name(a.out.dtype));
  if (num_rows == 0) return;
  if (a.x.dtype == DType::kF8E4M3)
    kernel::gather_fp8<<<unsigned(num_rows), kernel::kThreads, 0, handle(stream)>>>(fp8_rows(a.x), a.row_idx.data,
                                                                                    fp8_rows(a.out));
  else
    kernel::gather<<<unsigned(num_rows), kernel::kThreads, 0, handle(stream)>>>(
        static_cast<const std::byte*>(a.x.data), a.x.dim(0), a.row_idx.data, size * dtype_bytes(a.x.dtype),
        static_cast<std::byte*>(a.out.data));
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace moectl::cuda
