// Signals between GPUs that address each other's memory: plain stores and release / acquire flags, nothing of the host
// in the loop.
//
// Barrier: one block, one thread per rank. Thread r stores this rank's generation to rank r's flags with release
// semantics at system scope, then waits until rank r's own store arrives. Kernels that precede in the stream are
// complete, and the fence orders what they wrote before the flag for every device. Flags only grow: a barrier may begin
// while a slow peer still reads the flags of the one before.
#include "kernels/cuda/comm/peer.h"

#include <algorithm>

#include "core/base/check.h"
#include "kernels/cuda/comm/signal.cuh"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda {
namespace kernel {
namespace {

struct Barrier {
  uint32_t* flags[kMaxPeers];
  int rank, num_ranks;
  uint32_t* generation;
  PeerWait wait;
  int32_t operation;
};

struct Rows {
  const float* of[kMaxPeers];
  int num;
};

__global__ void peer_barrier(const __grid_constant__ Barrier b) {
  __shared__ uint32_t next;
  if (threadIdx.x == 0) {
    next = ++*b.generation;
    b.wait.status->at = b.operation;
  }
  __syncthreads();
  const int peer = int(threadIdx.x);
  if (peer >= b.num_ranks || peer == b.rank || has_ended(b.wait)) return;
  __threadfence_system();
  store_release(b.flags[peer] + b.rank, next);
  wait_for_signal(b.flags[b.rank] + peer, next, b.wait, peer, b.operation);
}

constexpr int kSumThreads = 256;

__global__ void __launch_bounds__(kSumThreads) peer_sum(const __grid_constant__ Rows rows, int64_t size, float* out) {
  const int64_t i = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (i >= size) return;
  float sum = rows.of[0][i];
  for (int r = 1; r < rows.num; ++r) sum = __fadd_rn(sum, rows.of[r][i]);
  out[i] = sum;
}

__global__ void peer_mark(PeerStatus* status, uint32_t* num_marks, int32_t operation) {
  volatile PeerStatus* s = status;
  s->at = operation;
  __threadfence_system();
  s->marks = ++*num_marks;
}

}  // namespace
}  // namespace kernel

void peer_barrier(const PeerBarrierArgs& a, Stream stream) {
  CHECK(!a.flags.empty() && a.flags.size() <= size_t{kMaxPeers} && a.rank >= 0 && size_t(a.rank) < a.flags.size(),
        "a barrier of {} ranks, at most {}, called by rank {}", a.flags.size(), kMaxPeers, a.rank);
  kernel::Barrier b = {.rank = a.rank,
                       .num_ranks = int(a.flags.size()),
                       .generation = a.generation,
                       .wait = a.wait,
                       .operation = PeerOperation{PeerOperation::kBarrier}.code()};
  std::copy(a.flags.begin(), a.flags.end(), b.flags);
  const unsigned threads = unsigned(a.flags.size() + kernel::kWarp - 1) / kernel::kWarp * kernel::kWarp;
  kernel::peer_barrier<<<1, threads, 0, handle(stream)>>>(b);
  CUDA_CHECK(cudaGetLastError());
}

void peer_sum(const PeerSumArgs& a, Stream stream) {
  CHECK(!a.rows.empty() && a.rows.size() <= size_t{kMaxPeers}, "a sum over {} ranks, at most {}", a.rows.size(),
        kMaxPeers);
  if (a.out.size() == 0) return;
  kernel::Rows rows = {.num = int(a.rows.size())};
  std::copy(a.rows.begin(), a.rows.end(), rows.of);
  kernel::peer_sum<<<blocks_for(a.out.size(), kernel::kSumThreads), kernel::kSumThreads, 0, handle(stream)>>>(
      rows, a.out.size(), a.out.data);
  CUDA_CHECK(cudaGetLastError());
}

void peer_mark(const PeerMarkArgs& a, Stream stream) {
  kernel::peer_mark<<<1, 1, 0, handle(stream)>>>(a.status, a.num_marks, a.operation.code());
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace moectl::cuda
