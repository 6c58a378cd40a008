// PrefillSource: how the decode role gets keys and values that another worker computes. The engine reserves pages and says what it
// lacks; the source fills them and reports once; the engine runs the last prompt token itself, so sampling state lives in one place
// and no hidden state travels. Whatever goes wrong ends in a local prefill, never in another request's text.
//
// The other side of the same coin, PrefillJob, is what the prefill role's engine computes for a peer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace moectl {

// The KV memory of one rank as the transfer sees it: `layer_bytes` of a page lie together, one page after the other.
struct KvPool {
  int num_layers = 0;               // MTP layers included
  int64_t num_pages = 0;
  int page_size = 0;                // tokens
  int64_t page_bytes = 0;           // of one layer
  std::vector<std::byte*> layers;   // [num_layers]: page p of layer l is layers[l] + p * page_bytes
  std::byte* page(int layer, int64_t page_id) const { return layers[size_t(layer)] + page_id * page_bytes; }
};

// What both sides must agree on before a byte moves. Compared field by field; a difference refuses the connection by name.
struct KvLayout {
  std::string model_hash;           // of config.json, all tensor headers and a sample of each tensor's bytes
  std::string numerics_id;          // instruction-set path, kernel version, KV dtype
  int num_layers = 0, page_size = 0;
  int64_t page_bytes = 0;
  bool operator==(const KvLayout&) const = default;
};

// Pages of one request, all on one rank. Entry i holds tokens [(first_page + i) * page_size, ...).
struct KvPages {
  int rank = 0;
  int first_page = 0;               // index within the prompt of pages[0]
  std::vector<int32_t> pages;       // page ids of the rank's pool
  std::vector<uint32_t> epochs;     // of each page when it was reserved: a page whose epoch has moved on is not ours
};

struct RemotePrefill {
  uint64_t handle = 0;              // the engine's
  std::string request_id;           // for logs
  std::vector<std::string> workers; // KV endpoints "host:port" in order of preference, 1 to 3
  std::vector<int32_t> prompt_ids;  // the whole prompt
  int num_tokens = 0;               // KV of tokens [first_page * page_size, num_tokens) is wanted; num_tokens = prompt - 1
  std::string cache_salt;
  KvPages into;
};

struct RemotePrefillResult {
  bool ok = false;                  // every wanted page was written and checked
  std::string worker;               // who did it, or who was tried last
  std::string error;                // when not ok: why, for the log and the timeline
  int64_t num_bytes = 0;
  int num_cached_tokens = 0;        // of the worker's own prefix cache
  double queue_seconds = 0, compute_seconds = 0, transfer_seconds = 0;  // on the worker; last: from its first to its last block
};

class PrefillSource {
 public:
  virtual ~PrefillSource() = default;
  // Called once before start(): where pages live. `pools` by rank; they outlive the source's last write.
  virtual void attach(KvLayout layout, std::vector<KvPool> pools) = 0;
  // Begins; never blocks. `done` is called exactly once, from any thread, unless cancel() returned before.
  virtual void start(RemotePrefill request, std::function<void(RemotePrefillResult)> done) = 0;
  // When it returns, nothing writes to the request's pages any more and `done` will not be called. Unknown handles are ignored.
  virtual void cancel(uint64_t handle) = 0;
};

// Prefill role: compute the KV of a prompt for a peer. The engine calls `progress` on its scheduler thread as pages are filled; the
// pages stay valid and unchanged until Engine::release_prefill(handle).
struct PrefillJob {
  std::string request_id;
  std::vector<int32_t> prompt_ids;  // the whole prompt: the MTP layer's KV at position i needs token i + 1
  int num_tokens = 0;               // compute KV of tokens [0, num_tokens)
  std::string cache_salt;
};

struct PrefillProgress {
  KvPages pages;                    // set once, in the first call: all pages of the job, first_page = 0
  int num_tokens_ready = 0;         // KV of tokens [0, num_tokens_ready) is final in every layer
  int num_cached_tokens = 0;
  double queue_seconds = 0, compute_seconds = 0;  // so far
  bool finished = false;            // the last call: all ready, or `error`
  std::string error;
};

using PrefillSink = std::function<void(const PrefillProgress&)>;

}  // namespace moectl
