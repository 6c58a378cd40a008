// Row copies: embedding look-ups, which widen a table's numbers, and gathers. A block a row.
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
          int64_t num_rows, int64_t row_bytes, int size, float* out) {
  int64_t id = token_ids[blockIdx.x];
  if (id < 0 && -1 - id < num_sampled) id = sampled[-1 - id];
  out += int64_t{blockIdx.x} * size;
  if (id < 0 || id >= num_rows) return clear_row(size, out);
  copy_row(reinterpret_cast<const T*>(table + id * row_bytes), size, out);
}

__global__ void __launch_bounds__(kThreads)
    gather(const float* x, int64_t num_rows, const int32_t* row_idx, int size, float* out) {
  const int64_t from = row_idx[blockIdx.x];
  out += int64_t{blockIdx.x} * size;
  if (from < 0 || from >= num_rows) return clear_row(size, out);
  copy_row(x + from * size, size, out);
}

}  // namespace kernel

void embed(const EmbedArgs& a, Stream stream) {
  const Matrix& table = matrix_of(a.table);
  const int64_t num_rows = a.token_ids.dim(0);
  CHECK(a.out.row_size() == table.k, "embed: rows of {}, a table of {}", a.out.row_size(), table.k);
  if (num_rows == 0) return;
  auto launch = [&](auto kernel) {
    kernel<<<unsigned(num_rows), kernel::kThreads, 0, handle(stream)>>>(a.token_ids.data, a.sampled.data,
                                                                        a.sampled.dim(0), table.data, table.n,
                                                                        table.row_bytes, int(table.k), a.out.data);
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

void gather(const GatherArgs& a, Stream stream) {
  const int64_t num_rows = a.row_idx.dim(0), size = a.x.row_size();
  CHECK(a.out.row_size() == size, "gather: rows of {} into rows of {}", size, a.out.row_size());
  if (num_rows == 0) return;
  kernel::gather<<<unsigned(num_rows), kernel::kThreads, 0, handle(stream)>>>(a.x.data, a.x.dim(0), a.row_idx.data,
                                                                              int(size), a.out.data);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace moectl::cuda
