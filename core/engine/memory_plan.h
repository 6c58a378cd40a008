// MemoryPlan: what a rank will take of its GPU's memory, made before anything is loaded, so that what cannot fit is
// refused with its numbers and not found out minutes later. Pure.
#pragma once

#include <cstdint>
#include <string>

namespace moectl {

struct MemoryPlan {
  int64_t total_bytes = 0, free_bytes = 0;  // of the device, before loading
  double utilization = 0.9;                 // the share of `total_bytes` that may be used (--gpu-memory-utilization)
  int64_t weight_bytes = 0;
  int64_t workspace_bytes = 0;  // activations, exchange, scratch of the kernels
  int64_t graph_bytes = 0;      // recorded decode steps; an estimate
  int64_t kv_bytes = 0;         // given, or what the share leaves

  // Fills kv_bytes (in whole pages) when it is 0. Throws Error{kBadConfig} with all the numbers when the cache would
  // have less than `min_kv_bytes`, or when the sum is more than is free.
  void complete(int64_t page_bytes, int64_t min_kv_bytes);
  // "weights 16.20 GB, activations and scratch 1.10 GB, ...; 126.9 GB of 140.1 GB free"
  std::string text() const;
};

}  // namespace moectl
