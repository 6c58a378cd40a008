// The engine's vocabulary: a request, its sampling parameters, the increments of its output, statistics. Plain data
// that servers and the engine's own parts share; the interface itself is engine.h.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace moectl {

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  int top_k = 0;             // 0: off
  float top_p = 1.0f, min_p = 0.0f;
  uint64_t seed = 0;  // output token i draws from counter (seed, i); callers pick one when none given
  float presence_penalty = 0.0f, frequency_penalty = 0.0f, repetition_penalty = 1.0f;
  std::vector<std::pair<int32_t, float>> logit_bias;
  int max_tokens = 16, min_tokens = 0;
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;  // end the answer like eos; the token is part of the output ids
  int num_logprobs = -1;                // -1: none; 0: of the chosen token; k: also the k best (raw model, before
                                        // penalties, bias and temperature), k <= 20
  bool prompt_logprobs = false;         // logprobs of prompt tokens 1..n-1 too; such a prompt skips the prefix cache
  bool operator==(const SamplingParams&) const = default;
};

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0.0f;
  bool operator==(const TokenLogprob&) const = default;
};

struct GenerateRequest {
  std::string id;                   // unique among running requests; for logs
  std::vector<int32_t> prompt_ids;  // 1 .. max_model_len - 1 ids, each in [0, vocab_size)
  SamplingParams sampling;
  std::string cache_salt;  // prefixes are shared only between equal salts
  std::optional<std::chrono::steady_clock::time_point> deadline;
  // KV endpoints that may compute the prompt, best first; empty: it is computed by this engine.
  std::vector<std::string> prefill_workers;
};

// How a prompt's KV was obtained, for the timeline.
struct PrefillStats {
  std::string worker;            // the prefill worker that computed it; empty: this engine
  std::string local_reason;      // why this engine: "aggregated", "no prefill worker", "short prompt", ...
  int64_t kv_bytes = 0;          // received
  int remote_cached_tokens = 0;  // hits in the prefill worker's own prefix cache
  double queue_seconds = 0;      // in this engine, from submit to admission on a rank
  double remote_queue_seconds = 0, remote_compute_seconds = 0, transfer_seconds = 0;
};

enum class FinishReason {
  kNone,
  kStop,
  kLength,
  kCancelled,
  kDeadline,  // GenerateRequest::deadline passed in the queue or during a remote prefill
  kError,
};

// One increment of an answer. The first carries prompt stats; the last has finish != kNone.
struct GenerateOutput {
  struct Token {
    int32_t id = 0;
    float logprob = 0.0f;           // valid when num_logprobs >= 0
    std::vector<TokenLogprob> top;  // best first
    bool operator==(const Token&) const = default;
  };
  std::vector<Token> tokens;            // new output tokens
  std::vector<Token> prompt_tokens;     // once, when prompt_logprobs: entry i belongs to prompt token i + 1
  int num_cached_tokens = 0;            // prompt tokens served by the prefix cache
  std::optional<PrefillStats> prefill;  // once, with the first increment
  FinishReason finish = FinishReason::kNone;
  int32_t stop_token = -1;  // the eos or stop id that ended the answer
  // Why, when kError. kInvalidArgument: the request's own parameters, of which `error_param` is one; with any other
  // code the request is not at fault.
  std::string error, error_param;
  Code error_code = Code::kInternal;
};

struct EngineStats {
  int64_t num_running = 0, num_waiting = 0;  // requests and prefill jobs that hold pages; the queue
  int64_t num_remote_prefills = 0;           // running requests whose prompt a prefill worker computes
  int64_t num_tokens_in_flight = 0;          // prompts and outputs of running and waiting requests
  int64_t kv_pages_total = 0, kv_pages_used = 0, kv_pages_cached = 0;  // used: held by requests; cached: reusable
  int64_t prompt_tokens_total = 0, generation_tokens_total = 0;
  int64_t prefix_cache_queries = 0, prefix_cache_hits = 0;  // in tokens
  int64_t num_preemptions_total = 0, num_steps_total = 0;
  // On the device's clock, rank 0: in steps, and between two of them that followed each other without a pause.
  double busy_seconds_total = 0.0, idle_seconds_total = 0.0;
  double seconds_since_progress = 0.0;  // 0 when idle; grows while there is work and no layer of a step completes
  bool failed = false;                  // a step threw: the instance must end
  std::string failure;
};

}  // namespace moectl
