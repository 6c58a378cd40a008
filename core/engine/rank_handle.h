// RankHandle: one rank of the instance as the scheduler thread sees it. It hides whether the rank is a thread of this
// process (rank_worker.h), another process or on another node: only plain data passes (step.h).
//
// Threads: the scheduler thread calls wait_until_built(), launch() and wait(); the other members may be called from any
// thread once the rank is built.
#pragma once

#include <cstdint>
#include <optional>

#include "core/engine/step.h"
#include "core/kv/kv_pool.h"

namespace moectl {

class RankHandle {
 public:
  virtual ~RankHandle() = default;
  // Launched steps are finished; none is launched after it. All ranks finish before one is destroyed, since peers read
  // each other's memory.
  virtual void finish() = 0;

  // Ranks of a group build together: start all, then wait for each. Its failure, if it could not be built.
  virtual std::optional<RankFailure> wait_until_built() = 0;
  // Returns at once. The rank executes plans in order, at most SchedulerConfig::max_steps_in_flight at a time; all
  // ranks of the instance get every plan, since a step is collective.
  virtual void launch(RankStepPlan plan) = 0;
  // The oldest launched step that was not waited for has ended: its result, or why the rank failed.
  virtual RankStepResult wait() = 0;

  // The memory of the rank's KV pages. Valid as long as the handle.
  virtual KvPool kv_pool() const = 0;
  // Layers computed so far, also within a step: a sign of progress.
  virtual int64_t num_layers_done() const = 0;
};

}  // namespace moectl
