// Gathers the rows that this rank's experts compute, sorted by expert, then source rank, token and slot: a counting
// sort without atomics. The choices of each expert are numbered in order (one block for few choices, else one block per
// expert), counts become offsets, and one block per choice adds its expert's offset and copies the row in its dtype.
// And moe_locate: where the results of this rank's tokens are.
#include "kernels/cuda/moe/moe_rows.cuh"
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/kernels.h"
#include "kernels/expert_all_to_all.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// One block; see number_few.
__global__ void __launch_bounds__(kTile) moe_number_few(const __grid_constant__ Sources sources, Placement placement,
                                                        int num_experts, int max_rows, int32_t* offsets) {
  extern __shared__ uint32_t shared[];
  wait_for_earlier();
  number_few(sources, placement, num_experts, max_rows, shared, offsets);
}

// row_of = number among the choices of the same expert; counts [gridDim.x]. Block b: the caller's expert b.
__global__ void __launch_bounds__(kThreads)
    moe_number(const __grid_constant__ Sources sources, Placement placement, int32_t* counts) {
  __shared__ int before[kWarps + 1];
  __shared__ int logical, replica, num_replicas;
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  if (threadIdx.x == 0) {
    logical = placement.replica_begin ? -2 : int(blockIdx.x);
    replica = 0;
    num_replicas = 1;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < placement.num_logical; e += kThreads) {
    const int first = placement.replica_begin[e], end = placement.replica_begin[e + 1];
    for (int p = first; p < end; ++p)
      if (placement.rank[p] == placement.me && placement.local[p] == int(blockIdx.x)) {
        logical = e;
        replica = p - first;
        num_replicas = end - first;
      }
  }
  __syncthreads();
  int count = 0;
  for (int rank = 0; rank < sources.num_ranks; ++rank) {
    const Source& s = sources.of[rank];
    for (int begin = 0; begin < s.num_choices; begin += kThreads) {
      const int i = begin + int(threadIdx.x);
      bool mine = i < s.num_choices && s.expert_idx[i] == logical;
      if (mine && num_replicas > 1) mine = (rank + s.token_begin + i / sources.top_k) % num_replicas == replica;
      const unsigned votes = __ballot_sync(kAll, mine);
      if (lane == 0) before[warp] = __popc(votes);
      __syncthreads();
      int base = count, all = 0;
      for (int w = 0; w < kWarps; ++w) {
        if (w < warp) base += before[w];
        all += before[w];
      }
      if (mine) s.row_of[i] = base + __popc(votes & ((1u << lane) - 1));
      count += all;
      __syncthreads();
    }
  }
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

// offsets [num + 1]: sums of counts [num] before each, at most max_rows: rows never leave their buffer, whatever a
// failed peer stored. One warp.
__global__ void moe_offsets(const int32_t* counts, int num, int max_rows, int32_t* offsets) {
  int32_t sum = 0;
  for (int begin = 0; begin < num; begin += kWarp) {
    const int i = begin + int(threadIdx.x);
    int32_t value = i < num ? counts[i] : 0;
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int32_t left = __shfl_up_sync(kAll, value, offset);
      if (int(threadIdx.x) >= offset) value += left;
    }
    if (i < num) offsets[i + 1] = min(sum + value, max_rows);
    sum += __shfl_sync(kAll, value, kWarp - 1);
  }
  if (threadIdx.x == 0) offsets[0] = 0;
}

// Where the pieces of a row are: of row-major dtypes the row; of f8_e4m3 128 columns and their scale (Operand), or the
// same packed (packed_row_bytes).
struct RowsAt {
  std::byte* data;
  float* scales;
  int64_t row_bytes, block_bytes, scale_row, scale_block;

  template <class T>
  static __device__ RowsAt of_operand(std::byte* x, int64_t rows, int64_t size) {
    if constexpr (sizeof(T) > 1) return {x, nullptr, size * int64_t(sizeof(T)), 0, 0, 0};
    auto* scales = reinterpret_cast<float*>(x + (rows * size + 255) / 256 * 256);
    return {x, scales, kFp8Block, rows * kFp8Block, 1, (rows + 3) / 4 * 4};
  }
  template <class T>
  static __device__ RowsAt packed(std::byte* x, int64_t row_bytes, int64_t size) {
    return {x,
            reinterpret_cast<float*>(x + size * int64_t(sizeof(T))),
            row_bytes,
            kFp8Block,
            row_bytes / int64_t(sizeof(float)),
            1};
  }
};

