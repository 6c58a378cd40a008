// The scheduler's plan(): which sequences the next step computes, in which pages, and the deltas of the ranks' mirrors.
#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "core/engine/sampler.h"
#include "core/engine/scheduler.h"

namespace moectl {
namespace {

double seconds_between(Scheduler::TimePoint begin, Scheduler::TimePoint end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

StepPlan Scheduler::plan(TimePoint now) {
  CHECK(num_in_flight_ < config_.max_steps_in_flight, "{} steps are not complete", num_in_flight_);
  expire(now);
  StepPlan plan;
  plan.ranks.resize(size_t(config_.num_ranks));
  row_limit_ = config_.max_num_batched_tokens;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    Rank& rank = *ranks_[i];
    rank.num_tokens = rank.num_prompt_logits = 0;
    rank.preempted = false;
    schedule_running(rank, plan.ranks[i], /*decodes=*/true);
  }
  row_limit_ = prefill_row_limit();
  for (size_t i = 0; i < ranks_.size(); ++i) schedule_running(*ranks_[i], plan.ranks[i], /*decodes=*/false);
  admit_waiting(plan, now);
  if (plan.empty()) return plan;
  for (size_t i = 0; i < ranks_.size(); ++i) finalize(*ranks_[i], plan.ranks[i]);
  ++num_in_flight_;
  return plan;
}

void Scheduler::expire(TimePoint now) {
  for (const auto* group : {&waiting_, &remotes_})
    for (auto it = group->begin(); it != group->end();) {
      Sequence& seq = *(it++)->second;  // finish() erases its entry
      if (seq.request.deadline && *seq.request.deadline <= now) finish(seq, {.finish = FinishReason::kDeadline});
    }
}

std::optional<Scheduler::TimePoint> Scheduler::next_deadline() const {
  std::optional<TimePoint> next;
  for (const auto* group : {&waiting_, &remotes_})
    for (const auto& [key, seq] : *group)
      if (const auto& deadline = seq->request.deadline; deadline && (!next || *deadline < *next)) next = deadline;
  return next;
}

void Scheduler::schedule_running(Rank& rank, RankStepPlan& plan, bool decodes) {
  for (size_t i = 0; i < rank.running.size(); ++i) {  // preemption shortens the list behind i
    Sequence& seq = *rank.running[i];
    if (seq.phase == Phase::kRunning && (seq.num_remaining() == 1) == decodes && may_continue(seq))
      schedule_chunk(rank, plan, seq, /*may_preempt=*/true);
  }
}

// False when a pending token is certain to be the last of the answer.
bool Scheduler::may_continue(const Sequence& seq) const {
  if (seq.num_pending == 0) return true;
  return seq.num_output_tokens() + seq.num_pending < seq.request.sampling.max_tokens &&
         seq.num_tokens() + seq.num_pending < config_.max_model_len;
}

// Adds as many of the sequence's next tokens to the step as budgets and pages allow; possibly none.
void Scheduler::schedule_chunk(Rank& rank, RankStepPlan& plan, Sequence& seq, bool may_preempt) {
  const int begin = seq.num_computed;
  int end = begin + std::min(seq.num_remaining(), row_limit_ - rank.num_tokens);
  const int num_scored = seq.wants_prompt_logprobs() ? seq.num_prompt_tokens - 1 : 0;  // positions [0, num_scored)
  const int score_begin = std::max(begin, int(seq.prompt_logprobs.size()));
  const int score_limit = score_begin + config_.max_prompt_logits - rank.num_prompt_logits;
  if (score_limit < num_scored) end = std::min(end, score_limit);
  if (end <= begin) return;

  int num_tokens = grow(rank, seq, end - begin);
  while (num_tokens == 0 && may_preempt && preempt_youngest(rank, plan, seq)) num_tokens = grow(rank, seq, end - begin);
  if (num_tokens == 0) return;
  end = begin + num_tokens;
  Chunk chunk = make_chunk(seq, end);
  chunk.prompt_logits_begin = std::min(score_begin, end);
  chunk.prompt_logits_end = std::max(chunk.prompt_logits_begin, std::min(end, num_scored));
  seq.num_computed = end;
  if (chunk.mtp_end > begin) seq.num_mtp_computed = chunk.mtp_end;
  ++seq.num_in_flight;
  if (chunk.sample) ++seq.num_pending;
  rank.num_tokens += num_tokens;
  rank.num_prompt_logits += chunk.num_prompt_logits();
  plan.chunks.push_back(std::move(chunk));
}

// The sequence's rows [num_computed, end), without scoring.
Chunk Scheduler::make_chunk(const Sequence& seq, int end) const {
  const int begin = seq.num_computed, num_known = std::min(end, seq.num_tokens()) - begin;
  CHECK(end - begin - num_known <= 1, "{} tokens of the chunk are not known", end - begin - num_known);
  const std::span<const int32_t> known = seq.ids().subspan(size_t(begin), size_t(num_known));
  Chunk chunk{.seq = seq.handle, .begin = begin, .token_ids = {known.begin(), known.end()}};
  if (num_known < end - begin) chunk.token_ids.push_back(-1 - seq.sample_row);
  if (end < seq.num_tokens()) chunk.next_token_id = seq.token_ids[size_t(end)];
  chunk.sample = end == seq.num_tokens() + seq.num_pending && seq.request.sampling.max_tokens > 0;
  chunk.mtp_end = config_.compute_mtp_kv && seq.num_mtp_computed == begin
                      ? std::min(end, seq.num_tokens() - 1)  // the token after each row is known
                      : begin;
  return chunk;
}

// Allocates pages for up to `num_tokens` more tokens; returns how many tokens fit.
int Scheduler::grow(Rank& rank, Sequence& seq, int num_tokens) {
  while (int(seq.pages.size()) < num_pages_for(seq.num_computed + num_tokens)) {
    const auto page = rank.cache.allocate();
    if (!page) break;
    seq.pages.push_back(*page);
  }
  return std::min(num_tokens, int(seq.pages.size()) * config_.page_size - seq.num_computed);
}

// Sends the rank's youngest request back to the queue if it is younger than `than`. It keeps its tokens; its pages are
// released.
bool Scheduler::preempt_youngest(Rank& rank, RankStepPlan& plan, const Sequence& than) {
  const auto youngest = std::ranges::find_if(rank.running.rbegin(), rank.running.rend(),
                                             [](const Sequence* seq) { return !seq->is_job(); });
  if (youngest == rank.running.rend() || (*youngest)->handle <= than.handle) return false;
  Sequence& victim = **youngest;
  std::erase_if(plan.chunks, [&](const Chunk& chunk) {
    if (chunk.seq != victim.handle) return false;
    --victim.num_in_flight;
    if (chunk.sample) --victim.num_pending;
    rank.num_tokens -= chunk.num_tokens();
    rank.num_prompt_logits -= chunk.num_prompt_logits();
    return true;
  });
  rank.preempted = true;
  ++counters_.num_preemptions_total;
  release_pages(victim);
  waiting_.emplace(victim.handle, &victim);
  return true;
}

// Once chunks can no longer be removed: rows of logits are counted and deltas become final.
void Scheduler::finalize(Rank& rank, RankStepPlan& plan) {
  plan.ended = std::exchange(rank.ended, {});
  int row = 0;
  for (Chunk& chunk : plan.chunks) {
    Sequence& seq = sequences_.at(chunk.seq);
    row += chunk.num_logits();
    if (chunk.sample) seq.sample_row = row - 1;
    add_deltas(chunk, seq);
  }
}

void Scheduler::add_deltas(Chunk& chunk, Sequence& seq) const {
  if (!std::exchange(seq.has_mirror, true)) {
    chunk.start = {.sampling = seq.request.sampling, .num_prompt_tokens = seq.num_prompt_tokens};
    const std::span<const int32_t> prompt = seq.ids().first(size_t(seq.num_prompt_tokens));
    if (has_penalties(seq.request.sampling)) chunk.start->prompt_ids = {prompt.begin(), prompt.end()};
    if (seq.request.sampling.min_tokens > 0) chunk.start->eos_token_ids = config_.eos_token_ids;
    seq.num_pages_sent = seq.num_outputs_sent = 0;
  }
  chunk.num_old_pages = seq.num_pages_sent;
  chunk.new_pages.assign(seq.pages.begin() + seq.num_pages_sent, seq.pages.end());
  chunk.new_output_ids.assign(seq.token_ids.begin() + seq.num_prompt_tokens + seq.num_outputs_sent,
                              seq.token_ids.end());
  seq.num_pages_sent = int(seq.pages.size());
  seq.num_outputs_sent = seq.num_output_tokens();
}

// The rank drops it with its next plan.
void Scheduler::drop_mirror(Sequence& seq) {
  if (std::exchange(seq.has_mirror, false)) ranks_[size_t(seq.rank)]->ended.push_back(seq.handle);
}

void Scheduler::admit_waiting(StepPlan& plan, TimePoint now) {
  while (!waiting_.empty()) {  // first come, first served: a request that has to wait is not overtaken
    Sequence& seq = *waiting_.begin()->second;
    if (!admit(seq, plan, now)) return;
    waiting_.erase(seq.handle);
  }
}

bool Scheduler::admit(Sequence& seq, StepPlan& plan, TimePoint now) {
  if (seq.num_in_flight > 0) return false;  // preempted: its pending tokens are collected first
  int num_running = 0;
  for (const auto& rank : ranks_) num_running += int(rank->running.size());
  if (num_running >= config_.max_num_seqs) return false;
  for (int rank_idx : ranks_by_cost(seq)) {
    if (!place(seq, rank_idx, now)) continue;
    if (seq.phase == Phase::kRunning)
      schedule_chunk(*ranks_[size_t(rank_idx)], plan.ranks[size_t(rank_idx)], seq, /*may_preempt=*/false);
    return true;
  }
  return false;
}

// Pages that the prefix cache may serve. The token computed for its logits is written to a private page.
int Scheduler::max_hits(const Sequence& seq) const {
  return seq.wants_prompt_logprobs() ? 0 : seq.num_cacheable() / config_.page_size;
}

// Puts the sequence on a rank when its tokens and the next one fit into the available pages.
bool Scheduler::place(Sequence& seq, int rank_idx, TimePoint now) {
  Rank& rank = *ranks_[size_t(rank_idx)];
  seq.cursor = rank.cache.root(seq.request.cache_salt);
  seq.pages = rank.cache.acquire(seq.cursor, seq.ids(), max_hits(seq));
  const int num_hits = int(seq.pages.size());
  const int num_tokens = seq.is_job() ? seq.job_tokens : seq.num_tokens() + 1;
  const int needed = std::min(num_pages_for(num_tokens), config_.num_pages) - num_hits;
  const int num_promised = has_room(rank, seq) ? 0 : num_promised_pages(rank);
  if (needed > rank.pool.num_available() - num_promised) {
    rank.cache.release(seq.pages);
    seq.pages.clear();
    return false;
  }
  seq.num_computed = seq.num_mtp_computed = num_hits * config_.page_size;
  seq.rank = rank_idx;
  seq.phase = Phase::kRunning;
  rank.running.insert(std::ranges::upper_bound(rank.running, seq.handle, {}, &Sequence::handle), &seq);
  if (!seq.admitted_before) note_admission(seq, now);
  if (seq.is_job())
    begin_job(seq);
  else if (may_go_remote(seq) && seq.num_cacheable() - seq.num_computed > config_.local_prefill_tokens)
    start_remote(seq);
  else if (seq.prefill.local_reason.empty())
    seq.prefill.local_reason = local_reason(seq);
  return true;
}

void Scheduler::note_admission(Sequence& seq, TimePoint now) {
  seq.admitted_before = true;
  seq.admitted = now;
  seq.prefill.queue_seconds = seconds_between(seq.submitted, now);
  seq.num_cached_tokens = std::min(seq.num_computed, seq.num_prompt_tokens);
  if (!config_.enable_prefix_caching || seq.wants_prompt_logprobs()) return;
  counters_.prefix_cache_queries += seq.is_job() ? seq.job_tokens : seq.num_prompt_tokens;
  counters_.prefix_cache_hits += seq.num_cached_tokens;
}

}  // namespace moectl
