// RankHandle: one rank of the instance as the scheduler thread sees it. It hides whether the rank is a thread of this
// process (rank_worker.h), another process or on another node: only plain data passes (step.h).
//
// Threads: the scheduler thread calls the members that build, launch, wait and stop; the others may be called from any
// thread once the rank is built.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "core/engine/step.h"
#include "core/kv/kv_pool.h"

namespace moectl {

class RankHandle {
 public:
  virtual ~RankHandle() = default;

  // Ranks of a group build together: start all, then wait for each. Its failure, if it could not be built.
  virtual std::optional<RankFailure> wait_until_built() = 0;
  // Returns at once. The rank executes plans in order, at most SchedulerConfig::max_steps_in_flight at a time; all
  // ranks of the instance get a plan in every step, since a step is collective, and ranks of a TP group the same one.
  virtual void launch(RankStepPlan plan) = 0;
  // The oldest launched step whose result was not taken yet: its result, or why the rank failed. nullopt: the step has
  // not ended within `limit`.
  virtual std::optional<RankStepResult> wait(std::chrono::milliseconds limit) = 0;
  // Launched steps are finished, and none is launched after it; then the rank's device has nothing left to do. Returns
  // at once.
  virtual void stop() = 0;
  // After stop(): whether that came within `limit`. Peers access each other's memory, so all ranks of a group have
  // stopped before one is destroyed.
  virtual bool wait_until_stopped(std::chrono::milliseconds limit) = 0;

  // The memory of this rank's KV pages (a part of its TP group's: pool_of_group). Valid as long as the handle.
  virtual KvPool kv_pool() const = 0;
  // Ends the waits of all ranks for each other; every step in flight fails.
  virtual void abort(const std::string& reason) = 0;
  virtual std::string name() const = 0;  // "rank 1 (GPU 3)"
  // Layers that the rank has issued or seen end, also within a step: whatever changes it is progress.
  virtual int64_t num_layers_done() const = 0;
  // How far its latest step is, for the message of a watchdog: "13 of 27 layers issued".
  virtual std::string activity() const = 0;
};

}  // namespace moectl
