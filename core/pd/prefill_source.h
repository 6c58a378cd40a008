// PrefillSource: how the decode role gets keys and values that another worker computes. The engine reserves pages and
// says what it lacks; the source fills them and reports once; the engine runs the last prompt token itself, so sampling
// state lives in one place and no hidden state travels. Whatever goes wrong ends in a local prefill, never in another
// request's text.
//
// The other side of the same coin, PrefillJob, is what the prefill role's engine computes for a peer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/kv/kv_pool.h"

namespace moectl {

struct RemotePrefill {
  uint64_t handle = 0;               // the engine's, of this attempt: never used twice
  std::string request_id;            // for logs
  std::vector<std::string> workers;  // KV endpoints "host:port" in order of preference, 1 to 3
  std::vector<int32_t> prompt_ids;   // the whole prompt
  int num_tokens = 0;  // KV of tokens [first_page * page_size, num_tokens) is wanted; num_tokens = prompt - 1
  std::string cache_salt;
  KvPages into;
};

struct RemotePrefillResult {
  bool ok = false;     // every wanted page was written and checked
  std::string worker;  // who did it, or who was tried last
  std::string error;   // when not ok: why, for the log and the timeline
  int64_t num_bytes = 0;
  int num_cached_tokens = 0;  // of the worker's own prefix cache
  double queue_seconds = 0, compute_seconds = 0,
         transfer_seconds = 0;  // on the worker; last: from its first to its last block
};

class PrefillSource {
 public:
  virtual ~PrefillSource() = default;
  // Called once before start(): where pages live. `pools` by data-parallel rank; they outlive the source's last write.
  virtual void attach(KvLayout layout, std::vector<KvPool> pools) = 0;
  // Begins; never blocks. `done` is called exactly once, from any thread, unless cancel() returned before.
  virtual void start(RemotePrefill request, std::function<void(RemotePrefillResult)> done) = 0;
  // When it returns, nothing writes to the request's pages any more and `done` will not be called. Unknown handles are
  // ignored. Must not throw: the engine has no other way to get its pages back.
  virtual void cancel(uint64_t handle) = 0;
};

// Prefill role: compute the KV of a prompt for a peer. The engine calls `progress` on its scheduler thread as pages are
// filled; the pages stay valid and unchanged until Engine::release_prefill(handle).
struct PrefillJob {
  std::string request_id;
  std::vector<int32_t> prompt_ids;  // the whole prompt: the MTP layer's KV at position i needs token i + 1
  int num_tokens = 0;               // compute KV of tokens [0, num_tokens); at most prompt - 1
  std::string cache_salt;
};

struct PrefillProgress {
  KvPages pages;             // set once, in the first call: all pages of the job, first_page = 0
  int num_tokens_ready = 0;  // KV of tokens [0, num_tokens_ready) is final in every layer
  int num_cached_tokens = 0;
  double queue_seconds = 0, compute_seconds = 0;  // so far
  bool finished = false;                          // the last call: all ready, or `error`
  std::string error;
};

using PrefillSink = std::function<void(const PrefillProgress&)>;

}  // namespace moectl