// Row `a_row` of `a` to row `b_row` of `b`, a block together.
template <class T>
__device__ __forceinline__ void copy_row(const RowsAt& a, int64_t a_row, const RowsAt& b, int64_t b_row, int size) {
  const std::byte* from = a.data + a_row * a.row_bytes;
  std::byte* to = b.data + b_row * b.row_bytes;
  if constexpr (sizeof(T) == 1) {
    constexpr int kUnits = kFp8Block / sizeof(uint4);
    for (int i = threadIdx.x; i < size / int(sizeof(uint4)); i += kThreads) {
      const int64_t block = i / kUnits, unit = i % kUnits;
      reinterpret_cast<uint4*>(to + block * b.block_bytes)[unit] =
          reinterpret_cast<const uint4*>(from + block * a.block_bytes)[unit];
    }
    for (int block = threadIdx.x; block < size / kFp8Block; block += kThreads)
      b.scales[b_row * b.scale_row + block * b.scale_block] = a.scales[a_row * a.scale_row + block * a.scale_block];
  } else {
    constexpr int kUnit = sizeof(uint4) / sizeof(T);
    if (size % kUnit == 0 && (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % sizeof(uint4) == 0)
      for (int i = threadIdx.x; i < size / kUnit; i += kThreads)
        reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    else
      for (int i = threadIdx.x; i < size; i += kThreads)
        reinterpret_cast<T*>(to)[i] = reinterpret_cast<const T*>(from)[i];
  }
}

// Grid: (choices of the largest source, ranks). x: [max_rows, size].
template <class T>
__global__ void __launch_bounds__(kThreads)
    moe_copy_rows(const __grid_constant__ Sources sources, Placement placement, int num_experts, const int32_t* offsets,
                  int size, int64_t packed_bytes, std::byte* x, int max_rows, float* scale) {
  wait_for_earlier_before_next();  // expert_offsets are read early (tensor_core_ops.cpp)
  const Source& s = sources.of[blockIdx.y];
  const int choice = int(blockIdx.x);
  if (choice >= s.num_choices) return;
  const int expert = local_expert(placement, num_experts, sources, int(blockIdx.y), choice);
  const int row = expert < 0 ? max_rows : offsets[expert] + s.row_of[choice];
  __syncthreads();  // all threads have read the number
  if (row >= max_rows) {
    if (threadIdx.x == 0) s.row_of[choice] = -1;
    return;
  }
  if (threadIdx.x == 0) {
    s.row_of[choice] = row;
    if (scale) scale[row] = s.expert_weight[choice];
  }
  auto* from = const_cast<std::byte*>(s.x);
  const int token = choice / sources.top_k;
  const RowsAt to = RowsAt::of_operand<T>(x, max_rows, size);
  if (s.num_rows == 0)
    copy_row<T>(RowsAt::packed<T>(from, packed_bytes, size), token, to, row, size);
  else
    copy_row<T>(RowsAt::of_operand<T>(from, s.num_rows, size), s.token_begin + token, to, row, size);
}

struct Results {
  MoeResults of[kMaxRanks];
};

__global__ void moe_locate(const __grid_constant__ Results results, Placement placement, const int32_t* expert_idx,
                           int num_choices, int top_k, int token_begin, int64_t row_bytes, const void** expert_rows) {
  wait_for_earlier();
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= num_choices) return;
  int expert = expert_idx[i], rank = 0;
  if (placement.replica_begin) {
    expert = physical_expert(placement, expert, placement.me, token_begin + i / top_k);
    if (expert >= 0) rank = placement.rank[expert];
  }
  const MoeResults& from = results.of[rank];
  expert_rows[i] = expert >= 0 ? static_cast<const std::byte*>(from.out) + from.row_of[i] * row_bytes : nullptr;
}

}  // namespace kernel

