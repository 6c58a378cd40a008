// Scheduler: decides what every rank computes in the next step. It owns the sequences, the queue and each rank's page
// bookkeeping; it computes nothing, knows no threads and reads no clock: time is passed in, results are handed back.
//
//   plan(now)      expire the queue -> running sequences of each rank (decodes, then prefill chunks) -> admissions
//   complete(...)  computed tokens become cached pages, sampled tokens extend their sequences, the finished leave
//
// A plan never changes a result, only when it comes: pages are taken as sequences grow; when a rank runs dry its
// youngest sequence is preempted, keeps its tokens, and is computed again later (sampling depends on (seed, output
// index) alone).
//
// Where the ranks carry out steps in order by themselves (a GPU's stream), the next step may be planned while one is in
// flight (max_steps_in_flight 2): a sequence then goes on from a token that nobody on the host has seen, read on the
// device from the row that sampled it (Chunk::feedback_row). What turns out to be too much - its last token was the
// last
// - is dropped. Pages that an ended or preempted sequence gave back may be handed on at once: what the step in flight
// still writes there stands in the stream before everything that the next plan does with them.
//
// Prefill and decode apart (scheduler_pd.cpp). Decode role: a request whose prompt another worker computes sits on its
// rank with reserved pages, untouched by steps, until remote_done(). Prefill role: a job is a sequence that samples
// nothing and keeps its pages until release_job().
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/engine/engine.h"
#include "core/engine/request.h"
#include "core/kv/page_pool.h"
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
  int local_prefill_tokens = 0;  // a prompt that lacks at most so many tokens is never computed elsewhere
  bool takes_jobs = false;       // prefill role
  bool compute_mtp_kv = false;   // a page counts as computed when its MTP layer is, too
  int max_steps_in_flight = 1;   // 2: only without the roles of prefill and decode apart, whose pages others touch

  int max_seqs_per_rank() const { return (max_num_seqs + num_ranks - 1) / num_ranks; }
  int max_logits_per_rank() const { return max_seqs_per_rank() + max_prompt_logits; }
};

// Throws Error{kInvalidArgument} or Error{kResourceExhausted} as Engine::submit documents. Any thread.
void check_request(const GenerateRequest& request, const SchedulerConfig& config);
void check_job(const PrefillJob& job, const SchedulerConfig& config);

// The rows of one sequence in one step: its tokens [begin, begin + num_tokens).
struct Chunk {
  std::shared_ptr<Sequence> seq;
  int begin = 0, num_tokens = 0;
  int prompt_logits_begin = 0, prompt_logits_end = 0;  // positions whose logits score the prompt token after them
  int mtp_end = 0;                                     // positions [begin, mtp_end): the MTP module's KV, too
  bool sample = false;                                 // the last row's logits give the next token
  int feedback_row = -1;  // the last token is not known yet: row of the step before, among its logits, that samples it
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
  std::optional<Error> error;                          // this request ends, nothing else does
};

struct Emission {
  uint64_t handle = 0;
  GenerateOutput output;
};

struct JobProgress {
  uint64_t handle = 0;
  PrefillProgress progress;
};

class Scheduler {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  // `cancel_remote(handle of a RemotePrefill)`: when it returns nothing writes to that prefill's pages any more. Empty:
  // every prompt is computed here.
  explicit Scheduler(SchedulerConfig config, std::function<void(uint64_t)> cancel_remote = {});

  // `request` passed check_request; handles grow. With max_steps_in_flight 1 not between a plan and its complete();
  // neither is anything below before plan().
  void submit(uint64_t handle, GenerateRequest request, TimePoint now = {});
  void submit_job(uint64_t handle, PrefillJob job, TimePoint now = {});
  void release_job(uint64_t handle);
  void remote_done(uint64_t remote, RemotePrefillResult result);
  void cancel(uint64_t handle);
  void end_all(FinishReason reason, const std::string& error);
  void flush_prefix_cache();

