// Engine: the narrow boundary between the servers and everything that computes. Servers include this header and no
// other of core/engine, core/model, core/kv, core/comm or kernels.
//
// Threads: every member may be called from any thread and none blocks on a step. One scheduler thread plans for all
// ranks; each rank computes on its own thread. Sinks are called on the scheduler thread: they must only enqueue.
//
// Exactness (CPU backend): a request's tokens and logprobs are a function of its prompt, its sampling parameters and
// the checkpoint alone; company in the batch, chunking, prefix hits, threads, EP and DP sizes change no bit.
//
// EP ranks step together: in every step each rank runs the same layers, a rank with nothing to do an empty batch,
// because its experts may be needed by the others.
//
// Prefill and decode apart: the decode role's engine gets a PrefillSource and lets it fill the pages of long prompts;
// the prefill role's engine computes them (prefill). Both are ordinary engines otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/pd/prefill_source.h"

namespace moectl {

struct EngineConfig {
  std::string model_dir;
  std::string shape;  // in place of a folder: made-up weights of this shape (core/model/shapes.h); answers mean nothing
  std::string device = "cpu";           // cpu | cuda | auto
  std::string cpu_path = "auto";        // auto | avx512 | portable: instruction-set path of the CPU backend
  int ep_size = 1;                      // ranks; DP attention over them (tensor parallelism comes later)
  int num_threads = 0;                  // compute threads in total; 0: one a core
  int max_model_len = 0;                // 0: the checkpoint's max_position_embeddings
  int max_num_seqs = 64;                // running requests, all ranks together
  int max_num_batched_tokens = 0;       // tokens of a rank's step (prefill chunk size); 0: 512 on CPU, 2048 on CUDA
  int64_t kv_cache_bytes = 0;           // all ranks together; 0: 256 MiB on CPU, what the GPU's memory leaves on CUDA
  double gpu_memory_utilization = 0.9;  // share of a GPU's memory that weights, workspace and cache may take
  std::string kv_cache_dtype = "auto";  // auto | f32 | bf16; auto = f32 on CPU, bf16 on CUDA
  bool precise = false;                 // CUDA: f32 activations, as the CPU computes
  bool deterministic = false;           // CUDA: output bits do not depend on company (the CPU backend is always so)
  bool portable_kernels = false;        // CUDA: what every card from 8.0 on gets, on Hopper too
  bool enable_prefix_caching = true;
  bool overlap_schedule = true;                   // CUDA: the next step is planned and launched while one runs
  std::shared_ptr<PrefillSource> prefill_source;  // decode role: who computes prompts elsewhere; null: nobody
  int local_prefill_tokens = 64;  // decode role: at most so many tokens that no cache holds are computed here
  bool prefill_role = false;      // prefill() may be called
  bool compute_mtp_kv = true;     // either role, and only then: the MTP layer's KV of prompts too
  // Called while loading: bytes read so far and in total. May be empty.
  std::function<void(int64_t done, int64_t total)> progress;
};

// What servers need to know of a loaded model.
struct ModelInfo {
  std::string architecture;  // "deepseek_v3"
  int32_t vocab_size = 0;
  int max_model_len = 0;
  std::vector<int32_t> eos_token_ids;  // generation_config.json, else config.json
  int64_t num_active_params = 0;       // at work on one token
  int64_t num_params = 0, weight_bytes = 0, kv_bytes_per_token = 0, kv_pool_tokens = 0;
  std::string numerics_id;  // instruction-set path, KV dtype, kernel version (PD handshake)
  std::string model_hash;   // of the checkpoint (PD handshake)
};

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
};

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0.0f;
};

struct GenerateRequest {
  std::string id;                   // unique among running requests; for logs
  std::vector<int32_t> prompt_ids;  // 1 .. max_model_len - 1 ids, each in [0, vocab_size)
  SamplingParams sampling;
  std::string cache_salt;  // prefixes are shared only between equal salts
  std::optional<std::chrono::steady_clock::time_point> deadline;
  std::vector<std::string>
      prefill_workers;  // KV endpoints that may compute the prompt, best first; none: computed here
};

