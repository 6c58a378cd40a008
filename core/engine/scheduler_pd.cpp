// The scheduler's part in disaggregated prefill. Decode role: sequences whose pages another worker fills. Prefill role:
// jobs, whose pages another worker reads. Either way pages stay reserved until the other side is known to be done.
#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "core/base/error.h"
#include "core/engine/scheduler.h"

namespace moectl {

KvPages Scheduler::kv_pages(const Sequence& seq, int first_page) const {
  KvPages pages{.rank = seq.rank, .first_page = first_page};
  pages.pages.assign(seq.pages.begin() + first_page, seq.pages.end());
  for (PageId page : pages.pages) pages.epochs.push_back(pool(seq.rank).epoch(page));
  return pages;
}

// ------------------------------------------------------------------------------------------------ decode role

// A preempted request that has output tokens is computed by this engine: its text is no longer a prompt alone.
bool Scheduler::may_go_remote(const Sequence& seq) const {
  return cancel_remote_ && !seq.is_job() && !seq.request.prefill_workers.empty() && !seq.remote_failed &&
         !seq.wants_prompt_logprobs() && seq.num_output_tokens() == 0;
}

std::string Scheduler::local_reason(const Sequence& seq) const {
  if (!cancel_remote_) return "aggregated";
  if (seq.wants_prompt_logprobs()) return "prompt logprobs";
  return seq.request.prefill_workers.empty() ? "no prefill worker" : "short prompt";
}

// place() has checked that the pages suffice. The last prompt token is left to this engine.
void Scheduler::start_remote(Sequence& seq) {
  Rank& rank = *ranks_[size_t(seq.rank)];
  const int first_page = int(seq.pages.size()), num_tokens = seq.num_prompt_tokens - 1;
  const int room = grow(rank, seq, num_tokens - seq.num_computed);
  CHECK(seq.num_computed + room == num_tokens, "room for {} of {} tokens", seq.num_computed + room, num_tokens);
  seq.phase = Phase::kRemotePrefill;
  seq.remote = next_remote_++;
  remotes_.emplace(seq.remote, &seq);
  remote_starts_.push_back({.handle = seq.remote,
                            .request_id = seq.request.id,
                            .workers = seq.request.prefill_workers,
                            .prompt_ids = seq.token_ids,
                            .num_tokens = num_tokens,
                            .cache_salt = seq.request.cache_salt,
                            .into = kv_pages(seq, first_page)});
}

void Scheduler::remote_done(uint64_t remote, RemotePrefillResult result) {
  CHECK(num_in_flight_ == 0, "a remote prefill ends during a step");
  const auto it = remotes_.find(remote);
  if (it == remotes_.end()) return;  // cancelled while the result was in the inbox
  Sequence& seq = *it->second;
  remotes_.erase(it);
  seq.remote = 0;
  seq.phase = Phase::kRunning;
  if (!result.ok) {  // this engine computes it, starting at its cached prefix
    seq.remote_failed = true;
    seq.prefill.local_reason = result.worker.empty()
                                   ? "transfer failed: " + result.error
                                   : fmt::format("transfer failed: {}: {}", result.worker, result.error);
    return;
  }
  seq.prefill = {.worker = std::move(result.worker),
                 .kv_bytes = result.num_bytes,
                 .remote_cached_tokens = result.num_cached_tokens,
                 .queue_seconds = seq.prefill.queue_seconds,
                 .remote_queue_seconds = result.queue_seconds,
                 .remote_compute_seconds = result.compute_seconds,
                 .transfer_seconds = result.transfer_seconds};
  seq.num_computed = seq.num_mtp_computed = seq.num_prompt_tokens - 1;
  register_full_pages(seq, seq.num_computed);
}

// Afterwards no other worker writes to the sequence's pages.
void Scheduler::end_remote(Sequence& seq) {
  cancel_remote_(seq.remote);
  std::erase_if(remote_starts_, [&](const RemotePrefill& start) { return start.handle == seq.remote; });
  remotes_.erase(seq.remote);
  seq.remote = 0;
}

std::vector<RemotePrefill> Scheduler::take_remote_starts() {
  return std::exchange(remote_starts_, {});
}

// ------------------------------------------------------------------------------------------------ prefill role

void check_job(const PrefillJob& job, const SchedulerConfig& config) {
  if (!config.takes_jobs)
    throw Error(Code::kUnavailable, "this engine was not started for the prefill role (EngineConfig::prefill_role)");
  GenerateRequest request{.prompt_ids = job.prompt_ids};
  request.sampling.max_tokens = 0;
  check_request(request, config);
  if (job.num_tokens < 1 || size_t(job.num_tokens) >= job.prompt_ids.size())
    throw Error(Code::kInvalidArgument,
                fmt::format("KV of {} tokens is wanted of a prompt of {}; at least 1, and the last token is the decode "
                            "worker's",
                            job.num_tokens, job.prompt_ids.size()),
                "num_tokens");
}

void Scheduler::submit_job(uint64_t handle, PrefillJob job, TimePoint now) {
  Sequence& seq = add_sequence(handle,
                               {.id = std::move(job.request_id),
                                .prompt_ids = std::move(job.prompt_ids),
                                .cache_salt = std::move(job.cache_salt)},
                               now);
  seq.job_tokens = job.num_tokens;
}

// place() has checked that the pages suffice.
void Scheduler::begin_job(Sequence& seq) {
  const int room = grow(*ranks_[size_t(seq.rank)], seq, seq.num_remaining());
  CHECK(room == seq.num_remaining(), "room for {} of {} tokens", room, seq.num_remaining());
  report_job(seq, {.pages = kv_pages(seq, 0)});
  if (seq.num_remaining() == 0) park_job(seq, "");
}

void Scheduler::advance_job(Sequence& seq, TimePoint now) {
  seq.job_seconds = std::chrono::duration<double>(now - seq.admitted).count();
  if (seq.num_remaining() > 0) return report_job(seq, {});
  park_job(seq, "");
}

// The job's last report. Its pages stay until their release; a job that was waiting has none and is removed at once.
void Scheduler::park_job(Sequence& seq, const std::string& error) {
  if (seq.phase == Phase::kParked) return;
  report_job(seq, {.finished = true, .error = error});
  if (error.empty()) counters_.prompt_tokens_total += seq.job_tokens;
  if (seq.phase == Phase::kWaiting) {
    waiting_.erase(seq.handle);
    sequences_.erase(seq.handle);
    return;
  }
  drop_mirror(seq);
  std::erase(ranks_[size_t(seq.rank)]->running, &seq);
  seq.phase = Phase::kParked;
  parked_.emplace(seq.handle, &seq);
}

void Scheduler::release_job(uint64_t handle) {
  CHECK(num_in_flight_ == 0, "a job's pages are released during a step");
  const auto it = sequences_.find(handle);
  if (it == sequences_.end() || !it->second.is_job()) return;
  park_job(it->second, "its pages were released before it was finished");
  if (!parked_.erase(handle)) return;
  release_pages(sequences_.at(handle));
  sequences_.erase(handle);
}

void Scheduler::report_job(const Sequence& seq, PrefillProgress progress) {
  progress.num_tokens_ready = seq.num_computed;
  progress.num_cached_tokens = seq.num_cached_tokens;
  progress.queue_seconds = seq.prefill.queue_seconds;
  progress.compute_seconds = seq.job_seconds;
  progress_.push_back({seq.handle, std::move(progress)});
}

std::vector<JobProgress> Scheduler::take_progress() {
  return std::exchange(progress_, {});
}

}  // namespace moectl
