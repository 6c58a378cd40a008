// Gathers the rows that this rank's experts must compute, sorted by expert, then source rank, token and slot: a
// counting sort without atomics. One block an expert walks over all sources' choices in order and numbers those that
// are its own; one block turns the counts into offsets; then a block a choice adds its expert's offset and copies the
// row, for tensor-core experts also in their number format. And moe_locate: where the results of this rank's tokens
// lie.
#include "kernels/cuda/elementwise/fp8_quantize.cuh"
#include "kernels/cuda/runtime/device.cuh"
#include "kernels/cuda/runtime/kernels.h"

namespace moectl::cuda {
namespace kernel {

constexpr int kThreads = 256, kWarps = kThreads / kWarp, kMaxRanks = 72;

struct Source {
  const float* x;
  const int32_t* expert_idx;
  const float* expert_weight;
  int32_t* row_of;
  int num_choices;
};
struct Sources {
  Source of[kMaxRanks];
  int num_ranks, top_k;
};

constexpr int kTile = 1024, kTileWarps = kTile / kWarp;  // choices, and threads, of moe_number_few
constexpr int64_t kFewChoices = 4 * kTile;

// row_of = number among the choices of the same expert; offsets [num_experts + 1]. One block. Shared memory: of each
// warp of the tile and expert, how many choices stand before the warp's; then of each expert, how many there were.
__global__ void __launch_bounds__(kTile)
    moe_number_few(const __grid_constant__ Sources sources, int expert_begin, int num_experts, int32_t* offsets) {
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
      int expert = choice < s.num_choices ? s.expert_idx[choice] - expert_begin : -1;
      if (expert < 0 || expert >= num_experts) expert = -1;
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

// row_of = number among the choices of the same expert; counts [gridDim.x] of the experts from expert_begin on.
__global__ void __launch_bounds__(kThreads)
    moe_number(const __grid_constant__ Sources sources, int expert_begin, int32_t* counts) {
  __shared__ int before[kWarps + 1];
  const int expert = expert_begin + int(blockIdx.x), lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  int count = 0;
  for (int rank = 0; rank < sources.num_ranks; ++rank) {
    const Source& s = sources.of[rank];
    for (int begin = 0; begin < s.num_choices; begin += kThreads) {
      const int i = begin + int(threadIdx.x);
      const bool mine = i < s.num_choices && s.expert_idx[i] == expert;
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

// Grid: (choices of the largest source, ranks). x: null where copies are all that is wanted.
__global__ void __launch_bounds__(kThreads)
    moe_copy_rows(const __grid_constant__ Sources sources, int expert_begin, int num_experts, const int32_t* offsets,
                  int size, float* x, float* scale, RowCopies copies) {
  wait_for_earlier_before_next();  // expert_offsets are read early (fast_experts)
  const Source& s = sources.of[blockIdx.y];
  const int choice = int(blockIdx.x);
  if (choice >= s.num_choices) return;
  const int expert = s.expert_idx[choice] - expert_begin;
  if (expert < 0 || expert >= num_experts) return;
  const int row = offsets[expert] + s.row_of[choice];
  __syncthreads();  // all threads have read the number
  if (threadIdx.x == 0) {
    s.row_of[choice] = row;
    if (scale) scale[row] = s.expert_weight[choice];
  }
  const float* from = s.x + int64_t{choice / sources.top_k} * size;
  float* to = x + int64_t{row} * size;
  if (copies.fp8.data || copies.bf16) {  // a warp 128 numbers
    const int lane = int(threadIdx.x) % kWarp;
    for (int kb = int(threadIdx.x) / kWarp; kb < size / kFp8Block; kb += kWarps) {
      const int at = kb * kFp8Block + lane * 4;
      const float4 v = *reinterpret_cast<const float4*>(from + at);
      if (x) *reinterpret_cast<float4*>(to + at) = v;
      if (copies.fp8.data) quantize_piece(v, copies.fp8, row, kb);
      if (copies.bf16) store_bf16(static_cast<__nv_bfloat16*>(copies.bf16) + int64_t{row} * size + at, v);
    }
    return;
  }
  if (size % 4 == 0 && (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % 16 == 0)
    for (int i = threadIdx.x; i < size / 4; i += kThreads)
      reinterpret_cast<float4*>(to)[i] = reinterpret_cast<const float4*>(from)[i];
  else
    for (int i = threadIdx.x; i < size; i += kThreads) to[i] = from[i];
}

struct Owners {
  MoeOwner of[kMaxRanks];
};

__global__ void moe_locate(const __grid_constant__ Owners owners, const int32_t* expert_idx, int num_choices,
                           int num_ranks, int num_local_experts, int64_t size, const float** expert_rows) {
  wait_for_earlier();
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= num_choices) return;
  const int expert = expert_idx[i], rank = expert / num_local_experts;
  expert_rows[i] =
      expert >= 0 && rank < num_ranks ? owners.of[rank].out + int64_t{owners.of[rank].row_of[i]} * size : nullptr;
}

}  // namespace kernel

void moe_permute(const MoePermuteArgs& a, int32_t* counts, const RowCopies& copies, bool only_copies, Stream stream) {
  const int64_t num_experts = a.expert_offsets.dim(0) - 1, size = a.x.row_size();
  CHECK(!a.sources.empty() && a.sources.size() <= size_t{kernel::kMaxRanks}, "{} ranks; at most {}", a.sources.size(),
        kernel::kMaxRanks);
  kernel::Sources sources = {.num_ranks = int(a.sources.size()), .top_k = int(a.sources[0].expert_idx.dim(1))};
  CHECK((!copies.fp8.data && !copies.bf16) ? !only_copies : size % kFp8Block == 0, "moe_permute: a copy of rows of {}",
        size);
  int64_t most = 0, all = 0;
  for (size_t i = 0; i < a.sources.size(); ++i) {
    const MoeSource& s = a.sources[i];
    const int64_t num = s.expert_idx.size();
    CHECK(s.expert_idx.dim(1) == sources.top_k && (num == 0 || s.x.row_size() == size),
          "moe_permute: rank {} has {} experts a token and rows of {}; rank 0 {} and {}", i, s.expert_idx.dim(1),
          s.x.row_size(), sources.top_k, size);
    CHECK(!a.scale || num == 0 || s.expert_weight, "moe_permute: rank {} gives no weights", i);
    sources.of[i] = {s.x.data, s.expert_idx.data, s.expert_weight.data, s.row_of.data, int(num)};
    most = std::max(most, num);
    all += num;
  }
  const cudaStream_t cuda = handle(stream);
  const int64_t shared = (kernel::kTileWarps + 1) * num_experts * int64_t(sizeof(uint32_t));
  if (all <= kernel::kFewChoices && shared <= (47 << 10)) {
    launch_early(kernel::moe_number_few, 1, kernel::kTile, size_t(shared), cuda, sources, int(a.expert_begin),
                 int(num_experts), a.expert_offsets.data);
  } else {
    kernel::moe_number<<<unsigned(num_experts), kernel::kThreads, 0, cuda>>>(sources, int(a.expert_begin), counts);
    CUDA_CHECK(cudaGetLastError());
    kernel::moe_offsets<<<1, kernel::kWarp, 0, cuda>>>(counts, int(num_experts), a.expert_offsets.data);
    CUDA_CHECK(cudaGetLastError());
  }
  if (most == 0) return;
  launch_early(kernel::moe_copy_rows, dim3(unsigned(most), unsigned(a.sources.size())), kernel::kThreads, 0, cuda,
               sources, int(a.expert_begin), int(num_experts), a.expert_offsets.data, int(size),
               only_copies ? nullptr : a.x.data, a.scale.data, copies);
}

void moe_locate(const MoeLocateArgs& a, Stream stream) {
  const int64_t num = a.expert_idx.size();
  CHECK(a.owners.size() <= size_t{kernel::kMaxRanks} && a.expert_rows.size() == num,
        "moe_locate: {} ranks, {} choices, {} rows", a.owners.size(), num, a.expert_rows.size());
  if (num == 0) return;
  kernel::Owners owners = {};
  std::copy(a.owners.begin(), a.owners.end(), owners.of);
  launch_early(kernel::moe_locate, blocks_for(num, 256), 256, 0, handle(stream), owners, a.expert_idx.data, int(num),
               int(a.owners.size()), int(a.num_local_experts), a.hidden_size, a.expert_rows.data);
}

}  // namespace moectl::cuda