  StepPlan plan(TimePoint now);
  // Of the oldest plan in flight: one result a chunk, in the plan's order.
  void complete(const StepPlan& plan, std::vector<std::vector<ChunkResult>> results, TimePoint now = {});
  // What has to go to the sinks since the last call, in order.
  std::vector<Emission> take_emissions();
  std::vector<JobProgress> take_progress();
  // Remote prefills that plan() decided on and nobody has started yet.
  std::vector<RemotePrefill> take_remote_starts();

  bool has_work() const { return !sequences_.empty(); }
  // An empty plan is no mistake: pages are in the hands of other workers, which will be heard of.
  bool waits_for_others() const { return !remotes_.empty() || !held_.empty(); }
  // When the next request expires that no step advances.
  std::optional<TimePoint> next_deadline() const;
  EngineStats stats() const;  // all but the progress and failure fields
  const SchedulerConfig& config() const { return config_; }
  const PagePool& pool(int rank) const { return ranks_[size_t(rank)]->pool; }

 private:
  struct Rank {
    explicit Rank(const SchedulerConfig& config)
        : pool(config.num_pages), cache(pool, config.page_size, config.enable_prefix_caching) {}
    PagePool pool;
    PrefixCache cache;
    std::vector<Sequence*> running;  // oldest first
  };

  Sequence& add_sequence(uint64_t handle, GenerateRequest request, TimePoint now);
  void expire(TimePoint now);
  void schedule_running(Rank& rank, RankPlan& plan, bool decodes);
  bool may_go_on(const Sequence& seq) const;
  void schedule_chunk(Rank& rank, RankPlan& plan, Sequence& seq, bool may_preempt);
  static void connect_to_the_step_before(RankPlan& plan);
  int grow(Rank& rank, Sequence& seq, int num_tokens);
  bool preempt_youngest(Rank& rank, RankPlan& plan, const Sequence& than);
  void admit_waiting(StepPlan& plan, TimePoint now);
  bool admit(Sequence& seq, StepPlan& plan, TimePoint now);
  bool place(Sequence& seq, int rank_idx, TimePoint now);
  void note_admission(Sequence& seq, TimePoint now);
  std::vector<int> ranks_by_preference(const Sequence& seq, const StepPlan& plan) const;

  bool may_go_remote(const Sequence& seq) const;
  std::string local_reason(const Sequence& seq) const;
  void start_remote(Sequence& seq);
  void end_remote(Sequence& seq);
  void begin_job(Sequence& seq);
  void advance_job(Sequence& seq, TimePoint now);
  void hold_job(Sequence& seq, const std::string& error);
  void report_job(const Sequence& seq, PrefillProgress progress);
  KvPages kv_pages(const Sequence& seq, int first_page) const;

  void complete_chunk(const Chunk& chunk, ChunkResult result, TimePoint now);
  void register_full_pages(Sequence& seq, int num_tokens);
  FinishReason finish_reason(const Sequence& seq, int32_t token) const;
  void emit(Sequence& seq, GenerateOutput output);
  void finish(Sequence& seq, GenerateOutput output);
  void release_pages(Sequence& seq);
  int num_pages_for(int num_tokens) const { return (num_tokens + config_.page_size - 1) / config_.page_size; }

  const SchedulerConfig config_;
  const std::function<void(uint64_t)> cancel_remote_;
  std::map<uint64_t, std::shared_ptr<Sequence>> sequences_;
  std::map<uint64_t, Sequence*> waiting_;  // by arrival
  std::map<uint64_t, Sequence*> remotes_;  // by attempt
  std::map<uint64_t, Sequence*> held_;
  uint64_t next_remote_ = 1;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<Emission> emissions_;
  std::vector<JobProgress> progress_;
  std::vector<RemotePrefill> remote_starts_;
  int num_in_flight_ = 0;
  EngineStats counters_;  // the totals
};

}  // namespace moectl
