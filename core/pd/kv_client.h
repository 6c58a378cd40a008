// RemotePrefillSource: the decode role's end of KV transfers. It asks prefill workers, in the request's order, for the
// pages that the engine lacks, and writes what arrives to these pages and nowhere else (docs/pd.md).
//
// Threads: one decides (starts attempts, times them out, calls `done`); each prefill worker in use has one that
// connects, reads and writes pages, and, while connected, one that sends. start() and cancel() never wait for the
// network.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "core/pd/kv_link.h"
#include "core/pd/prefill_source.h"

namespace moectl {

struct KvClientOptions {
  using Millis = std::chrono::milliseconds;
  std::string secret;  // of the cluster; must not be empty
  KvTimeouts timeouts;
  Millis attempt_timeout{60'000};                // one worker, from the request to its last block
  Millis total_timeout{180'000};                 // all workers
  Millis first_backoff{100}, max_backoff{2000};  // after a failed connection; requests meanwhile fail at once
  Millis idle_timeout{60'000};                   // a connection that nobody used for so long is closed
  int max_peers = 64;                            // prefill workers in use at a time
  int max_transfers = 256;                       // to one worker at a time
};

struct KvClientStats {
  int64_t num_active = 0;  // now
  int64_t num_done = 0, num_cancelled = 0, num_bytes = 0;
  // Failed attempts by cause: connect, handshake, closed (or silent), protocol (damaged or forbidden messages), refused
  // (by the worker), timeout, limit.
  std::map<std::string, int64_t> failures;
};

class RemotePrefillSource : public PrefillSource {
 public:
  // Throws Error{kBadConfig}: no secret.
  explicit RemotePrefillSource(KvClientOptions options);
  // Ends every connection in bounded time. Requests still under way are dropped as if cancelled.
  ~RemotePrefillSource() override;

  void attach(KvLayout layout, std::vector<KvPool> pools) override;
  void start(RemotePrefill request, std::function<void(RemotePrefillResult)> done) override;
  // Waits for a `done` of this request that is running right now, so call it without a lock that `done` takes.
  void cancel(uint64_t handle) override;
  KvClientStats stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moectl
