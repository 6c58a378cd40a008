// Signals between GPUs that address each other's memory: 32-bit numbers that only grow, stored with release and read
// with acquire semantics at system scope; and bounded waits for them.
#pragma once

#include "kernels/cuda/runtime/device.cuh"
#include "kernels/peer.h"

namespace moectl::cuda::kernel {

__device__ __forceinline__ void store_release(uint32_t* p, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
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

// Whether the group still works: after an abort or a timeout nothing waits any more.
__device__ __forceinline__ bool is_alive(const PeerWait& w) {
  const volatile PeerStatus* status = w.status;
  return !status->aborted && !status->missing;
}

// Waits until `*signal` of the caller's memory, which rank `peer` stores, has reached `value`. Signals may be 2^31
// apart. One thread; false: the wait ended without it.
__device__ __forceinline__ bool wait_for_signal(const uint32_t* signal, uint32_t value, const PeerWait& w, int peer,
                                                int32_t operation) {
  constexpr int kPollsPerCheck = 256;  // the status is host memory, across the bus
  for (const int64_t begin = now_ns();;) {
    for (int i = 0; i < kPollsPerCheck; ++i)
      if (int32_t(load_acquire(signal) - value) >= 0) return true;
    if (!is_alive(w)) return false;
    if (now_ns() - begin > w.timeout_ns) {
      volatile PeerStatus* status = w.status;
      status->operation = operation;
      __threadfence_system();
      status->missing = 1 + peer;
      __threadfence_system();
      return false;
    }
  }
}

}  // namespace moectl::cuda::kernel
