// Scheduler: decides what every rank computes in the next step. It owns the sequences, the queue and each rank's page
// bookkeeping; it computes nothing, knows no threads and reads no clock: time is passed in, results are handed back.
//
//   plan(now)      expire the queue -> running sequences of each rank (decodes, then prefill chunks) -> admissions
//                  -> deltas for the ranks' mirrors
//   complete(...)  computed tokens become cached pages, sampled tokens extend their sequences, finished ones leave
//
// Plans change when a result is computed, never the result: pages are taken as sequences grow; when a rank runs out of
// pages its youngest sequence is preempted, keeps its tokens, and is computed again later (sampling depends on (seed,
// output index) alone).
//
// A rank here is a data-parallel rank: a TP group, whose ranks all execute its plans, each with pages of the same ids
// in its own pool.
//
// Data parallelism (scheduler_ranks.cpp). A request goes to the rank where it costs least: KV tokens held and tokens to
// compute against prefix hits. Ranks run in lockstep, so prefill chunks are balanced over the ranks of a step.
//
// Where ranks execute steps in stream order by themselves (a GPU), the next step may be planned while one is in flight
// (max_steps_in_flight 2): a sequence then continues from a token that the host does not know yet, which the device
// reads from the row that sampled it (step.h, Chunk::token_ids). Rows computed beyond the end of a sequence are
// dropped. Pages of a finished or preempted sequence may be reused at once: writes of the step in flight precede, in
// stream order, everything that the next plan does with them.
//
// Disaggregated prefill (scheduler_pd.cpp). Decode role: a request whose prompt another worker computes stays on its
// rank with reserved pages, untouched by steps, until remote_done(). Prefill role: a job is a sequence that samples
// nothing and keeps its pages until release_job().
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/engine/sequence.h"
#include "core/engine/step.h"
#include "core/engine/types.h"
#include "core/kv/page_pool.h"
#include "core/kv/prefix_cache.h"
#include "core/pd/prefill_source.h"

namespace moectl {

struct SchedulerConfig {
  int num_ranks = 1;  // data-parallel ranks (dp_size)
  int num_pages = 0;  // per rank
  int page_size = 64;
  int max_num_seqs = 64;             // running, all ranks together; per rank the quotient, rounded up
  int max_num_batched_tokens = 512;  // rows per rank per step
  int max_prompt_logits = 64;        // of these, rows that score prompt tokens
  int max_model_len = 0;
  int32_t vocab_size = 0;
  bool enable_prefix_caching = true;
  std::vector<int32_t> eos_token_ids;
  int local_prefill_tokens = 0;  // a prompt with at most so many uncached tokens is computed by this engine
  bool takes_jobs = false;       // prefill role
  bool compute_mtp_kv = false;   // a page counts as computed when its MTP layer is computed too
  int max_steps_in_flight = 1;   // 2: not with disaggregated prefill, where other workers access the pages

  int max_seqs_per_rank() const { return (max_num_seqs + num_ranks - 1) / num_ranks; }
  int max_logits_per_rank() const { return max_seqs_per_rank() + max_prompt_logits; }
};

// Throws Error{kInvalidArgument} or Error{kResourceExhausted} as Engine::submit documents. Any thread.
void check_request(const GenerateRequest& request, const SchedulerConfig& config);
void check_job(const PrefillJob& job, const SchedulerConfig& config);

class Scheduler {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  // `cancel_remote(handle of a RemotePrefill)`: when it returns, that prefill's pages are no longer written. Empty:
  // this engine computes every prompt.
  explicit Scheduler(SchedulerConfig config, std::function<void(uint64_t)> cancel_remote = {});

  // `request` passed check_request; handles grow. With max_steps_in_flight 1 these are not called between a plan and
  // its complete(); nor is anything else above plan().
  void submit(uint64_t handle, GenerateRequest request, TimePoint now = {});
  void submit_job(uint64_t handle, PrefillJob job, TimePoint now = {});
  void release_job(uint64_t handle);
  void remote_done(uint64_t remote, RemotePrefillResult result);
  void cancel(uint64_t handle);
  void end_all(FinishReason reason, const std::string& error);
  void flush_prefix_cache();

  StepPlan plan(TimePoint now);
  // `plan`: the oldest one in flight.
  void complete(const StepPlan& plan, StepResult result, TimePoint now = {});
  // Outputs for the sinks since the last call, in order.
  std::vector<Emission> take_emissions();
  std::vector<JobProgress> take_progress();
  // Remote prefills that plan() decided on since the last call; the caller starts them.
  std::vector<RemotePrefill> take_remote_starts();

  bool has_work() const { return !sequences_.empty(); }
  // The plan may be empty although there is work: other workers fill or read pages and will report.
  bool waits_for_others() const { return !remotes_.empty() || !parked_.empty(); }
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
    std::vector<uint64_t> ended;     // mirrors that the next plan drops
    // Of the plan in the making.
    int num_tokens = 0, num_prompt_logits = 0;
    bool preempted = false;  // a sequence was preempted on this rank: no admissions in this step
  };

  Sequence& add_sequence(uint64_t handle, GenerateRequest request, TimePoint now);
  void expire(TimePoint now);
  void schedule_running(Rank& rank, RankStepPlan& plan, bool decodes);
  bool may_continue(const Sequence& seq) const;
  void schedule_chunk(Rank& rank, RankStepPlan& plan, Sequence& seq, bool may_preempt);
  Chunk make_chunk(const Sequence& seq, int end) const;
  int grow(Rank& rank, Sequence& seq, int num_tokens);
  bool preempt_youngest(Rank& rank, RankStepPlan& plan, const Sequence& than);
  void finalize(Rank& rank, RankStepPlan& plan);
  void add_deltas(Chunk& chunk, Sequence& seq) const;
  void drop_mirror(Sequence& seq);
  void admit_waiting(StepPlan& plan, TimePoint now);
  bool admit(Sequence& seq, StepPlan& plan, TimePoint now);
  bool place(Sequence& seq, int rank_idx, TimePoint now);
  int max_hits(const Sequence& seq) const;
  void note_admission(Sequence& seq, TimePoint now);

  int prefill_row_limit() const;
  bool has_room(const Rank& rank, const Sequence& seq) const;
  int64_t load(const Rank& rank) const;
  int num_promised_pages(const Rank& rank) const;
  std::vector<int> ranks_by_cost(const Sequence& seq) const;

  bool may_go_remote(const Sequence& seq) const;
  std::string local_reason(const Sequence& seq) const;
  void start_remote(Sequence& seq);
  void end_remote(Sequence& seq);
  void begin_job(Sequence& seq);
  void advance_job(Sequence& seq, TimePoint now);
  void park_job(Sequence& seq, const std::string& error);
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
  std::map<uint64_t, Sequence> sequences_;  // by handle
  std::map<uint64_t, Sequence*> waiting_;   // by arrival
  std::map<uint64_t, Sequence*> remotes_;   // by remote prefill
  std::map<uint64_t, Sequence*> parked_;    // jobs
  uint64_t next_remote_ = 1;
  std::vector<std::unique_ptr<Rank>> ranks_;
  int row_limit_ = 0;  // rows per rank in the plan in the making
  std::vector<Emission> emissions_;
  std::vector<JobProgress> progress_;
  std::vector<RemotePrefill> remote_starts_;
  int num_in_flight_ = 0;
  EngineStats counters_;  // the totals
};

}  // namespace moectl
