#include "core/engine/memory_plan.h"

#include <fmt/core.h>

#include <algorithm>

#include "core/base/error.h"

namespace moectl {
namespace {

double gb(int64_t bytes) {
  return double(bytes) / 1e9;
}

}  // namespace

void MemoryPlan::complete(int64_t page_bytes, int64_t min_kv_bytes) {
  const int64_t fixed = weight_bytes + workspace_bytes + graph_bytes;
  const int64_t usable = std::min(free_bytes, int64_t(double(total_bytes) * utilization));
  if (kv_bytes > 0 && kv_bytes < min_kv_bytes)
    throw Error(
        Code::kBadConfig,
        fmt::format("--kv-cache-memory-bytes {} is less than one sequence of --max-model-len needs; give at least "
                    "{} bytes or a smaller --max-model-len",
                    kv_bytes * num_ranks, min_kv_bytes * num_ranks));
  if (kv_bytes == 0) kv_bytes = std::max<int64_t>(usable - fixed, 0) / page_bytes * page_bytes;
  if (kv_bytes < min_kv_bytes)
    throw Error(
        Code::kBadConfig,
        fmt::format("the GPU's memory does not suffice: {}; --gpu-memory-utilization {:.2f} allows {:.2f} GB, and one "
                    "sequence of --max-model-len needs {:.2f} GB of KV cache. Give a smaller --max-model-len, "
                    "--max-num-batched-tokens or checkpoint, a higher --gpu-memory-utilization, or free the GPU",
                    text(), utilization, gb(usable), gb(min_kv_bytes)));
  if (fixed + kv_bytes > free_bytes)
    throw Error(Code::kBadConfig,
                fmt::format("--kv-cache-memory-bytes does not fit on the GPU: {}; give at most {} bytes, or leave it "
                            "away and --gpu-memory-utilization decides",
                            text(), std::max<int64_t>(free_bytes - fixed, 0) * num_ranks));
}

std::string MemoryPlan::text() const {
  return fmt::format(
      "{}{}weights {:.2f} GB, activations and scratch {:.2f} GB, CUDA graphs {:.2f} GB, KV cache {:.2f} GB; {:.2f} GB "
      "of "
      "{:.2f} GB free",
      rank, rank.empty() ? "" : ": ", gb(weight_bytes), gb(workspace_bytes), gb(graph_bytes), gb(kv_bytes),
      gb(free_bytes), gb(total_bytes));
}

}  // namespace moectl