kernel::Sources sources_of(const MoePermuteArgs& a) {
  const int64_t size = a.x.row_size();
  CHECK(!a.sources.empty() && a.sources.size() <= size_t{kernel::kMaxRanks}, "{} ranks; at most {}", a.sources.size(),
        kernel::kMaxRanks);
  kernel::Sources sources = {.num_ranks = int(a.sources.size()), .top_k = int(a.sources[0].expert_idx.dim(1))};
  for (size_t i = 0; i < a.sources.size(); ++i) {
    const MoeSource& s = a.sources[i];
    const int64_t num = s.expert_idx.size();
    CHECK(s.expert_idx.dim(1) == sources.top_k && (num == 0 || s.x.row_size() == size) && s.x.dtype == a.x.dtype &&
              (s.packed ? 0 : s.token_begin) + s.expert_idx.dim(0) <= s.x.dim(0),
          "moe_permute: rank {} has {} experts per token, tokens {} to {} of {}, rows of {} {}; rank 0 has {} experts, "
          "and the caller takes rows of {} {}",
          i, s.expert_idx.dim(1), s.token_begin, s.token_begin + s.expert_idx.dim(0), s.x.dim(0), s.x.row_size(),
          dtype_name(s.x.dtype), sources.top_k, size, dtype_name(a.x.dtype));
    CHECK(!a.scale || num == 0 || s.expert_weight, "moe_permute: rank {} gives no weights", i);
    sources.of[i] = {.x = static_cast<const std::byte*>(s.x.data),
                     .expert_idx = s.expert_idx.data,
                     .expert_weight = s.expert_weight.data,
                     .row_of = s.row_of.data,
                     .num_choices = int(num),
                     .token_begin = int(s.token_begin),
                     .num_rows = s.packed ? 0 : int(s.x.dim(0))};
  }
  return sources;
}

void moe_number(const MoePermuteArgs& a, int32_t* counts, Stream stream) {
  const int64_t num_experts = a.expert_offsets.dim(0) - 1, max_rows = a.x.dim(0);
  const kernel::Sources sources = sources_of(a);
  int64_t all = 0;
  for (const MoeSource& s : a.sources) all += s.expert_idx.size();
  const kernel::Placement placement = kernel::placement_of(a.placement, a.rank);
  const cudaStream_t cuda = handle(stream);
  const int64_t shared = kernel::number_few_shared_bytes(num_experts);
  if (all <= kernel::kFewChoices && shared <= kernel::kMaxNumberShared) {
    launch_early(kernel::moe_number_few, 1, kernel::kTile, size_t(shared), cuda, sources, placement, int(num_experts),
                 int(max_rows), a.expert_offsets.data);
  } else {
    kernel::moe_number<<<unsigned(num_experts), kernel::kThreads, 0, cuda>>>(sources, placement, counts);
    CUDA_CHECK(cudaGetLastError());
    kernel::moe_offsets<<<1, kernel::kWarp, 0, cuda>>>(counts, int(num_experts), int(max_rows), a.expert_offsets.data);
    CUDA_CHECK(cudaGetLastError());
  }
}

void moe_copy_rows(const MoePermuteArgs& a, Stream stream) {
  const int64_t num_experts = a.expert_offsets.dim(0) - 1, size = a.x.row_size();
  int64_t most = 0;
  for (const MoeSource& s : a.sources) most = std::max(most, s.expert_idx.size());
  if (most == 0) return;
  const auto copy = [&](auto kernel) {
    launch_early(kernel, dim3(unsigned(most), unsigned(a.sources.size())), kernel::kThreads, 0, handle(stream),
                 sources_of(a), kernel::placement_of(a.placement, a.rank), int(num_experts), a.expert_offsets.data,
                 int(size), packed_row_bytes(a.x.dtype, size), static_cast<std::byte*>(a.x.data), int(a.x.dim(0)),
                 a.scale.data);
  };
  switch (a.x.dtype) {
    case DType::kF32:
      return copy(kernel::moe_copy_rows<float>);
    case DType::kBF16:
      return copy(kernel::moe_copy_rows<__nv_bfloat16>);
    case DType::kF8E4M3:
      return copy(kernel::moe_copy_rows<__nv_fp8_e4m3>);
    default:
      CHECK(false, "moe_permute: no operand of {}", dtype_name(a.x.dtype));
  }
}

void moe_locate(const MoeLocateArgs& a, Stream stream) {
  const int64_t num = a.expert_idx.size();
  CHECK(a.results.size() <= size_t{kernel::kMaxRanks} && a.expert_rows.size() == num,
        "moe_locate: {} ranks, {} choices, {} rows", a.results.size(), num, a.expert_rows.size());
  if (num == 0) return;
  kernel::Results results = {};
  std::copy(a.results.begin(), a.results.end(), results.of);
  launch_early(kernel::moe_locate, blocks_for(num, 256), 256, 0, handle(stream), results,
               kernel::placement_of(a.placement, a.rank), a.expert_idx.data, int(num), int(a.expert_idx.dim(1)),
               int(a.token_begin), a.row_bytes, a.expert_rows.data);
}

}  // namespace moectl::cuda
