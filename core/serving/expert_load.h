// The experts' load in a worker's metrics: read from the engine for a scrape of /metrics or a request that is debugged,
// and not otherwise.
#pragma once

#include <functional>

#include "core/http/async.h"
#include "core/serving/instance.h"

namespace moectl {

// Returns at once; Instance::metrics show the load a step later, and `done` is called then, on the engine's thread.
// While an earlier read is under way nothing happens.
void read_expert_load(Instance& instance, std::function<void()> done = {});

// Waits for it, but not for a long step: then the metrics show the load of an earlier read.
Task<void> refresh_expert_load(Instance& instance);

}  // namespace moectl
