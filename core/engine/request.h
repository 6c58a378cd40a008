// Sequence: one request inside the engine, from submit to its last output. Plain data; the scheduler changes it when no
// rank begins or ends a step, rank threads read it when they do.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "core/engine/engine.h"
#include "core/kv/prefix_cache.h"

namespace moectl {

enum class Phase {
  kWaiting,        // in the queue, without pages
  kRunning,        // on a rank, computed step by step
  kRemotePrefill,  // on a rank, its reserved pages are filled by another worker; no step touches them
  kHeld,           // a prefill job that is over; its pages wait for their release
  kEnded,          // its last output went out; only steps in flight still know it, and what they bring is dropped
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
  int sample_row = -1;        // the newest of them: its row among the logits of its step
  std::vector<PageId> pages;  // page i holds tokens [i * page_size, (i + 1) * page_size)
  PrefixCursor cursor;

  // A prefill job computes the KV of its first tokens and nothing else; all its pages are reserved when it is admitted,
  // because a peer reads them until it says otherwise.
  int job_tokens = 0;      // 0: an ordinary request
  double job_seconds = 0;  // from its admission to the last step
  std::chrono::steady_clock::time_point submitted, admitted;

  uint64_t remote = 0;         // the attempt under way, in Phase::kRemotePrefill
  bool remote_failed = false;  // from now on computed here
  PrefillStats prefill;
  int num_mtp_computed = 0;  // tokens, from the first on, whose KV of the MTP layer is in `pages`

  bool admitted_before = false;                        // a preemption sends it back to the queue
  bool reported = false;                               // prompt facts went out with the first output
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
