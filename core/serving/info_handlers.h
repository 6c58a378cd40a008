// Everything but generation: models, tokenising, health, metrics, administration. The routes of both ports are listed
// here and in the data port's case end up under the EAS prefix /api/predict/<service> too.
#pragma once

#include <string>
#include <vector>

#include "core/serving/instance.h"

namespace moectl {

// The data port: API and operations.
std::vector<Route> data_routes(Instance& instance);
// The operations port: operations, and what only an administrator may do.
std::vector<Route> ops_routes(Instance& instance);

}  // namespace moectl
