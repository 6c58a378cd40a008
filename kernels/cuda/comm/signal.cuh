// Signals between GPUs that address each other's memory: 32-bit numbers that only grow, stored with release and read
// with acquire semantics at system scope; and bounded waits for them.
#pragma once

#include "kernels/cuda/runtime/device.cuh"
#include "kernels/peer.h"

namespace moectl::cuda::kernel {

__device__ __forceinline__ void store_release(uint32_t* p, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
// Adds 1 and returns the value before; orders the caller's stores, and those it is ordered after, before it, and what
// follows after it.
__device__ __forceinline__ uint32_t arrive(uint32_t* p) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.sys.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(p) : "memory");
  return before;
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* p) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ __forceinline__ int64_t now_ns() {
  int64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

// Whether a wait of this rank ended without its signal, in this kernel or one before: its peers get no more signals,
// so none of them takes what it computes from now on for a result.
__device__ __forceinline__ bool has_ended(const PeerWait& w) {
  return *static_cast<const volatile uint32_t*>(w.ended) != 0;
}

// Waits until `*signal` of the caller's memory, which rank `peer` stores, has reached `value`. Signals may be 2^31
// apart. One thread; false: the wait ended without it.
__device__ __forceinline__ bool wait_for_signal(const uint32_t* signal, uint32_t value, const PeerWait& w, int peer,
                                                int32_t operation) {
  constexpr int kPollsPerCheck = 256;  // the status is host memory, across the bus
  for (const int64_t begin = now_ns();;) {
    for (int i = 0; i < kPollsPerCheck; ++i)
      if (int32_t(load_acquire(signal) - value) >= 0) return true;
    volatile PeerStatus* status = w.status;
    const bool late = now_ns() - begin > w.timeout_ns;
    if (!late && !status->aborted && !has_ended(w)) continue;
    if (late) {
      status->operation = operation;
      __threadfence_system();
      status->missing = 1 + peer;
      __threadfence_system();
    }
    *static_cast<volatile uint32_t*>(w.ended) = 1;
    return false;
  }
}

}  // namespace moectl::cuda::kernel
