#include "core/engine/scheduler.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/base/check.h"
#include "core/engine/sampler.h"

namespace moectl {
namespace {

double seconds_between(Scheduler::TimePoint begin, Scheduler::TimePoint end) {
  return std::chrono::duration<double>(end - begin).count();
}

constexpr int kDecodeLoad = 64;  // a running sequence weighs as much as this many prompt tokens when a rank is chosen

}  // namespace

void check_request(const GenerateRequest& request, const SchedulerConfig& config) {
  const size_t num_prompt = request.prompt_ids.size();
  if (num_prompt == 0) throw Error(Code::kInvalidArgument, "the prompt is empty; give at least one token", "prompt");
  if (num_prompt >= size_t(config.max_model_len))
    throw Error(
        Code::kInvalidArgument,
        fmt::format("the prompt has {} tokens; this model's context is {} tokens, of which the prompt may take {}",
                    num_prompt, config.max_model_len, config.max_model_len - 1),
        "prompt");
  for (int32_t id : request.prompt_ids)
    if (id < 0 || id >= config.vocab_size)
      throw Error(Code::kInvalidArgument,
                  fmt::format("token id {} in the prompt; ids are 0 .. {}", id, config.vocab_size - 1), "prompt");
  check_sampling_params(request.sampling, config.vocab_size);
  const int64_t num_tokens = std::min<int64_t>(int64_t(num_prompt) + request.sampling.max_tokens, config.max_model_len);
  const int64_t pool_tokens = int64_t(config.num_pages) * config.page_size;
  if (num_tokens > pool_tokens)
    throw Error(Code::kResourceExhausted,
                fmt::format("prompt and max_tokens need {} tokens of KV cache; a rank has {}", num_tokens, pool_tokens),
                "max_tokens");
}

bool StepPlan::empty() const {
  return std::ranges::all_of(ranks, [](const RankPlan& r) { return r.chunks.empty(); });
}

Scheduler::Scheduler(SchedulerConfig config, std::function<void(uint64_t)> cancel_remote)
    : config_(std::move(config)), cancel_remote_(std::move(cancel_remote)) {
  CHECK(config_.num_ranks > 0 && config_.max_num_seqs > 0 && config_.max_num_batched_tokens > 0 &&
            config_.max_prompt_logits > 0 && config_.max_model_len > 0,
        "a scheduler needs ranks, sequences, tokens and a length");
  for (int i = 0; i < config_.num_ranks; ++i) ranks_.push_back(std::make_unique<Rank>(config_));
}

// ------------------------------------------------------------------------------------------------ requests

void Scheduler::submit(uint64_t handle, GenerateRequest request, TimePoint now) {
  add_sequence(handle, std::move(request), now);
}

Sequence& Scheduler::add_sequence(uint64_t handle, GenerateRequest request, TimePoint now) {
  CHECK(num_in_flight_ == 0 || config_.max_steps_in_flight > 1, "submit during a step");
  CHECK(sequences_.empty() || sequences_.rbegin()->first < handle, "handle {} is not the newest", handle);
  auto seq = std::make_shared<Sequence>();
  seq->handle = handle;
  seq->submitted = now;
  seq->token_ids = std::move(request.prompt_ids);
  seq->num_prompt_tokens = seq->num_tokens();
  seq->request = std::move(request);
  waiting_.emplace(handle, seq.get());
  return *sequences_.emplace(handle, std::move(seq)).first->second;
}

void Scheduler::cancel(uint64_t handle) {
  CHECK(num_in_flight_ == 0 || config_.max_steps_in_flight > 1, "cancel during a step");
  const auto it = sequences_.find(handle);
  if (it == sequences_.end()) return;
  if (it->second->is_job()) return hold_job(*it->second, "cancelled");
  finish(*it->second, {.finish = FinishReason::kCancelled});
}

void Scheduler::end_all(FinishReason reason, const std::string& error) {
  num_in_flight_ = 0;  // a failed step is never completed
  while (!sequences_.empty()) {
    const uint64_t handle = sequences_.begin()->first;
    Sequence& seq = *sequences_.begin()->second;
    if (!seq.is_job()) {
      finish(seq, {.finish = reason, .error = error});
    } else {
      hold_job(seq, error.empty() ? "cancelled" : error);
      release_job(handle);  // a job that was waiting is gone already
    }
  }
}

void Scheduler::flush_prefix_cache() {
  CHECK(num_in_flight_ == 0 || config_.max_steps_in_flight > 1, "flush during a step");
  for (auto& rank : ranks_) rank->cache.flush();
}

// ------------------------------------------------------------------------------------------------ plan

StepPlan Scheduler::plan(TimePoint now) {
  CHECK(num_in_flight_ < config_.max_steps_in_flight, "{} steps are not complete", num_in_flight_);
  expire(now);
  StepPlan plan;
  plan.ranks.resize(size_t(config_.num_ranks));
  for (size_t i = 0; i < ranks_.size(); ++i) {
    schedule_running(*ranks_[i], plan.ranks[i], /*decodes=*/true);
    schedule_running(*ranks_[i], plan.ranks[i], /*decodes=*/false);
  }
  admit_waiting(plan, now);
  for (RankPlan& rank : plan.ranks) connect_to_the_step_before(rank);
  if (!plan.empty()) ++num_in_flight_;
  return plan;
}

// Rows of logits are counted when nothing can leave the plan any more.
void Scheduler::connect_to_the_step_before(RankPlan& plan) {
  int row = 0;
  for (Chunk& chunk : plan.chunks) {
    Sequence& seq = *chunk.seq;
    if (chunk.begin + chunk.num_tokens > seq.num_tokens()) chunk.feedback_row = seq.sample_row;
    row += chunk.num_logits();
    if (chunk.sample) seq.sample_row = row - 1;
  }
}

void Scheduler::expire(TimePoint now) {
  for (const auto* group : {&waiting_, &remotes_})
    for (auto it = group->begin(); it != group->end();) {
      Sequence& seq = *(it++)->second;  // finish() erases its entry
      if (seq.request.deadline && *seq.request.deadline <= now)
        finish(seq, {.finish = FinishReason::kDeadline});
    }
}

std::optional<Scheduler::TimePoint> Scheduler::next_deadline() const {
  std::optional<TimePoint> next;
  for (const auto* group : {&waiting_, &remotes_})
    for (const auto& [key, seq] : *group)
      if (const auto& deadline = seq->request.deadline; deadline && (!next || *deadline < *next)) next = deadline;
  return next;
}

void Scheduler::schedule_running(Rank& rank, RankPlan& plan, bool decodes) {
  for (size_t i = 0; i < rank.running.size(); ++i) {  // preemption shortens the list behind i
    Sequence& seq = *rank.running[i];
    if (seq.phase == Phase::kRunning && (seq.num_remaining() == 1) == decodes && may_go_on(seq))
      schedule_chunk(rank, plan, seq, /*may_preempt=*/true);
  }
}

// Whether a token comes after those that are still being sampled: not when the last of them is surely the answer's
// last.
bool Scheduler::may_go_on(const Sequence& seq) const {
  if (seq.num_pending == 0) return true;
  return seq.num_output_tokens() + seq.num_pending < seq.request.sampling.max_tokens &&
         seq.num_tokens() + seq.num_pending < config_.max_model_len;
}

// Adds as many of the sequence's next tokens to the step as budgets and pages allow; perhaps none.
void Scheduler::schedule_chunk(Rank& rank, RankPlan& plan, Sequence& seq, bool may_preempt) {
  const int begin = seq.num_computed;
  int end = begin + std::min(seq.num_remaining(), config_.max_num_batched_tokens - plan.num_tokens);
  const int num_scored = seq.wants_prompt_logprobs() ? seq.num_prompt_tokens - 1 : 0;  // positions [0, num_scored)
  const int score_begin = std::max(begin, int(seq.prompt_logprobs.size()));
  const int score_limit = score_begin + config_.max_prompt_logits - plan.num_prompt_logits;
  if (score_limit < num_scored) end = std::min(end, score_limit);
  if (end <= begin) return;

  int num_tokens = grow(rank, seq, end - begin);
  while (num_tokens == 0 && may_preempt && preempt_youngest(rank, plan, seq)) num_tokens = grow(rank, seq, end - begin);
  if (num_tokens == 0) return;
  end = begin + num_tokens;
  const int logits_begin = std::min(score_begin, end);
  const int logits_end = std::max(logits_begin, std::min(end, num_scored));
  const bool sample = end == seq.num_tokens() + seq.num_pending && seq.request.sampling.max_tokens > 0;
  plan.chunks.push_back({.seq = sequences_.at(seq.handle),
                         .begin = begin,
                         .num_tokens = num_tokens,
                         .prompt_logits_begin = logits_begin,
                         .prompt_logits_end = logits_end,
                         .mtp_end = config_.compute_mtp_kv && seq.num_mtp_computed == begin
                                        ? std::min(end, seq.num_tokens() - 1)  // the next token is known
                                        : begin,
                         .sample = sample});
  seq.num_computed = end;
  if (plan.chunks.back().mtp_end > begin) seq.num_mtp_computed = plan.chunks.back().mtp_end;
  ++seq.num_in_flight;
  if (sample) ++seq.num_pending;
  plan.num_tokens += num_tokens;
  plan.num_prompt_logits += logits_end - logits_begin;
}

// Takes pages for up to `num_tokens` more tokens; returns for how many there is room now.
int Scheduler::grow(Rank& rank, Sequence& seq, int num_tokens) {
  while (int(seq.pages.size()) < num_pages_for(seq.num_computed + num_tokens)) {
    const auto page = rank.cache.allocate();
    if (!page) break;
    seq.pages.push_back(*page);
  }
  return std::min(num_tokens, int(seq.pages.size()) * config_.page_size - seq.num_computed);
}

// Sends the rank's youngest request back to the queue if it is younger than `than`. Its tokens stay, its pages go.
bool Scheduler::preempt_youngest(Rank& rank, RankPlan& plan, const Sequence& than) {
  const auto youngest = std::ranges::find_if(rank.running.rbegin(), rank.running.rend(),
                                             [](const Sequence* seq) { return !seq->is_job(); });
  if (youngest == rank.running.rend() || (*youngest)->handle <= than.handle) return false;
  Sequence& victim = **youngest;
  std::erase_if(plan.chunks, [&](const Chunk& chunk) {
    if (chunk.seq.get() != &victim) return false;
    --victim.num_in_flight;
    if (chunk.sample) --victim.num_pending;
    plan.num_tokens -= chunk.num_tokens;
    plan.num_prompt_logits -= chunk.prompt_logits_end - chunk.prompt_logits_begin;
    return true;
  });
  plan.preempted = true;
  ++counters_.num_preemptions_total;
  release_pages(victim);
  waiting_.emplace(victim.handle, &victim);
  return true;
}

void Scheduler::admit_waiting(StepPlan& plan, TimePoint now) {
  while (!waiting_.empty()) {  // first come, first served: nobody overtakes a request that has to wait
    Sequence& seq = *waiting_.begin()->second;
    if (!admit(seq, plan, now)) return;
    waiting_.erase(seq.handle);
  }
}

bool Scheduler::admit(Sequence& seq, StepPlan& plan, TimePoint now) {
  if (seq.num_in_flight > 0) return false;  // preempted: its newest tokens come first
  int num_running = 0;
  for (const auto& rank : ranks_) num_running += int(rank->running.size());
  if (num_running >= config_.max_num_seqs) return false;
  for (int rank_idx : ranks_by_preference(seq, plan)) {
    if (!place(seq, rank_idx, now)) continue;
    if (seq.phase == Phase::kRunning)
      schedule_chunk(*ranks_[size_t(rank_idx)], plan.ranks[size_t(rank_idx)], seq, /*may_preempt=*/false);
    return true;
  }
  return false;
}

// Ranks that could take a sequence, the one that has least to compute first; cached pages count as computed.
std::vector<int> Scheduler::ranks_by_preference(const Sequence& seq, const StepPlan& plan) const {
  std::vector<std::pair<int64_t, int>> cost;
  for (int i = 0; i < config_.num_ranks; ++i) {
    const Rank& rank = *ranks_[size_t(i)];
    const RankPlan& rank_plan = plan.ranks[size_t(i)];
    const bool has_room = rank_plan.num_tokens < config_.max_num_batched_tokens || may_go_remote(seq);
    if (rank_plan.preempted || !has_room || int(rank.running.size()) >= config_.max_seqs_per_rank()) continue;
    int64_t load = 0;
    for (const Sequence* other : rank.running)
      load += kDecodeLoad + (other->phase == Phase::kRemotePrefill ? 1 : other->num_remaining());
    if (!seq.wants_prompt_logprobs())
      load -= int64_t{config_.page_size} *
              rank.cache.num_matching_pages(seq.request.cache_salt, seq.ids(), seq.num_cacheable() / config_.page_size);
    cost.emplace_back(load, i);
  }
  std::ranges::sort(cost);
  std::vector<int> order;
  for (const auto& [load, i] : cost) order.push_back(i);
  return order;
}

// Puts the sequence on a rank when its tokens and the next one fit into the pages that can be had now.
bool Scheduler::place(Sequence& seq, int rank_idx, TimePoint now) {
  Rank& rank = *ranks_[size_t(rank_idx)];
  seq.cursor = rank.cache.root(seq.request.cache_salt);
  // The token computed for its logits is written to a page of its own.
  const int max_hits = seq.wants_prompt_logprobs() ? 0 : seq.num_cacheable() / config_.page_size;
  seq.pages = rank.cache.acquire(seq.cursor, seq.ids(), max_hits);
  const int num_hits = int(seq.pages.size());
  const int num_tokens = seq.is_job() ? seq.job_tokens : seq.num_tokens() + 1;
  const int needed = std::min(num_pages_for(num_tokens), config_.num_pages) - num_hits;
  if (needed > rank.pool.num_available()) {
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

// ------------------------------------------------------------------------------------------------ complete

void Scheduler::complete(const StepPlan& plan, std::vector<std::vector<ChunkResult>> results, TimePoint now) {
  CHECK(num_in_flight_ > 0 && results.size() == plan.ranks.size(), "results of {} ranks", results.size());
  --num_in_flight_;
  ++counters_.num_steps_total;
  for (size_t r = 0; r < results.size(); ++r) {
    CHECK(results[r].size() == plan.ranks[r].chunks.size(), "{} results for {} chunks", results[r].size(),
          plan.ranks[r].chunks.size());
    for (size_t i = 0; i < results[r].size(); ++i)
      complete_chunk(plan.ranks[r].chunks[i], std::move(results[r][i]), now);
  }
}

void Scheduler::complete_chunk(const Chunk& chunk, ChunkResult result, TimePoint now) {
  Sequence& seq = *chunk.seq;
  if (seq.phase == Phase::kEnded) return;
  const int end = chunk.begin + chunk.num_tokens;
  --seq.num_in_flight;
  if (chunk.sample) --seq.num_pending;
  register_full_pages(seq, end);
  if (result.error)
    return finish(seq, {.finish = FinishReason::kError,
                        .error = result.error->what(),
                        .error_param = result.error->param(),
                        .error_code = result.error->code()});
  CHECK(int(result.prompt_logprobs.size()) == chunk.prompt_logits_end - chunk.prompt_logits_begin &&
            result.token.has_value() == chunk.sample,
        "a result that does not fit its chunk");
  if (seq.is_job()) return advance_job(seq, now);
  std::ranges::move(result.prompt_logprobs, std::back_inserter(seq.prompt_logprobs));
  if (!chunk.sample && end < seq.num_tokens()) return;
  if (!chunk.sample) return finish(seq, {.finish = FinishReason::kLength});  // max_tokens 0: the prompt was all

  const int32_t id = result.token->id;
  seq.token_ids.push_back(id);
  ++counters_.generation_tokens_total;
  GenerateOutput output{.finish = finish_reason(seq, id)};
  if (output.finish == FinishReason::kStop) output.stop_token = id;
  output.tokens.push_back(std::move(*result.token));
  if (output.finish == FinishReason::kNone)
    emit(seq, std::move(output));
  else
    finish(seq, std::move(output));
}

// Of the sequence's first num_tokens tokens, which are computed and known. A preempted one has no pages any more.
void Scheduler::register_full_pages(Sequence& seq, int num_tokens) {
  if (seq.rank < 0) return;
  Rank& rank = *ranks_[size_t(seq.rank)];
  const int page_size = config_.page_size;
  if (config_.compute_mtp_kv) num_tokens = std::min(num_tokens, seq.num_mtp_computed);
  while (!seq.cursor.detached && (seq.cursor.num_pages + 1) * page_size <= num_tokens) {
    const size_t page = size_t(seq.cursor.num_pages);
    rank.cache.insert(seq.cursor, seq.pages[page], seq.ids().subspan(page * size_t(page_size), size_t(page_size)));
  }
}

FinishReason Scheduler::finish_reason(const Sequence& seq, int32_t token) const {
  const SamplingParams& params = seq.request.sampling;
  const auto has = [&](const std::vector<int32_t>& ids) { return std::ranges::find(ids, token) != ids.end(); };
  if (seq.num_output_tokens() >= params.min_tokens &&
      ((!params.ignore_eos && has(config_.eos_token_ids)) || has(params.stop_token_ids)))
    return FinishReason::kStop;
  if (seq.num_output_tokens() >= params.max_tokens || seq.num_tokens() >= config_.max_model_len)
    return FinishReason::kLength;
  return FinishReason::kNone;
}

void Scheduler::emit(Sequence& seq, GenerateOutput output) {
  output.num_cached_tokens = seq.num_cached_tokens;
  if (!seq.reported) {
    seq.reported = true;
    output.prefill = seq.prefill;
    output.prompt_tokens = std::move(seq.prompt_logprobs);
    // The entries moved out still count as scored: a preemption after the first output must not score them again.
    seq.prompt_logprobs.assign(output.prompt_tokens.size(), {});
    if (!output.tokens.empty() || output.finish == FinishReason::kLength)
      counters_.prompt_tokens_total += seq.num_prompt_tokens;
  }
  emissions_.push_back({seq.handle, std::move(output)});
}

void Scheduler::finish(Sequence& seq, GenerateOutput output) {
  emit(seq, std::move(output));
  release_pages(seq);
  waiting_.erase(seq.handle);
  seq.phase = Phase::kEnded;
  sequences_.erase(seq.handle);
}

void Scheduler::release_pages(Sequence& seq) {
  if (seq.phase == Phase::kWaiting) return;
  if (seq.phase == Phase::kRemotePrefill) end_remote(seq);
  Rank& rank = *ranks_[size_t(seq.rank)];
  rank.cache.release(seq.pages);
  seq.pages.clear();
  std::erase(rank.running, &seq);
  seq.phase = Phase::kWaiting;
  seq.rank = -1;
  seq.num_computed = 0;
}

std::vector<Emission> Scheduler::take_emissions() {
  return std::exchange(emissions_, {});
}

EngineStats Scheduler::stats() const {
  EngineStats stats = counters_;
  stats.num_waiting = int64_t(waiting_.size());
  stats.num_running = int64_t(held_.size());
  stats.num_remote_prefills = int64_t(remotes_.size());
  for (const auto& [handle, seq] : sequences_) stats.num_tokens_in_flight += seq->num_tokens();
  for (const auto& rank : ranks_) {
    stats.num_running += int64_t(rank->running.size());
    stats.kv_pages_total += rank->pool.num_pages();
    stats.kv_pages_used += rank->pool.num_used();
    stats.kv_pages_cached += rank->pool.num_cached();
  }
  return stats;
}

}  // namespace moectl
