// The supervisor of a deployment: a process that owns those of the instances. The deploy commands read the state it
// writes (state.h).
#pragma once

#include <string>

#include "cmd/deploy/plan.h"

namespace moectl {

// Runs the deployment until SIGTERM or SIGINT ends it in order, or a second one at once. Called in a process of
// its own that holds the lock of the folder. Returns the exit status.
int supervise(const DeployPlan& plan, const std::string& folder, const std::string& program);

}  // namespace moectl
