// MemoryPlan: what a rank will take of its GPU's memory, made before anything is loaded, so that what cannot fit is
// refused at once and with its numbers. Pure.
#pragma once

#include <cstdint>
#include <string>

namespace moectl {

struct MemoryPlan {
  std::string rank;                         // "rank 1 (GPU 3)"; empty: the only one
  int num_ranks = 1;                        // that share --kv-cache-memory-bytes equally
  int64_t total_bytes = 0, free_bytes = 0;  // of the device, before loading
  double utilization = 0.9;                 // fraction of `total_bytes` that may be used (--gpu-memory-utilization)
  int64_t weight_bytes = 0;
  int64_t workspace_bytes = 0;  // activations, expert dispatch, scratch of the kernels
  int64_t graph_bytes = 0;      // captured decode steps; an estimate
  int64_t kv_bytes = 0;         // of this rank; 0: what `utilization` leaves

  // Fills kv_bytes (in whole pages) when it is 0. Throws Error{kBadConfig} with all the numbers when the cache would
  // have less than `min_kv_bytes`, or when the sum is more than is free.
  void complete(int64_t page_bytes, int64_t min_kv_bytes);
  // "rank 1 (GPU 3): weights 16.20 GB, activations and scratch 1.10 GB, ...; 126.9 GB of 140.1 GB free"
  std::string text() const;
};

}  // namespace moectl
