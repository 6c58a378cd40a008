// --workers-file FILE of the router: which workers there are, as YAML or JSON.
#pragma once

#include <string>
#include <vector>

#include "router/worker.h"

namespace moectl {

// A list of entries `{role: prefill|decode, url: http://HOST:PORT}`. Throws Error{kNotFound, kBadData} naming file and
// line.
std::vector<router::WorkerAddress> read_workers_file(const std::string& path);

}  // namespace moectl
