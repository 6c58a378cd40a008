// KvServer: the prefill role's end of KV transfers. It accepts decode workers on the KV port, asks the engine for the
// KV of their prompts and streams pages from the pool as they become final (docs/pd.md).
//
// Threads: one accepts; each connection has one that reads and, once the peer has proved that it knows the secret, one
// that sends. A decode worker that reads slowly blocks the sender of its own connection only, until it counts as dead.
// Nothing is queued but short messages: blocks go from the pool's pages to the socket.
//
// Unauthenticated peers have a budget of their own and never take the place of an authenticated one: when it is used
// up, a new connection evicts the oldest unauthenticated one, so silent connections do not lock out others.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/pd/kv_link.h"
#include "core/pd/prefill_source.h"

namespace moectl {

// What the server needs of an engine. All of it may be called from any thread.
struct KvProducer {
  // Begins a job, or throws Error (its message goes to the peer). Never blocks on a step.
  std::function<uint64_t(PrefillJob, PrefillSink)> prefill;
  // Stop computing. Called before release() when the job has not finished.
  std::function<void(uint64_t handle)> cancel;
  // Pages may be used for something else. Called exactly once for every handle, finished or not.
  std::function<void(uint64_t handle)> release;
  std::function<KvLayout()> layout;
  std::function<std::vector<KvPool>()> pools;  // by rank; they outlive the server
};

struct KvServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;              // 0: picks one
  std::string secret;             // of the cluster; must not be empty
  int64_t max_prompt_tokens = 0;  // the model's max_model_len
  int max_connections = 64;       // authenticated peers
  int max_unauthenticated = 32;   // connections in their handshake
  int max_transfers = 256;        // all connections together
  KvTimeouts timeouts;
};

struct KvServerStats {
  int64_t num_connections = 0, num_active = 0;  // now
  int64_t num_done = 0, num_failed = 0,
          num_cancelled = 0;      // transfers; failed: the engine's errors, refusals, lost peers
  int64_t num_refused_peers = 0;  // handshakes that failed or were evicted
  int64_t num_bytes = 0;          // of KV sent
};

class KvServer {
 public:
  // Listens and serves. Throws Error{kBadConfig}: no secret, or the address cannot be had.
  KvServer(KvProducer producer, KvServerOptions options);
  ~KvServer();  // stop()

  uint16_t port() const;
  // Closes every connection, releases every job and joins the threads. Call it before the engine goes.
  void stop();
  KvServerStats stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moectl
