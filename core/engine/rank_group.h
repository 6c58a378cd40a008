// RankGroup: the ranks of an instance as one. A step is launched on all of them and has ended when it has on all; they
// stop together, and no memory of one is freed before. It fails when a rank does, and where steps run on devices of
// their own also when one shows no progress (the watchdog). It never blocks on a rank that hangs inside its driver.
//
// Scheduler thread only, but for num_layers_done().
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/engine/rank_handle.h"

namespace moectl {

// How long the oldest step in flight may go without progress on devices that execute by themselves, longer than waits
// for peers on these devices (kPeerTimeout). Progress: a layer whose work was issued to a device; a layer that ended
// there, in steps of many rows; the end of the step before. What legally takes long thus does not count as one
// piece: a prefill of thousands of rows at a long context (tens of seconds with portable kernels, a second per layer),
// or the issue of a step. What does count stays far below the limit: capturing and instantiating a CUDA graph, loading
// one kernel, cuBLASLt at its first use.
inline constexpr std::chrono::milliseconds kStepTimeout{20'000};

class RankGroup {
 public:
  // step_timeout: kStepTimeout; 0: no watchdog, for ranks whose steps run on the host, where a layer may take minutes
  // and the communicator bounds waits for peers.
  // num_groups: TP groups (dp_size), each of ranks that follow each other.
  RankGroup(std::vector<std::unique_ptr<RankHandle>> ranks, int num_groups, std::chrono::milliseconds step_timeout);
  // Stops all ranks, then frees them. Ranks that hang in their driver, and with them all that peers may access, are
  // left to the end of the process.
  ~RankGroup();
  RankGroup(const RankGroup&) = delete;

  // Throws Error{kBadConfig} with the cause when a rank could not be built.
  void wait_until_built();
  // All ranks of a TP group execute its plan.
  void launch(const StepPlan& plan);
  // By rank. Waits for the oldest launched step. Throws Error{kUnavailable} with the cause when a rank has failed or
  // the watchdog ends the step; the group is unusable then.
  std::vector<RankStepResult> wait();

  size_t size() const { return ranks_.size(); }
  int tp_size() const { return tp_size_; }
  const RankHandle& operator[](size_t rank) const { return *ranks_[rank]; }
  int64_t num_layers_done() const;  // of all ranks; any thread

 private:
  using Results = std::vector<std::optional<RankStepResult>>;

  bool take_results(Results& results);
  std::string failure_text(const Results& results) const;
  std::string stall_text(const Results& results, int num_slices) const;

  std::vector<std::unique_ptr<RankHandle>> ranks_;
  const int tp_size_;
  const bool watched_;
  const std::chrono::milliseconds slice_;  // waits are counted in these
  int64_t num_steps_ended_ = 0;
  bool has_failed_ = false;
};

}  // namespace moectl
