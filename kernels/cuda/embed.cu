// Row copies: embedding look-ups, which widen a table's numbers, and gathers. A block a row.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/weight.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    embed(const int32_t* token_ids, const int32_t* sampled, int64_t num_sampled, const std::byte* table,
          int64_t num_rows, int64_t row_bytes, int size, float* out) {
  int64_t id = token_ids[blockIdx.x];
  if (id < 0 && -1 - id < num_sampled) id = sampled[-1 - id];
  out += int64_t{blockIdx.x} * size;
  if (id < 0 || id >= num_rows) {
    for (int i = threadIdx.x; i < size; i += kThreads) out[i] = 0.0f;
    return;
  }
  const T* row = reinterpret_cast<const T*>(table + id * row_bytes);
  for (int i = threadIdx.x; i < size; i += kThreads) out[i] = to_f32(row[i]);
}

__global__ void __launch_bounds__(kThreads)
    gather(const float* x, int64_t num_rows, const int32_t* row_idx, int size, float* out) {
  const int64_t from = row_idx[blockIdx.x];
  out += int64_t{blockIdx.x} * size;
  const bool exists = from >= 0 && from < num_rows;
  for (int i = threadIdx.x; i < size; i += kThreads) out[i] = exists ? x[from * size + i] : 0.0f;
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
