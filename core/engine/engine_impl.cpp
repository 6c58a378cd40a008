// EngineImpl: the scheduler thread owns the Scheduler and the sinks and loops over: take submissions, plan, launch,
// collect, deliver. Ranks compute behind their RankHandles. With two steps in flight (SchedulerConfig) the step
// collected is the one before the step just launched. Callers access only the inbox and the published statistics, under
// short locks; so do the results of a PrefillSource, which may come from any thread, even after the engine's end: the
// mailbox is shared with them.
#include "core/engine/engine_impl.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/engine/rank_group.h"

namespace moectl {
namespace {

using Clock = std::chrono::steady_clock;

struct Submission {
  uint64_t handle = 0;
  Clock::time_point time;
  GenerateRequest request;
  OutputSink sink;
  PrefillJob job;  // instead of the request, when `job_sink` is set
  PrefillSink job_sink;
};

struct RemoteResult {
  uint64_t remote = 0;
  RemotePrefillResult result;
};

struct Inbox {
  std::vector<Submission> submissions;
  std::vector<uint64_t> cancels, releases;
  std::vector<RemoteResult> remote_results;
  std::vector<ExpertLoadSink> load_sinks;
  bool flush = false;
  bool empty() const {
    return submissions.empty() && cancels.empty() && releases.empty() && remote_results.empty() && load_sinks.empty() &&
           !flush;
  }
};

struct Mailbox {
  std::mutex mutex;
  std::condition_variable wake;
  Inbox inbox;

  void post(const std::function<void(Inbox&)>& change) {
    {
      std::lock_guard lock(mutex);
      change(inbox);
    }
    wake.notify_one();
  }
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(ModelInfo info, SchedulerConfig scheduler, std::vector<std::unique_ptr<RankHandle>> ranks,
             std::shared_ptr<PrefillSource> source, std::chrono::milliseconds step_timeout);
  ~EngineImpl() override;

  const ModelInfo& info() const override { return info_; }
  uint64_t submit(GenerateRequest request, OutputSink sink) override;
  void cancel(uint64_t handle) override;
  EngineStats stats() const override;
  void read_expert_load(ExpertLoadSink sink) override;
  void drain() override;
  void flush_prefix_cache() override;
  uint64_t prefill(PrefillJob job, PrefillSink sink) override;
  void release_prefill(uint64_t handle) override;
  KvLayout kv_layout() const override;
  std::vector<KvPool> kv_pools() const override;

 private:
  uint64_t take(Submission submission);
  void run();
  bool take_inbox(Inbox& inbox);
  void keep_sinks(Inbox& inbox);
  void apply(Inbox inbox);
  void step();
  void launch(StepPlan plan);
  void collect();
  void read_load_between_steps();
  void deliver_load(std::vector<ExpertLoadSink>& sinks, const ExpertLoad& load);
  void start_remotes();
  void fail(const std::string& reason);
  void end_everything(FinishReason reason, const std::string& error);
  void deliver();
  void call_sink(Emission emission);
  void call_job_sink(JobProgress progress);
  template <class Sink, class Value>
  void call(std::map<uint64_t, Sink>& sinks, uint64_t handle, Value value, bool last);
  void publish(bool progressed);

  const ModelInfo info_;
  const std::shared_ptr<PrefillSource> source_;  // may be null
  RankGroup ranks_;

  // Scheduler thread.
  Scheduler scheduler_;
  struct LaunchedStep {
    StepPlan plan;
    bool follows = false;  // the step before was launched without a pause between them
  };
  std::deque<LaunchedStep> in_flight_;  // oldest first
  double busy_seconds_ = 0, idle_seconds_ = 0;
  std::map<uint64_t, OutputSink> sinks_;
  std::map<uint64_t, PrefillSink> job_sinks_;
  std::vector<ExpertLoadSink> load_sinks_, load_sinks_in_flight_;  // for the next step; of a launched one
  bool parked_ = false;  // the last plan was empty: nothing to do until the inbox fills or a deadline passes
  bool paused_ = true;   // there was no step to run since the last one

  // Shared, under mail_->mutex.
  const std::shared_ptr<Mailbox> mail_ = std::make_shared<Mailbox>();
  uint64_t next_handle_ = 1;
  bool draining_ = false, stop_ = false;
  EngineStats stats_;  // as of the last step
  bool working_ = false;
  mutable Clock::time_point last_progress_;  // while working
  mutable int64_t layers_seen_ = 0;          // of all ranks, by the last stats()

