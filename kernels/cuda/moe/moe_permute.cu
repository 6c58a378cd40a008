// Gathers the rows that this rank's experts compute, sorted by expert, then source rank, token and slot: a counting
// sort without atomics. The choices of each expert are numbered in order (one block for few choices, else one block per
// expert), counts become offsets, and one block per choice adds its expert's offset and copies the row in its dtype.
// And moe_locate: where the results of this rank's tokens are.
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256, kWarps = kThreads / kWarp, kMaxRanks = 72;

// MoeSource. As small as it can be: 72 of them are a kernel's arguments (4 KB).
struct Source {
  const std::byte* x;
  const int32_t* expert_idx;
  const float* expert_weight;
  int32_t* row_of;
  int num_choices, token_begin;
  int num_rows;  // of x
};
struct Sources {
  Source of[kMaxRanks];
  int num_ranks, top_k;
};

// PlacementView of rank `me`; replica_begin null: every expert is here, in order.
struct Placement {
  const int32_t *replica_begin, *rank, *local;
  int num_logical, me;
};
Placement placement_of(const PlacementView& p, int64_t rank) {
  return {p.replica_begin.data, p.rank.data, p.local.data, p.replica_begin ? int(p.replica_begin.dim(0)) - 1 : 0,
          int(rank)};
}

// The physical expert of a choice of an expert by token `token` of source rank `source`; -1: none.
__device__ __forceinline__ int physical_expert(const Placement& p, int expert, int source, int token) {
  if (expert < 0 || expert >= p.num_logical) return -1;
  const int first = p.replica_begin[expert], num = p.replica_begin[expert + 1] - first;
  return num == 1 ? first : first + (source + token) % num;
}

// The index of that expert among the caller's `num_experts`; -1: not the caller's.
__device__ __forceinline__ int local_expert(const Placement& p, int num_experts, const Sources& sources, int source,
                                            int choice) {
  const Source& s = sources.of[source];
  int expert = s.expert_idx[choice];
  if (p.replica_begin) {
    const int physical = physical_expert(p, expert, source, s.token_begin + choice / sources.top_k);
    expert = physical >= 0 && p.rank[physical] == p.me ? p.local[physical] : -1;
  }
  return expert < num_experts ? expert : -1;
}

constexpr int kTile = 1024, kTileWarps = kTile / kWarp;  // choices, and threads, of moe_number_few
constexpr int64_t kFewChoices = 4 * kTile;

// row_of = number among the choices of the same expert; offsets [num_experts + 1]. One block. Shared memory: of each
// warp of the tile and expert, how many choices stand before the warp's; then of each expert, how many there were.
__global__ void __launch_bounds__(kTile)
    moe_number_few(const __grid_constant__ Sources sources, Placement placement, int num_experts, int32_t* offsets) {
  extern __shared__ uint32_t shared[];
  uint32_t *before = shared, *count = shared + kTileWarps * num_experts;
  __shared__ uint32_t warp_sums[kTileWarps];
  wait_for_earlier();
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  for (int e = threadIdx.x; e < num_experts; e += kTile) count[e] = 0;
  for (int rank = 0; rank < sources.num_ranks; ++rank) {
    const Source& s = sources.of[rank];
    for (int begin = 0; begin < s.num_choices; begin += kTile) {
      for (int i = threadIdx.x; i < kTileWarps * num_experts; i += kTile) before[i] = 0;
      const int choice = begin + int(threadIdx.x);
      const int expert = choice < s.num_choices ? local_expert(placement, num_experts, sources, rank, choice) : -1;
      __syncthreads();
      const unsigned like_me = __match_any_sync(kAll, expert);
      const int mine = __popc(like_me & ((1u << lane) - 1));
      if (expert >= 0 && mine == 0) before[warp * num_experts + expert] = uint32_t(__popc(like_me));
      __syncthreads();
      for (int e = threadIdx.x; e < num_experts; e += kTile) {
        uint32_t sum = count[e];
        for (int w = 0; w < kTileWarps; ++w) {
          const uint32_t here = before[w * num_experts + e];
          before[w * num_experts + e] = sum;
          sum += here;
        }
        count[e] = sum;
      }
      __syncthreads();
      if (expert >= 0) s.row_of[choice] = int32_t(before[warp * num_experts + expert]) + mine;
      __syncthreads();
    }
  }
  __syncthreads();
  // Sums of the counts: within a warp, then of the warps before it.
  uint32_t carry = 0;
  for (int begin = 0; begin < num_experts; begin += kTile) {
    const int e = begin + int(threadIdx.x);
    uint32_t sum = e < num_experts ? count[e] : 0;
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const uint32_t left = __shfl_up_sync(kAll, sum, offset);
      if (lane >= offset) sum += left;
    }
    if (lane == kWarp - 1) warp_sums[warp] = sum;
    __syncthreads();
    uint32_t all = carry;
    for (int w = 0; w < kTileWarps; ++w) {
      if (w < warp) sum += warp_sums[w];
      all += warp_sums[w];
    }
    if (e < num_experts) offsets[e + 1] = int32_t(sum + carry);
    carry = all;
    __syncthreads();
  }
  if (threadIdx.x == 0) offsets[0] = 0;
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

// offsets [num + 1]: sums of counts [num] before each. One warp.
__global__ void moe_offsets(const int32_t* counts, int num, int32_t* offsets) {
  int32_t sum = 0;
  for (int begin = 0; begin < num; begin += kWarp) {
    const int i = begin + int(threadIdx.x);
    int32_t value = i < num ? counts[i] : 0;
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int32_t left = __shfl_up_sync(kAll, value, offset);
      if (int(threadIdx.x) >= offset) value += left;
    }
    if (i < num) offsets[i + 1] = sum + value;
    sum += __shfl_sync(kAll, value, kWarp - 1);
  }
  if (threadIdx.x == 0) offsets[0] = 0;
}

