// One client request on its way through the router: read, queue, pick workers, forward, retry, stream back. A coroutine
// of the data server's; nothing here blocks.
#pragma once

#include <string>

#include "router/context.h"

namespace moectl::router {

enum class Forwarding {
  kGenerate,  // a JSON body; signed headers go along, with the prefill workers
  kBody,      // a JSON body
  kPlain,     // no body
};

// `path` is the path of the API, without a prefix that a gateway put before it.
Task<void> forward(RouterContext& context, http::Exchange& exchange, std::string path, Forwarding forwarding);

}  // namespace moectl::router
