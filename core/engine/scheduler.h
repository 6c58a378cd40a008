// Scheduler: decides what every rank computes in the next step. It owns the sequences, the queue and each rank's page
// bookkeeping; it computes nothing, knows no threads and reads no clock: time is passed in, results are handed back.
//
//   plan(now)      expire the queue -> running sequences of each rank (decodes, then prefill chunks) -> admissions
//   complete(...)  computed tokens become cached pages, sampled tokens extend their sequences, the finished leave
//
// A plan never changes a result, only when it comes: pages are taken as sequences grow; when a rank runs dry its
// youngest sequence is preempted, keeps its tokens, and is computed again later (sampling depends on (seed, output
// index) alone).
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/engine/engine.h"
#include "core/engine/request.h"
#include "core/kv/block_pool.h"
#include "core/kv/prefix_cache.h"

namespace moectl {

struct SchedulerConfig {
  int num_ranks = 1;
  int num_pages = 0;  // of each rank
  int page_size = 64;
  int max_num_seqs = 64;             // running, all ranks together; each rank at most its share, rounded up
  int max_num_batched_tokens = 512;  // rows a rank a step
  int max_prompt_logits = 64;        // of these, rows that score prompt tokens
  int max_model_len = 0;
  int32_t vocab_size = 0;
  bool enable_prefix_caching = true;
  std::vector<int32_t> eos_token_ids;

  int max_seqs_per_rank() const { return (max_num_seqs + num_ranks - 1) / num_ranks; }
  int max_logits_per_rank() const { return max_seqs_per_rank() + max_prompt_logits; }
};

// Throws Error{kInvalidArgument} or Error{kResourceExhausted} as Engine::submit documents. Any thread.
void check_request(const GenerateRequest& request, const SchedulerConfig& config);

// The rows of one sequence in one step: its tokens [begin, begin + num_tokens).
struct Chunk {
  Sequence* seq = nullptr;
  int begin = 0, num_tokens = 0;
  int prompt_logits_begin = 0, prompt_logits_end = 0;  // positions whose logits score the prompt token after them
  bool sample = false;                                 // the last row's logits give the next token
  int num_logits() const { return prompt_logits_end - prompt_logits_begin + (sample ? 1 : 0); }
};

struct RankPlan {
  std::vector<Chunk> chunks;
  int num_tokens = 0, num_prompt_logits = 0;
  bool preempted = false;  // somebody lost their place on this rank: no admissions in this step
};

struct StepPlan {
  std::vector<RankPlan> ranks;
  bool empty() const;
};

struct ChunkResult {
  std::vector<GenerateOutput::Token> prompt_logprobs;  // for [prompt_logits_begin, prompt_logits_end)
  std::optional<GenerateOutput::Token> token;          // when Chunk::sample
  std::string error;                                   // not empty: this request ends, nothing else does
};

struct Emission {
  uint64_t handle = 0;
  GenerateOutput output;
};

class Scheduler {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  explicit Scheduler(SchedulerConfig config);

  // `request` passed check_request; handles grow. Not between a plan and its complete(); neither are the three below.
  void submit(uint64_t handle, GenerateRequest request);
  void cancel(uint64_t handle);
  void end_all(FinishReason reason, const std::string& error);
  void flush_prefix_cache();

  StepPlan plan(TimePoint now);
  // One result a chunk, in the plan's order.
  void complete(const StepPlan& plan, std::vector<std::vector<ChunkResult>> results);
  // What has to go to the sinks since the last call, in order.
  std::vector<Emission> take_emissions();

  bool has_work() const { return !sequences_.empty(); }
  EngineStats stats() const;  // all but the progress and failure fields
  const SchedulerConfig& config() const { return config_; }
  const BlockPool& pool(int rank) const { return ranks_[size_t(rank)]->pool; }

 private:
  struct Rank {
    explicit Rank(const SchedulerConfig& config)
        : pool(config.num_pages), cache(pool, config.page_size, config.enable_prefix_caching) {}
    BlockPool pool;
    PrefixCache cache;
    std::vector<Sequence*> running;  // oldest first
  };

  void expire_waiting(TimePoint now);
  void schedule_running(Rank& rank, RankPlan& plan, bool decodes);
  void schedule_chunk(Rank& rank, RankPlan& plan, Sequence& seq, bool may_preempt);
  int grow(Rank& rank, Sequence& seq, int num_tokens);
  bool preempt_youngest(Rank& rank, RankPlan& plan, const Sequence& than);
  void admit_waiting(StepPlan& plan);
  bool admit(Sequence& seq, StepPlan& plan);
  bool place(Sequence& seq, int rank_idx);
  std::vector<int> ranks_by_preference(const Sequence& seq, const StepPlan& plan) const;

  void complete_chunk(const Chunk& chunk, ChunkResult result);
  void register_full_pages(Rank& rank, Sequence& seq);
  FinishReason finish_reason(const Sequence& seq, int32_t token) const;
  void emit(Sequence& seq, GenerateOutput output);
  void finish(Sequence& seq, GenerateOutput output);
  void release_pages(Sequence& seq);
  int num_pages_for(int num_tokens) const { return (num_tokens + config_.page_size - 1) / config_.page_size; }

  const SchedulerConfig config_;
  std::map<uint64_t, std::unique_ptr<Sequence>> sequences_;
  std::map<uint64_t, Sequence*> waiting_;  // by arrival
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<Emission> emissions_;
  bool in_flight_ = false;
  EngineStats counters_;  // the totals
};

}  // namespace moectl