// Row `from` of an operand [from_rows, size] to row `to` of one of [to_rows, size], a block together. Row-major dtypes:
template <class T>
__device__ __forceinline__ void copy_row(const std::byte* x, int64_t from, int64_t, std::byte* out, int64_t to, int64_t,
                                         int size) {
  const T* a = reinterpret_cast<const T*>(x) + from * size;
  T* b = reinterpret_cast<T*>(out) + to * size;
  constexpr int kUnit = sizeof(uint4) / sizeof(T);
  if (size % kUnit == 0 && (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % sizeof(uint4) == 0)
    for (int i = threadIdx.x; i < size / kUnit; i += kThreads)
      reinterpret_cast<uint4*>(b)[i] = reinterpret_cast<const uint4*>(a)[i];
  else
    for (int i = threadIdx.x; i < size; i += kThreads) b[i] = a[i];
}
// f8_e4m3: 128 columns at a time, and their scales (Operand).
__device__ __forceinline__ const float* scales_of(const std::byte* x, int64_t rows, int64_t size) {
  return reinterpret_cast<const float*>(x + (rows * size + 255) / 256 * 256);
}
template <>
__device__ __forceinline__ void copy_row<__nv_fp8_e4m3>(const std::byte* x, int64_t from, int64_t from_rows,
                                                        std::byte* out, int64_t to, int64_t to_rows, int size) {
  constexpr int kUnits = kFp8Block / sizeof(uint4);
  for (int i = threadIdx.x; i < size / int(sizeof(uint4)); i += kThreads) {
    const int64_t kb = i / kUnits, unit = i % kUnits;
    reinterpret_cast<uint4*>(out)[(kb * to_rows + to) * kUnits + unit] =
        reinterpret_cast<const uint4*>(x)[(kb * from_rows + from) * kUnits + unit];
  }
  const float* a = scales_of(x, from_rows, size);
  float* b = const_cast<float*>(scales_of(out, to_rows, size));
  const int64_t from_stride = (from_rows + 3) / 4 * 4, to_stride = (to_rows + 3) / 4 * 4;
  for (int kb = threadIdx.x; kb < size / kFp8Block; kb += kThreads) b[kb * to_stride + to] = a[kb * from_stride + from];
}

// Grid: (choices of the largest source, ranks). x: [max_rows, size].
template <class T>
__global__ void __launch_bounds__(kThreads)
    moe_copy_rows(const __grid_constant__ Sources sources, Placement placement, int num_experts, const int32_t* offsets,
                  int size, std::byte* x, int max_rows, float* scale) {
  wait_for_earlier_before_next();  // expert_offsets are read early (tensor_core_ops.cpp)
  const Source& s = sources.of[blockIdx.y];
  const int choice = int(blockIdx.x);
  if (choice >= s.num_choices) return;
  const int expert = local_expert(placement, num_experts, sources, int(blockIdx.y), choice);
  if (expert < 0) return;
  const int row = offsets[expert] + s.row_of[choice];
  __syncthreads();  // all threads have read the number
  if (threadIdx.x == 0) {
    s.row_of[choice] = row;
    if (scale) scale[row] = s.expert_weight[choice];
  }
  copy_row<T>(s.x, s.token_begin + choice / sources.top_k, s.num_rows, x, row, max_rows, size);
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

void moe_permute(const MoePermuteArgs& a, int32_t* counts, Stream stream) {
  const int64_t num_experts = a.expert_offsets.dim(0) - 1, size = a.x.row_size(), max_rows = a.x.dim(0);
  CHECK(!a.sources.empty() && a.sources.size() <= size_t{kernel::kMaxRanks}, "{} ranks; at most {}", a.sources.size(),
        kernel::kMaxRanks);
  kernel::Sources sources = {.num_ranks = int(a.sources.size()), .top_k = int(a.sources[0].expert_idx.dim(1))};
  int64_t most = 0, all = 0;
  for (size_t i = 0; i < a.sources.size(); ++i) {
    const MoeSource& s = a.sources[i];
    const int64_t num = s.expert_idx.size();
    CHECK(s.expert_idx.dim(1) == sources.top_k && (num == 0 || s.x.row_size() == size) && s.x.dtype == a.x.dtype &&
              s.token_begin + s.expert_idx.dim(0) <= s.x.dim(0),
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
                     .num_rows = int(s.x.dim(0))};
    most = std::max(most, num);
    all += num;
  }
  const kernel::Placement placement = kernel::placement_of(a.placement, a.rank);
  const cudaStream_t cuda = handle(stream);
  const int64_t shared = (kernel::kTileWarps + 1) * num_experts * int64_t(sizeof(uint32_t));
  if (all <= kernel::kFewChoices && shared <= (47 << 10)) {
    launch_early(kernel::moe_number_few, 1, kernel::kTile, size_t(shared), cuda, sources, placement, int(num_experts),
                 a.expert_offsets.data);
  } else {
    kernel::moe_number<<<unsigned(num_experts), kernel::kThreads, 0, cuda>>>(sources, placement, counts);
    CUDA_CHECK(cudaGetLastError());
    kernel::moe_offsets<<<1, kernel::kWarp, 0, cuda>>>(counts, int(num_experts), a.expert_offsets.data);
    CUDA_CHECK(cudaGetLastError());
  }
  if (most == 0) return;
  const auto copy = [&](auto kernel) {
    launch_early(kernel, dim3(unsigned(most), unsigned(a.sources.size())), kernel::kThreads, 0, cuda, sources,
                 placement, int(num_experts), a.expert_offsets.data, int(size), static_cast<std::byte*>(a.x.data),
                 int(max_rows), a.scale.data);
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
