// What the instances of a deployment say of themselves now.
#pragma once

#include "cmd/deploy/state.h"

namespace moectl {

// Whether all instances are ready and the router finds them so. Asks the router.
bool requests_are_answered(const DeployState& state);

}  // namespace moectl
