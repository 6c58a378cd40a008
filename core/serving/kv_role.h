// The two ends of KV transfers as a serving process uses them: what the KV server needs of the engine, and what both
// ends count. Knows the instance; the KV connections themselves are kv_server.h and kv_client.h.
#pragma once

#include <memory>

#include "core/serving/instance.h"

namespace moectl {

// Prefill role, after the engine was made: listens on the KV port. Throws Error{kBadConfig} when it cannot.
std::unique_ptr<KvServer> start_kv_server(Instance& instance);

// Of whichever end the instance has.
KvTransferTotals transfer_totals(const Instance& instance);

}  // namespace moectl
