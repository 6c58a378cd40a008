// One-shot all-reduce of few rows: every rank stores its values into a slot of every peer, and adds the slots in rank
// order. One kernel. Block b of a rank exchanges with block b of every other rank only, with signals of their own, so
// there is no step in which a whole GPU waits.
//
// Slots exist twice: a rank stores for all-reduce g + 2 after it has seen the signals of g + 1, which its peers sent
// after they had read the slots of g.
#include <algorithm>

#include "core/base/check.h"
#include "kernels/cuda/comm/peer.h"
#include "kernels/cuda/comm/signal.cuh"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda {
namespace kernel {
namespace {

constexpr int kThreads = 512;

struct AllReduce {
  uint32_t* flags[kMaxPeers];   // by rank: [kAllReduceBlocks, number of ranks]
  std::byte* slots[kMaxPeers];  // by rank: [2, number of ranks, slot_bytes]
  uint32_t* state;              // [2]: all-reduces so far, blocks of this one that are done
  PeerWait wait;
  int64_t slot_bytes, num_units;
  float* data;
  int32_t operation;
  int rank, num_ranks;
};

// Eight values: two float4s, or one unit of 16 bytes in bf16.
struct Values {
  float x[8];
};
__device__ __forceinline__ Values load(const float* p) {
  const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}
__device__ __forceinline__ void store(float* p, const Values& v) {
  reinterpret_cast<float4*>(p)[0] = {v.x[0], v.x[1], v.x[2], v.x[3]};
  reinterpret_cast<float4*>(p)[1] = {v.x[4], v.x[5], v.x[6], v.x[7]};
}
__device__ __forceinline__ Values load(const __nv_bfloat16* p) {
  const uint4 u = *reinterpret_cast<const uint4*>(p);
  const uint32_t words[4] = {u.x, u.y, u.z, u.w};
  Values v;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v.x[2 * i] = __uint_as_float(words[i] << 16);
    v.x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
  return v;
}
__device__ __forceinline__ void store(__nv_bfloat16* p, const Values& v) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(v.x[2 * i], v.x[2 * i + 1]);
    words[i] = reinterpret_cast<const uint32_t&>(two);
  }
  *reinterpret_cast<uint4*>(p) = {words[0], words[1], words[2], words[3]};
}

// T: of the values on the wire. Every rank's own values are rounded to it, too: all ranks get the same bits.
template <class T>
__global__ void __launch_bounds__(kThreads) all_reduce(const __grid_constant__ AllReduce a) {
  wait_for_earlier_only();
  const uint32_t number = *static_cast<const volatile uint32_t*>(a.state) + 1;
  if (blockIdx.x == 0 && threadIdx.x == 0) *static_cast<volatile int32_t*>(&a.wait.status->at) = a.operation;
  const int64_t half = (number & 1) * a.num_ranks * a.slot_bytes;
  const auto slot = [&](int at, int from) { return reinterpret_cast<T*>(a.slots[at] + half + from * a.slot_bytes); };
  const int64_t stride = int64_t{gridDim.x} * kThreads, first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (int64_t i = first; i < a.num_units; i += stride) {
    const Values v = load(a.data + i * 8);
    for (int r = 0; r < a.num_ranks; ++r) store(slot(r, a.rank) + i * 8, v);
  }
  __syncthreads();
  const int peer = int(threadIdx.x);
  if (peer < a.num_ranks && peer != a.rank) {
    const int64_t flags = int64_t{blockIdx.x} * a.num_ranks;
    if (!has_ended(a.wait)) {
      __threadfence_system();
      store_release(a.flags[peer] + flags + a.rank, number);
    }
    wait_for_signal(a.flags[a.rank] + flags + peer, number, a.wait, peer, a.operation);
  }
  __syncthreads();
  for (int64_t i = first; i < a.num_units; i += stride) {
    Values sum = load(slot(a.rank, 0) + i * 8);
    for (int r = 1; r < a.num_ranks; ++r) {
      const Values v = load(slot(a.rank, r) + i * 8);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum.x[j] = __fadd_rn(sum.x[j], v.x[j]);
    }
    store(a.data + i * 8, sum);
  }
  if (threadIdx.x == 0 && atomicAdd(a.state + 1, 1) == gridDim.x - 1) {
    a.state[1] = 0;
    a.state[0] = number;
  }
  let_next_launch();
}

}  // namespace
}  // namespace kernel

void peer_all_reduce(const PeerAllReduceArgs& a, Stream stream) {
  const size_t num_ranks = a.flags.size();
  const int64_t bytes = a.data.size() * dtype_bytes(a.wire);
  CHECK(
      num_ranks <= size_t{kMaxPeers} && a.slots.size() == num_ranks && bytes <= a.slot_bytes && a.data.size() % 8 == 0,
      "all_reduce of {} values over {} ranks, {} slots of {} bytes", a.data.size(), num_ranks, a.slots.size(),
      a.slot_bytes);
  if (a.data.size() == 0) return;
  kernel::AllReduce k = {.state = a.state,
                         .wait = a.wait,
                         .slot_bytes = a.slot_bytes,
                         .num_units = a.data.size() / 8,
                         .data = a.data.data,
                         .operation = PeerOperation{PeerOperation::kAllReduce, a.layer}.code(),
                         .rank = a.rank,
                         .num_ranks = int(num_ranks)};
  std::ranges::copy(a.flags, k.flags);
  std::ranges::copy(a.slots, k.slots);
  const unsigned blocks =
      unsigned(std::clamp<int64_t>((k.num_units + kernel::kThreads - 1) / kernel::kThreads, 1, kAllReduceBlocks));
  const auto launch = [&](auto kernel) { launch_early(kernel, blocks, kernel::kThreads, 0, handle(stream), k); };
  if (a.wire == DType::kBF16)
    launch(kernel::all_reduce<__nv_bfloat16>);
  else
    launch(kernel::all_reduce<float>);
}

}  // namespace moectl::cuda
