// Preparing requests on the CPU pool: reading, rendering and tokenizing. Work of many bytes waits for its turn and
// uses one of the pool's two threads at a time: small requests do not wait behind large ones, and at most one large
// body (32 MB, the server's limit) is expanded in memory at a time. Runs in handlers' coroutines.
#pragma once

#include <memory>

#include "core/serving/instance.h"

namespace moectl {

// Waits until this request may be prepared; hold what it returns while the pool works on it (null: a small body needs
// no turn). Clients take turns. Throws Error{kResourceExhausted} when too many wait, Error{kCancelled} when the client
// goes away.
Task<std::unique_ptr<Admission::Ticket>> turn_to_prepare(Instance& instance, http::Exchange& exchange);

}  // namespace moectl
