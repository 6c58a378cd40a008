// Engine: the narrow boundary between the servers and everything that computes. Servers include this header and no
// other of core/engine (its vocabulary, types.h, comes with it).
//
// Threads: every member may be called from any thread and none blocks on a step. One scheduler thread plans for all
// ranks; each rank computes on its own thread. Sinks are called on the scheduler thread: they must only enqueue.
// step.h draws the life of one step's data.
//
// Batch invariance (CPU backend): a request's tokens and logprobs are a function of its prompt, its sampling
// parameters, the checkpoint and the TP size alone; other requests in the batch, chunked prefill, prefix hits, threads,
// EP and DP sizes change no bit.
//
// EP ranks step together: in every step each rank runs the same layers, an idle rank with an empty batch, because its
// experts may be needed by the others. The ranks of a TP group compute the same tokens, each a part of every layer.
//
// Disaggregated prefill: the decode role's engine gets a PrefillSource, which fills the pages of long prompts; the
// prefill role's engine computes them (prefill). Both are ordinary engines otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/comm/all2all_backend.h"
#include "core/comm/collectives.h"
#include "core/engine/expert_load.h"
#include "core/engine/types.h"
#include "core/parallel/parallelism.h"
#include "core/pd/prefill_source.h"

namespace moectl {

class Ops;  // kernels/ops.h

struct EngineConfig {
  std::string model_dir;
  std::string
      shape;  // in place of a folder: synthetic weights of this shape (core/model/shapes.h); answers mean nothing
  std::string device = "cpu";     // cpu | cuda | auto
  std::string cpu_path = "auto";  // auto | avx512 | portable: instruction-set path of the CPU backend
  Parallelism parallelism;        // ranks, and what each holds of the model
  Collectives collectives = Collectives::kAuto;
  std::optional<int> num_redundant_experts;                // nullopt: as few as make ep_size divide the experts
  All2AllBackend all2all_backend = All2AllBackend::kAuto;  // one rank: no effect
  int num_threads = 0;                                     // compute threads in total; 0: one per core
  int max_model_len = 0;                                   // 0: the checkpoint's max_position_embeddings
  int max_num_seqs = 64;                                   // running requests, all ranks together
  int max_num_batched_tokens = 0;       // tokens per rank per step (prefill chunk size); 0: 512 on CPU, 2048 on CUDA
  int64_t kv_cache_bytes = 0;           // all ranks together; 0: 256 MiB on CPU, what the GPU's memory leaves on CUDA
  double gpu_memory_utilization = 0.9;  // fraction of a GPU's memory that weights, workspace and cache may take
  std::string kv_cache_dtype = "auto";  // auto | f32 | bf16; auto = f32 on CPU, bf16 on CUDA
  bool precise = false;                 // CUDA: f32 activations, as the CPU computes
  bool deterministic = false;           // CUDA: batch-invariant outputs, bit for bit (the CPU backend always is)
  bool portable_kernels = false;        // CUDA: the kernels of compute capability 8.0, on Hopper too
  bool enable_prefix_caching = true;
  bool overlap_schedule = true;                   // CUDA: the next step is planned and launched while one runs
  std::shared_ptr<PrefillSource> prefill_source;  // decode role: computes prompts elsewhere; may be null
  int local_prefill_tokens = 64;  // decode role: prompts with at most so many uncached tokens are computed here
  bool prefill_role = false;      // prefill() may be called
  bool compute_mtp_kv = true;     // either role, and only then: the MTP layer's KV of prompts too
  // Called while loading: bytes read so far and in total. May be empty.
  std::function<void(int64_t done, int64_t total)> progress;

  // For tests: another kStepTimeout (core/engine/rank_group.h); what a rank computes with in place of its backend.
  std::optional<std::chrono::milliseconds> step_timeout;
  std::function<std::unique_ptr<Ops>(std::unique_ptr<Ops> backend, int rank)> wrap_ops;
};

// What servers need to know of a loaded model.
struct ModelInfo {
  std::string architecture;  // "deepseek_v3"
  std::string device;        // cpu | cuda
  Parallelism parallelism;
  std::optional<All2AllBackend> all2all_backend;  // as resolved for the device; nullopt: one rank, nothing to exchange
  int32_t vocab_size = 0;
  int max_model_len = 0;
  std::vector<int32_t> eos_token_ids;  // generation_config.json, else config.json
  int64_t num_active_params = 0;       // active per token
  int64_t num_params = 0, weight_bytes = 0, kv_bytes_per_token = 0, kv_pool_tokens = 0;
  std::string exactness;   // instruction-set path, kernel version, KV dtype, TP size: equal bits where it is equal
  std::string kv_format;   // KvLayout: which workers can exchange KV
  std::string model_hash;  // of the checkpoint (PD handshake)
};

using OutputSink = std::function<void(GenerateOutput&&)>;
using ExpertLoadSink = std::function<void(const ExpertLoad&)>;

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
  // cancelled; Error{kCancelled} means that its consumer is gone, and is not logged.
  virtual uint64_t submit(GenerateRequest request, OutputSink sink) = 0;
  // The request ends with kCancelled within one step; its pages return. Unknown ids are ignored.
  virtual void cancel(uint64_t handle) = 0;
  virtual EngineStats stats() const = 0;
  // Reads the experts' load as of the end of one step, the same on all ranks: the next that is launched, or of the last
  // one when the engine is idle. No step waits for it. `sink` is called once; with no layers where the model has no
  // experts, and when the engine has failed or ends.
  virtual void read_expert_load(ExpertLoadSink sink) = 0;
  // Takes no new requests from now on; running ones continue.
  virtual void drain() = 0;
  // Evicts all cached prefixes that no request references.
  virtual void flush_prefix_cache() = 0;

  // Prefill role: computes the KV of job.num_tokens tokens, fewer than the prompt has. Throws like submit. `sink` is
  // called until `finished`, then destroyed. cancel(handle) stops the computing (`finished`, with an error); the pages
  // stay valid until release_prefill, which every job needs exactly once, finished or not.
  virtual uint64_t prefill(PrefillJob job, PrefillSink sink) = 0;
  virtual void release_prefill(uint64_t handle) = 0;
  // What a peer must agree on, and where pages are, by data-parallel rank. The pools live as long as the engine.
  virtual KvLayout kv_layout() const = 0;
  virtual std::vector<KvPool> kv_pools() const = 0;
};

}  // namespace moectl