  std::thread thread_;
};

EngineImpl::EngineImpl(ModelInfo info, SchedulerConfig scheduler, std::vector<std::unique_ptr<RankHandle>> ranks,
                       std::shared_ptr<PrefillSource> source, std::chrono::milliseconds step_timeout)
    : info_(std::move(info)),
      source_(std::move(source)),
      ranks_(std::move(ranks), scheduler.num_ranks, step_timeout),
      scheduler_(std::move(scheduler), source_ ? [source = source_.get()](uint64_t remote) { source->cancel(remote); }
                                               : std::function<void(uint64_t)>()) {
  ranks_.wait_until_built();
  if (source_) source_->attach(kv_layout(), kv_pools());
  stats_ = scheduler_.stats();
  thread_ = std::thread([this] { run(); });
}

EngineImpl::~EngineImpl() {
  {
    std::lock_guard lock(mail_->mutex);
    stop_ = true;
  }
  mail_->wake.notify_all();
  if (thread_.joinable()) thread_.join();
}

// ------------------------------------------------------------------------------------------------ callers

uint64_t EngineImpl::submit(GenerateRequest request, OutputSink sink) {
  CHECK(sink, "a request without a sink");
  check_request(request, scheduler_.config());
  return take({.request = std::move(request), .sink = std::move(sink)});
}

uint64_t EngineImpl::prefill(PrefillJob job, PrefillSink sink) {
  CHECK(sink, "a prefill job without a sink");
  check_job(job, scheduler_.config());
  return take({.job = std::move(job), .job_sink = std::move(sink)});
}

uint64_t EngineImpl::take(Submission submission) {
  submission.time = Clock::now();
  uint64_t handle = 0;
  {
    std::lock_guard lock(mail_->mutex);
    if (stats_.failed) throw Error(Code::kUnavailable, "the engine has failed: " + stats_.failure);
    if (draining_ || stop_) throw Error(Code::kUnavailable, "the engine is draining and takes no new requests");
    handle = submission.handle = next_handle_++;
    if (!working_) last_progress_ = submission.time;
    working_ = true;
    mail_->inbox.submissions.push_back(std::move(submission));
  }
  mail_->wake.notify_one();
  return handle;
}

void EngineImpl::cancel(uint64_t handle) {
  mail_->post([&](Inbox& inbox) { inbox.cancels.push_back(handle); });
}

void EngineImpl::release_prefill(uint64_t handle) {
  mail_->post([&](Inbox& inbox) { inbox.releases.push_back(handle); });
}

// One layout for all data-parallel ranks: a peer may read pages of any of them.
KvLayout EngineImpl::kv_layout() const {
  const auto layout_of = [&](const KvPool& pool) {
    return KvLayout{.model_hash = info_.model_hash,
                    .kv_format = info_.kv_format,
                    .num_lanes = pool.num_lanes,
                    .page_size = pool.page_size,
                    .page_bytes = pool.page_bytes,
                    .token_rows = pool.token_rows};
  };
  const std::vector<KvPool> pools = kv_pools();
  const KvLayout layout = layout_of(pools[0]);
  for (const KvPool& pool : pools) CHECK(layout_of(pool) == layout, "the ranks' KV layouts differ");
  return layout;
}

std::vector<KvPool> EngineImpl::kv_pools() const {
  std::vector<KvPool> pools;
  const size_t tp_size = size_t(ranks_.tp_size());
  for (size_t first = 0; first < ranks_.size(); first += tp_size) {
    std::vector<KvPool> group;
    for (size_t r = first; r < first + tp_size; ++r) group.push_back(ranks_[r].kv_pool());
    pools.push_back(pool_of_group(group));
  }
  return pools;
}

EngineStats EngineImpl::stats() const {
  std::lock_guard lock(mail_->mutex);
  EngineStats stats = stats_;
  stats.num_waiting += int64_t(mail_->inbox.submissions.size());
  // A layer is progress too: one step of a large model may take minutes on a CPU.
  const int64_t layers = ranks_.num_layers_done();
  if (std::exchange(layers_seen_, layers) != layers) last_progress_ = Clock::now();
  if (working_) stats.seconds_since_progress = std::chrono::duration<double>(Clock::now() - last_progress_).count();
  return stats;
}

void EngineImpl::read_expert_load(ExpertLoadSink sink) {
  CHECK(sink, "a reader of the load without a sink");
  mail_->post([&](Inbox& inbox) { inbox.load_sinks.push_back(std::move(sink)); });
}

void EngineImpl::drain() {
  std::lock_guard lock(mail_->mutex);
  draining_ = true;
}

void EngineImpl::flush_prefix_cache() {
  mail_->post([](Inbox& inbox) { inbox.flush = true; });
}

// ------------------------------------------------------------------------------------------------ scheduler thread

void EngineImpl::run() {
  Inbox inbox;
  while (take_inbox(inbox)) {
    bool progressed = false;
    try {
      if (stats_.failed) {  // no step any more: a rank may hang
        keep_sinks(inbox);
        end_everything(FinishReason::kError, stats_.failure);
      } else {
        apply(std::exchange(inbox, {}));
        const int64_t before = scheduler_.stats().num_steps_total;
        if (scheduler_.has_work() || !in_flight_.empty() || !load_sinks_.empty()) step();
        progressed = scheduler_.stats().num_steps_total > before;
      }
    } catch (const std::exception& e) {
      fail(e.what());
    }
    deliver();
    publish(progressed);
  }
  keep_sinks(inbox);
  end_everything(FinishReason::kCancelled, "");
}

// Parks until there is something to do; false when the engine is to end (`inbox` then holds the last messages).
bool EngineImpl::take_inbox(Inbox& inbox) {
  const auto deadline = parked_ ? scheduler_.next_deadline() : std::nullopt;
  std::unique_lock lock(mail_->mutex);
  const auto due = [&] {
    return stop_ || !mail_->inbox.empty() || (scheduler_.has_work() && !parked_) || !in_flight_.empty() ||
           !load_sinks_.empty();
  };
  if (deadline)
    mail_->wake.wait_until(lock, *deadline, due);
  else
    mail_->wake.wait(lock, due);
  inbox = std::exchange(mail_->inbox, {});
  if (!working_) last_progress_ = Clock::now();
  working_ = true;
  return !stop_;
}

void EngineImpl::keep_sinks(Inbox& inbox) {
  for (Submission& s : inbox.submissions) {
    if (s.job_sink)
      job_sinks_.emplace(s.handle, std::move(s.job_sink));
    else
      sinks_.emplace(s.handle, std::move(s.sink));
  }
  std::ranges::move(inbox.load_sinks, std::back_inserter(load_sinks_));
}

void EngineImpl::apply(Inbox inbox) {
  keep_sinks(inbox);
  for (Submission& s : inbox.submissions) {
    if (job_sinks_.contains(s.handle))
      scheduler_.submit_job(s.handle, std::move(s.job), s.time);
    else
      scheduler_.submit(s.handle, std::move(s.request), s.time);
  }
  for (RemoteResult& r : inbox.remote_results) scheduler_.remote_done(r.remote, std::move(r.result));
  for (uint64_t handle : inbox.cancels) scheduler_.cancel(handle);
  for (uint64_t handle : inbox.releases) scheduler_.release_job(handle);
  if (inbox.flush) scheduler_.flush_prefix_cache();
}

void EngineImpl::step() {
  StepPlan plan = scheduler_.plan(Clock::now());
  const bool launches = !plan.empty();
  parked_ = !launches && in_flight_.empty();
  if (parked_) {
    CHECK(!scheduler_.has_work() || scheduler_.waits_for_others(), "requests are left that no step advances");
    start_remotes();
    return read_load_between_steps();
  }
  if (launches) launch(std::move(plan));
  start_remotes();
  deliver();  // a job's cached pages can travel while the others are computed
  if (!launches || int(in_flight_.size()) == scheduler_.config().max_steps_in_flight) collect();
}

void EngineImpl::launch(StepPlan plan) {
  const bool read_load = !load_sinks_.empty() && load_sinks_in_flight_.empty();
  if (read_load) load_sinks_in_flight_ = std::exchange(load_sinks_, {});
  for (RankStepPlan& rank : plan.ranks) rank.read_expert_load = read_load;
  ranks_.launch(plan);
  const bool compute = plan.ranks.front().compute;
  in_flight_.push_back({.plan = std::move(plan), .follows = compute && !std::exchange(paused_, false)});
}

// Nothing is in flight: the ranks answer at once.
void EngineImpl::read_load_between_steps() {
  if (load_sinks_.empty()) return;
  launch({.ranks = std::vector(ranks_.size() / size_t(ranks_.tp_size()), RankStepPlan{.compute = false})});
  collect();
}

// Waits for the oldest step and hands its results to the scheduler.
void EngineImpl::collect() {
  std::vector<RankStepResult> of_ranks = ranks_.wait();
  const LaunchedStep step = std::move(in_flight_.front());
  in_flight_.pop_front();
  const RankStepPlan& plan = step.plan.ranks.front();
  if (plan.read_expert_load) {
    ExpertLoad load = of_ranks.front().expert_load.value();
    for (size_t r = 1; r < ranks_.size(); ++r) add(load, of_ranks[r].expert_load.value());
    deliver_load(load_sinks_in_flight_, load);
  }
  if (!plan.compute) return;
  StepResult result;
  for (size_t r = 0; r < ranks_.size(); r += size_t(ranks_.tp_size())) result.ranks.push_back(std::move(of_ranks[r]));
  // Ranks advance layer by layer together, so one rank's clock tells the time of the step.
  busy_seconds_ += result.ranks[0].busy_seconds;
  if (step.follows) idle_seconds_ += result.ranks[0].idle_seconds;
  scheduler_.complete(step.plan, std::move(result), Clock::now());
}

// Never throws: when a source cannot begin, its prefill has failed and this engine computes the prompt.
void EngineImpl::start_remotes() {
  for (RemotePrefill& start : scheduler_.take_remote_starts()) {
    const uint64_t remote = start.handle;
    const auto done = [mail = mail_, remote](RemotePrefillResult result) {
      mail->post([&](Inbox& inbox) { inbox.remote_results.push_back({remote, std::move(result)}); });
    };
    try {
      source_->start(std::move(start), done);
    } catch (const std::exception& e) {
      done({.error = e.what()});
    } catch (...) {
      done({.error = "the prefill source threw"});
    }
  }
}

// A failed step ends the instance (docs/architecture.md, decision 7). Everything in flight ends with an error; no
// request is taken any more.
void EngineImpl::fail(const std::string& reason) {
  bool first = false;
  {
    std::lock_guard lock(mail_->mutex);
    first = !std::exchange(stats_.failed, true);
    if (first) stats_.failure = reason;
  }
  if (first) log::error("the engine failed: {}", reason);
  in_flight_.clear();
  end_everything(FinishReason::kError, reason);
}

// Every sink gets its terminal output, also those of requests that never reached the scheduler.
void EngineImpl::end_everything(FinishReason reason, const std::string& error) {
  scheduler_.end_all(reason, error);
  deliver();
  while (!sinks_.empty()) call_sink({sinks_.begin()->first, {.finish = reason, .error = error}});
  deliver_load(load_sinks_in_flight_, {});
  deliver_load(load_sinks_, {});
  while (!job_sinks_.empty())
    call_job_sink({job_sinks_.begin()->first, {.finished = true, .error = error.empty() ? "cancelled" : error}});
}

void EngineImpl::deliver_load(std::vector<ExpertLoadSink>& sinks, const ExpertLoad& load) {
  for (const ExpertLoadSink& sink : std::exchange(sinks, {})) {
    try {
      sink(load);
    } catch (const std::exception& e) {
      log::warn("a reader of the experts' load threw: {}", e.what());
    }
  }
}

void EngineImpl::deliver() {
  for (;;) {
    std::vector<Emission> emissions = scheduler_.take_emissions();
    std::vector<JobProgress> progress = scheduler_.take_progress();
    if (emissions.empty() && progress.empty()) return;
    for (JobProgress& p : progress) call_job_sink(std::move(p));
    for (Emission& e : emissions) call_sink(std::move(e));
  }
}

void EngineImpl::call_sink(Emission emission) {
  const bool last = emission.output.finish != FinishReason::kNone;
  call(sinks_, emission.handle, std::move(emission.output), last);
}

void EngineImpl::call_job_sink(JobProgress progress) {
  const bool last = progress.progress.finished;
  call(job_sinks_, progress.handle, std::move(progress.progress), last);
}

// A step may be in flight: the scheduler is not touched.
template <class Sink, class Value>
void EngineImpl::call(std::map<uint64_t, Sink>& sinks, uint64_t handle, Value value, bool last) {
  const auto it = sinks.find(handle);
  if (it == sinks.end()) return;
  Sink ended;
  if (last) {
    ended = std::move(it->second);
    sinks.erase(it);
  }
  try {
    (last ? ended : it->second)(std::move(value));
    return;
  } catch (const Error& e) {
    if (e.code() != Code::kCancelled)
      log::warn("request {}: its sink threw ({}); the request is cancelled", handle, e.what());
  } catch (const std::exception& e) {
    log::warn("request {}: its sink threw ({}); the request is cancelled", handle, e.what());
  } catch (...) {
    log::warn("request {}: its sink threw; the request is cancelled", handle);
  }
  sinks.erase(handle);
  cancel(handle);
}

void EngineImpl::publish(bool progressed) {
  EngineStats stats = scheduler_.stats();
  std::lock_guard lock(mail_->mutex);
  stats.failed = stats_.failed;
  stats.failure = std::move(stats_.failure);
  stats.busy_seconds_total = busy_seconds_;
  stats.idle_seconds_total = idle_seconds_;
  stats_ = std::move(stats);
  const bool working = (scheduler_.has_work() && !parked_) || !in_flight_.empty() || !mail_->inbox.empty();
  if (progressed || !working_) last_progress_ = Clock::now();
  working_ = working;
  paused_ |= !working;
}

}  // namespace

std::unique_ptr<Engine> start_engine(ModelInfo info, SchedulerConfig scheduler,
                                     std::vector<std::unique_ptr<RankHandle>> ranks,
                                     std::shared_ptr<PrefillSource> source, std::chrono::milliseconds step_timeout) {
  return std::make_unique<EngineImpl>(std::move(info), std::move(scheduler), std::move(ranks), std::move(source),
                                      step_timeout);
}

}  // namespace moectl
