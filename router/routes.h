// The paths of the router: the API on the data port, operations on both, administration on the operations port.
#pragma once

#include <string>
#include <vector>

#include "router/context.h"

namespace moectl::router {

std::vector<Route> data_routes(RouterContext& context);
std::vector<Route> ops_routes(RouterContext& context);

// Empty: a request can be answered. Else why not.
std::string not_ready_reason(const RouterContext& context);

}  // namespace moectl::router
