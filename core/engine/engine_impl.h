// The threads behind engine.h, over ranks that are started: Engine::create and tests assemble engines with it.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "core/engine/engine.h"
#include "core/engine/rank_handle.h"
#include "core/engine/scheduler.h"

namespace moectl {

// `ranks`: num_ranks of the scheduler times tp_size; those of a TP group follow each other (Parallelism).
// Waits until all ranks are built. Throws Error{kBadConfig} with the cause when one could not be. step_timeout:
// RankGroup.
std::unique_ptr<Engine> start_engine(ModelInfo info, SchedulerConfig scheduler,
                                     std::vector<std::unique_ptr<RankHandle>> ranks,
                                     std::shared_ptr<PrefillSource> source = {},
                                     std::chrono::milliseconds step_timeout = {});

}  // namespace moectl