// How a prompt's KV came to be, for the timeline.
struct PrefillStats {
  std::string worker;            // who computed it for us; empty: computed here
  std::string local_reason;      // why here: "aggregated", "no prefill worker", "short prompt", ...
  int64_t kv_bytes = 0;          // received
  int remote_cached_tokens = 0;  // of the worker's own prefix cache
  double queue_seconds = 0;      // here, from submit to a place on a rank
  double remote_queue_seconds = 0, remote_compute_seconds = 0, transfer_seconds = 0;
};

enum class FinishReason { kNone, kStop, kLength, kCancelled, kDeadline, kError };

// One increment of an answer. The first carries prompt facts; the last has finish != kNone.
struct GenerateOutput {
  struct Token {
    int32_t id = 0;
    float logprob = 0.0f;           // valid when num_logprobs >= 0
    std::vector<TokenLogprob> top;  // best first
  };
  std::vector<Token> tokens;            // new output tokens
  std::vector<Token> prompt_tokens;     // once, when prompt_logprobs: entry i belongs to prompt token i + 1
  int num_cached_tokens = 0;            // prompt tokens served by the prefix cache
  std::optional<PrefillStats> prefill;  // once, with the first increment
  FinishReason finish = FinishReason::kNone;
  int32_t stop_token = -1;  // the eos or stop id that ended the answer
  // Why, when kError. kInvalidArgument: the request's own parameters, of which `error_param` is one; anything else is
  // not the request's fault.
  std::string error, error_param;
  Code error_code = Code::kInternal;
};

using OutputSink = std::function<void(GenerateOutput&&)>;

struct EngineStats {
  int64_t num_running = 0, num_waiting = 0;  // requests and prefill jobs that hold pages; the queue
  int64_t num_remote_prefills = 0;           // running requests whose prompt is computed elsewhere
  int64_t num_tokens_in_flight = 0;          // of what runs or waits: prompts and outputs
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

class Engine {
 public:
  // Loads the checkpoint and starts the threads. Throws Error{kBadData} (checkpoint), Error{kBadConfig} (flags,
  // memory).
  static std::unique_ptr<Engine> create(EngineConfig config);
  virtual ~Engine() = default;  // cancels what runs, joins the threads

  virtual const ModelInfo& info() const = 0;
  // Takes the request or throws Error{kInvalidArgument} (empty prompt, id out of range, too long: message names both
  // lengths), Error{kResourceExhausted} (the pool could never hold it), Error{kUnavailable} (draining or failed).
  // The sink is called until finish != kNone, then never again, and is destroyed. When it throws, the request is
  // cancelled; Error{kCancelled} says that its consumer wants no more, and is not logged.
  virtual uint64_t submit(GenerateRequest request, OutputSink sink) = 0;
  // The request ends with kCancelled within one step; its pages return. Unknown ids are ignored.
  virtual void cancel(uint64_t handle) = 0;
  virtual EngineStats stats() const = 0;
  // No new requests from now on; running ones go on.
  virtual void drain() = 0;
  // Forget all cached prefixes that no request holds.
  virtual void flush_prefix_cache() = 0;

  // Prefill role: computes the KV of job.num_tokens tokens, fewer than the prompt has. Throws like submit. `sink` is
  // called until `finished`, then destroyed. cancel(handle) stops the computing (`finished`, with an error); the pages
  // stay as they are until release_prefill, which every job needs exactly once, whatever became of it.
  virtual uint64_t prefill(PrefillJob job, PrefillSink sink) = 0;
  virtual void release_prefill(uint64_t handle) = 0;
  // What a peer must agree on, and where pages lie, by rank. The pools live as long as the engine.
  virtual KvLayout kv_layout() const = 0;
  virtual std::vector<KvPool> kv_pools() const = 0;
};

}  // namespace moectl
