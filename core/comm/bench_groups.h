// The measurements of bench_comm() with ranks and communicators that the caller made: one thread per rank, and one
// report of what they measured.
#pragma once

#include <memory>
#include <vector>

#include "core/comm/bench_comm.h"
#include "core/comm/communicator.h"

namespace moectl {

// What all ranks have in common.
struct CommBenchSetup {
  CommBenchOptions options;
  DType dtype = DType::kF32, results_dtype = DType::kF32;
  ExpertPlacement placement;
  std::vector<int> ordinals;  // of the ranks' devices; zeros on the CPU
  bool on_gpu = false;
  std::vector<Collectives> collectives;  // that are measured

  int64_t max_tokens() const;
  int64_t token_bytes() const;  // of a row on the wire
  int64_t result_bytes() const;
  bool measures(Collectives one) const;
  ExpertDispatchConfig dispatch_config(Collectives one, bool deterministic) const;
};

// Communicators of all ranks over one implementation.
struct CommBenchGroup {
  Collectives collectives = Collectives::kLocal;
  DType wire = DType::kF32;  // LocalGroupOptions; bf16: only one-shot all-reduces are measured
  std::vector<std::unique_ptr<Communicator>> by_rank;
};

// `groups`: not empty. Barriers of the first one precede every timed operation; the link is measured unless it is NCCL.
// Throws as bench_comm() does.
CommReport measure_groups(std::shared_ptr<const CommBenchSetup> setup, const std::vector<std::unique_ptr<Ops>>& ops,
                          const std::vector<CommBenchGroup>& groups);

}  // namespace moectl
