// One client request on its way through the router: read, queue, pick workers, attempt (attempt.h), retry. A coroutine
// of the data server's; nothing here blocks.
#pragma once

#include <string>

#include "router/attempt.h"
#include "router/context.h"

namespace moectl::router {

// `path` is the path of the API, without a prefix that a gateway put before it.
Task<void> forward(RouterContext& context, http::Exchange& exchange, std::string path, Forwarding forwarding);

}  // namespace moectl::router
