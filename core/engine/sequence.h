// Sequence: one request inside the engine, from submit to its last output. Owned by the scheduler; scheduler thread
// only (ranks keep mirrors of what they need, step.h).
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "core/engine/types.h"
#include "core/kv/prefix_cache.h"

namespace moectl {

enum class Phase {
  kWaiting,        // in the queue, without pages
  kRunning,        // on a rank, computed step by step
  kRemotePrefill,  // on a rank; another worker fills its reserved pages and no step touches them
  kParked,         // a prefill job that is finished or failed; it keeps its pages until they are released
};

struct Sequence {
  uint64_t handle = 0;  // grows with arrival: the smaller, the older
  GenerateRequest request;
  std::vector<int32_t> token_ids;  // prompt, then output
  int num_prompt_tokens = 0;

  Phase phase = Phase::kWaiting;
  int rank = -1;              // while running
  int num_computed = 0;       // tokens whose KV is in `pages` when all steps planned so far are done
  int num_in_flight = 0;      // chunks of steps in flight
  int num_pending = 0;        // of these, chunks that sample: tokens after token_ids that are not known yet
  int sample_row = -1;        // of the newest pending token: its row among the logits of its step
  std::vector<PageId> pages;  // page i holds tokens [i * page_size, (i + 1) * page_size)
  PrefixCursor cursor;

  // What the rank's mirror holds after the last plan (step.h).
  bool has_mirror = false;
  int num_pages_sent = 0, num_outputs_sent = 0;

  // A prefill job computes the KV of its first tokens and samples nothing; all its pages are reserved at admission,
  // because a peer reads them until release_job().
  int job_tokens = 0;      // 0: an ordinary request
  double job_seconds = 0;  // from its admission to the last step
  std::chrono::steady_clock::time_point submitted, admitted;

  uint64_t remote = 0;         // the remote prefill under way, in Phase::kRemotePrefill
  bool remote_failed = false;  // from now on computed by this engine
  PrefillStats prefill;
  int num_mtp_computed = 0;  // tokens, from the first on, whose KV of the MTP layer is in `pages`

  bool admitted_before = false;                        // a preemption sends it back to the queue
  bool reported = false;                               // its prompt stats were emitted with the first output
  int num_cached_tokens = 0;                           // at the first admission
  std::vector<GenerateOutput::Token> prompt_logprobs;  // of prompt tokens 1 ..., kept through a preemption

  int num_tokens() const { return int(token_ids.size()); }
  int num_output_tokens() const { return num_tokens() - num_prompt_tokens; }
  bool is_job() const { return job_tokens > 0; }
  int num_remaining() const { return (is_job() ? job_tokens : num_tokens() + num_pending) - num_computed; }
  // An ordinary request computes at least its last token itself, for the logits.
  int num_cacheable() const { return is_job() ? job_tokens : num_tokens() - 1; }
  bool wants_prompt_logprobs() const { return request.sampling.prompt_logprobs; }
  std::span<const int32_t> ids() const { return token_ids; }
};

}  // namespace moectl
