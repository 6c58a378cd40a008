// Sequence: one request inside the engine, from submit to its last output. Plain data; the scheduler changes it between
// steps, rank threads read it during a step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/engine/engine.h"
#include "core/kv/prefix_cache.h"

namespace moectl {

enum class Phase { kWaiting, kRunning };

struct Sequence {
  uint64_t handle = 0;  // grows with arrival: the smaller, the older
  GenerateRequest request;
  std::vector<int32_t> token_ids;  // prompt, then output
  int num_prompt_tokens = 0;

  Phase phase = Phase::kWaiting;
  int rank = -1;              // while running
  int num_computed = 0;       // tokens whose KV is in `pages`
  std::vector<PageId> pages;  // page i holds tokens [i * page_size, (i + 1) * page_size)
  PrefixCursor cursor;

  bool admitted_before = false;                        // a preemption sends it back to the queue
  bool reported = false;                               // prompt facts went out with the first output
  int num_cached_tokens = 0;                           // at the first admission
  std::vector<GenerateOutput::Token> prompt_logprobs;  // of prompt tokens 1 ..., kept through a preemption

  int num_tokens() const { return int(token_ids.size()); }
  int num_output_tokens() const { return num_tokens() - num_prompt_tokens; }
  int num_remaining() const { return num_tokens() - num_computed; }
  bool wants_prompt_logprobs() const { return request.sampling.prompt_logprobs; }
  std::span<const int32_t> ids() const { return token_ids; }
};

}  // namespace moectl
