#include "core/engine/scheduler.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/base/check.h"
#include "core/engine/sampler.h"

namespace moectl {

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
  Sequence& seq = sequences_[handle];
  seq.handle = handle;
  seq.submitted = now;
  seq.token_ids = std::move(request.prompt_ids);
  seq.num_prompt_tokens = seq.num_tokens();
  seq.request = std::move(request);
  waiting_.emplace(handle, &seq);
  return seq;
}

void Scheduler::cancel(uint64_t handle) {
  CHECK(num_in_flight_ == 0 || config_.max_steps_in_flight > 1, "cancel during a step");
  const auto it = sequences_.find(handle);
  if (it == sequences_.end()) return;
  if (it->second.is_job()) return park_job(it->second, "cancelled");
  finish(it->second, {.finish = FinishReason::kCancelled});
}

void Scheduler::end_all(FinishReason reason, const std::string& error) {
  num_in_flight_ = 0;  // a failed step is never completed
  while (!sequences_.empty()) {
    const uint64_t handle = sequences_.begin()->first;
    Sequence& seq = sequences_.begin()->second;
    if (!seq.is_job()) {
      finish(seq, {.finish = reason, .error = error});
    } else {
      park_job(seq, error.empty() ? "cancelled" : error);
      release_job(handle);  // a job that was waiting is gone already
    }
  }
}

void Scheduler::flush_prefix_cache() {
  CHECK(num_in_flight_ == 0 || config_.max_steps_in_flight > 1, "flush during a step");
  for (auto& rank : ranks_) rank->cache.flush();
}

// ------------------------------------------------------------------------------------------------ complete

void Scheduler::complete(const StepPlan& plan, StepResult result, TimePoint now) {
  CHECK(num_in_flight_ > 0 && result.ranks.size() == plan.ranks.size(), "results of {} ranks", result.ranks.size());
  --num_in_flight_;
  ++counters_.num_steps_total;
  for (size_t r = 0; r < result.ranks.size(); ++r) {
    std::vector<ChunkResult>& chunks = result.ranks[r].chunks;
    CHECK(chunks.size() == plan.ranks[r].chunks.size(), "{} results for {} chunks", chunks.size(),
          plan.ranks[r].chunks.size());
    for (size_t i = 0; i < chunks.size(); ++i) complete_chunk(plan.ranks[r].chunks[i], std::move(chunks[i]), now);
  }
}

void Scheduler::complete_chunk(const Chunk& chunk, ChunkResult result, TimePoint now) {
  const auto it = sequences_.find(chunk.seq);
  if (it == sequences_.end()) return;  // it ended while the step was in flight
  Sequence& seq = it->second;
  const int end = chunk.end();
  --seq.num_in_flight;
  if (chunk.sample) --seq.num_pending;
  register_full_pages(seq, end);
  if (result.error)
    return finish(seq, {.finish = FinishReason::kError,
                        .error = result.error->what(),
                        .error_param = result.error->param(),
                        .error_code = result.error->code()});
  CHECK(chunk.num_drafts == 0, "speculative decoding is not supported yet");
  CHECK(
      int(result.prompt_logprobs.size()) == chunk.num_prompt_logits() && result.tokens.size() == (chunk.sample ? 1 : 0),
      "a result of {} prompt logprobs and {} tokens for a chunk with {} logits", result.prompt_logprobs.size(),
      result.tokens.size(), chunk.num_logits());
  if (seq.is_job()) return advance_job(seq, now);
  std::ranges::move(result.prompt_logprobs, std::back_inserter(seq.prompt_logprobs));
  if (!chunk.sample && end < seq.num_tokens()) return;
  if (!chunk.sample) return finish(seq, {.finish = FinishReason::kLength});  // max_tokens 0: the prompt alone

  const int32_t id = result.tokens[0].id;
  seq.token_ids.push_back(id);
  ++counters_.generation_tokens_total;
  GenerateOutput output{.finish = finish_reason(seq, id)};
  if (output.finish == FinishReason::kStop) output.stop_token = id;
  output.tokens = std::move(result.tokens);
  if (output.finish == FinishReason::kNone)
    emit(seq, std::move(output));
  else
    finish(seq, std::move(output));
}

// Caches the full pages of the sequence's first num_tokens tokens, which are computed and known. No effect on a
// preempted one, whose pages are released.
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

// Destroys the sequence.
void Scheduler::finish(Sequence& seq, GenerateOutput output) {
  emit(seq, std::move(output));
  release_pages(seq);
  const uint64_t handle = seq.handle;
  waiting_.erase(handle);
  sequences_.erase(handle);
}

void Scheduler::release_pages(Sequence& seq) {
  if (seq.phase == Phase::kWaiting) return;
  if (seq.phase == Phase::kRemotePrefill) end_remote(seq);
  drop_mirror(seq);
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
  stats.num_running = int64_t(parked_.size());
  stats.num_remote_prefills = int64_t(remotes_.size());
  for (const auto& [handle, seq] : sequences_) stats.num_tokens_in_flight += seq.num_tokens();
  for (const auto& rank : ranks_) {
    stats.num_running += int64_t(rank->running.size());
    stats.kv_pages_total += rank->pool.num_pages();
    stats.kv_pages_used += rank->pool.num_used();
    stats.kv_pages_cached += rank->pool.num_cached();
  }
  return stats;
}

}  // namespace moectl
