// EngineImpl: the threads behind engine.h. The scheduler thread owns the Scheduler and the sinks and runs the loop
// take submissions -> plan -> launch -> collect -> deliver; each RankWorker computes on its own thread. Callers only
// touch the inbox and the published statistics, both under short locks.
#include "core/engine/engine.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/engine/rank_worker.h"
#include "core/engine/scheduler.h"

namespace moectl {
namespace {

using Clock = std::chrono::steady_clock;

struct Submission {
  uint64_t handle = 0;
  GenerateRequest request;
  OutputSink sink;
};

struct Inbox {
  std::vector<Submission> submissions;
  std::vector<uint64_t> cancels;
  bool flush = false;
  bool empty() const { return submissions.empty() && cancels.empty() && !flush; }
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(ModelInfo info, Config config, SchedulerConfig scheduler, std::vector<RankSetup> ranks);
  ~EngineImpl() override;

  const ModelInfo& info() const override { return info_; }
  uint64_t submit(GenerateRequest request, OutputSink sink) override;
  void cancel(uint64_t handle) override;
  EngineStats stats() const override;
  void drain() override;
  void flush_prefix_cache() override;

 private:
  void run();
  bool take_inbox(Inbox& inbox);
  void apply(Inbox inbox);
  void step();
  void fail(const std::string& reason);
  void end_everything(FinishReason reason, const std::string& error);
  void deliver();
  void call_sink(Emission emission);
  void publish(bool progressed);

  const ModelInfo info_;
  const Config config_;
  std::vector<std::unique_ptr<RankWorker>> workers_;

  // Scheduler thread.
  Scheduler scheduler_;
  std::map<uint64_t, OutputSink> sinks_;

  // Shared.
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Inbox inbox_;
  uint64_t next_handle_ = 1;
  bool draining_ = false, stop_ = false;
  EngineStats stats_;  // as of the last step
  bool working_ = false;
  Clock::time_point last_progress_;  // while working

  std::thread thread_;
};

EngineImpl::EngineImpl(ModelInfo info, Config config, SchedulerConfig scheduler, std::vector<RankSetup> ranks)
    : info_(std::move(info)), config_(std::move(config)), scheduler_(std::move(scheduler)) {
  for (RankSetup& rank : ranks) {
    rank.config = &config_;
    workers_.push_back(std::make_unique<RankWorker>(std::move(rank)));
  }
  std::string failure;
  for (auto& worker : workers_) {
    const std::string why = worker->wait();
    if (failure.empty() || !worker->failed_by_peer()) failure = why.empty() ? failure : why;
  }
  if (!failure.empty()) throw Error(Code::kBadConfig, "the model could not be set up: " + failure);
  stats_ = scheduler_.stats();
  thread_ = std::thread([this] { run(); });
}

EngineImpl::~EngineImpl() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

// ------------------------------------------------------------------------------------------------ callers

uint64_t EngineImpl::submit(GenerateRequest request, OutputSink sink) {
  CHECK(sink, "a request without a sink");
  check_request(request, scheduler_.config());
  uint64_t handle = 0;
  {
    std::lock_guard lock(mutex_);
    if (stats_.failed) throw Error(Code::kUnavailable, "the engine has failed: " + stats_.failure);
    if (draining_ || stop_) throw Error(Code::kUnavailable, "the engine is draining and takes no new requests");
    handle = next_handle_++;
    inbox_.submissions.push_back({handle, std::move(request), std::move(sink)});
    if (!working_) last_progress_ = Clock::now();
    working_ = true;
  }
  wake_.notify_one();
  return handle;
}

void EngineImpl::cancel(uint64_t handle) {
  {
    std::lock_guard lock(mutex_);
    inbox_.cancels.push_back(handle);
  }
  wake_.notify_one();
}

EngineStats EngineImpl::stats() const {
  std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.num_waiting += int64_t(inbox_.submissions.size());
  if (working_) stats.seconds_since_progress = std::chrono::duration<double>(Clock::now() - last_progress_).count();
  return stats;
}

void EngineImpl::drain() {
  std::lock_guard lock(mutex_);
  draining_ = true;
}

void EngineImpl::flush_prefix_cache() {
  {
    std::lock_guard lock(mutex_);
    inbox_.flush = true;
  }
  wake_.notify_one();
}

// ------------------------------------------------------------------------------------------------ scheduler thread

void EngineImpl::run() {
  Inbox inbox;
  while (take_inbox(inbox)) {
    bool progressed = false;
    try {
      apply(std::exchange(inbox, {}));
      const int64_t before = scheduler_.stats().num_steps_total;
      if (scheduler_.has_work()) step();
      progressed = scheduler_.stats().num_steps_total > before;
    } catch (const std::exception& e) {
      fail(e.what());
    }
    deliver();
    publish(progressed);
  }
  for (Submission& s : inbox.submissions) sinks_.emplace(s.handle, std::move(s.sink));
  end_everything(FinishReason::kCancelled, "");
}

// Parks until there is something to do; false when the engine is to end (`inbox` then holds what came last).
bool EngineImpl::take_inbox(Inbox& inbox) {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [&] { return stop_ || !inbox_.empty() || scheduler_.has_work(); });
  inbox = std::exchange(inbox_, {});
  return !stop_;
}

void EngineImpl::apply(Inbox inbox) {
  for (Submission& s : inbox.submissions) sinks_.emplace(s.handle, std::move(s.sink));
  for (Submission& s : inbox.submissions) scheduler_.submit(s.handle, std::move(s.request));
  for (uint64_t handle : inbox.cancels) scheduler_.cancel(handle);
  if (inbox.flush) scheduler_.flush_prefix_cache();
}

void EngineImpl::step() {
  const StepPlan plan = scheduler_.plan(Clock::now());
  if (plan.empty()) {
    CHECK(!scheduler_.has_work(), "requests are left that no step advances");
    return;
  }
  for (size_t i = 0; i < workers_.size(); ++i) workers_[i]->launch(plan.ranks[i]);
  std::string failure;
  bool by_peer = true;
  for (auto& worker : workers_) {  // all, even after a failure: the plan must outlive the step
    const std::string why = worker->wait();
    if (why.empty() || !by_peer) continue;
    failure = why;
    by_peer = worker->failed_by_peer();
  }
  if (!failure.empty()) return fail(failure);
  std::vector<std::vector<ChunkResult>> results;
  for (auto& worker : workers_) results.push_back(worker->take_results());
  scheduler_.complete(plan, std::move(results));
}

// Decision 8: a failed step ends the instance. Everything in flight ends with an error; nothing new is taken.
void EngineImpl::fail(const std::string& reason) {
  bool first = false;
  {
    std::lock_guard lock(mutex_);
    first = !std::exchange(stats_.failed, true);
    if (first) stats_.failure = reason;
  }
  if (first) log::error("the engine failed: {}", reason);
  end_everything(FinishReason::kError, "the engine failed: " + reason);
}

// Every sink hears the end, also of requests that never reached the scheduler.
void EngineImpl::end_everything(FinishReason reason, const std::string& error) {
  scheduler_.end_all(reason, error);
  deliver();
  while (!sinks_.empty()) call_sink({sinks_.begin()->first, {.finish = reason, .error = error}});
}

void EngineImpl::deliver() {
  for (;;) {
    std::vector<Emission> emissions = scheduler_.take_emissions();
    if (emissions.empty()) return;
    for (Emission& e : emissions) call_sink(std::move(e));
  }
}

void EngineImpl::call_sink(Emission emission) {
  const auto it = sinks_.find(emission.handle);
  if (it == sinks_.end()) return;
  const bool last = emission.output.finish != FinishReason::kNone;
  OutputSink ended;
  if (last) {
    ended = std::move(it->second);
    sinks_.erase(it);
  }
  try {
    (last ? ended : it->second)(std::move(emission.output));
    return;
  } catch (const std::exception& e) {
    log::warn("request {}: its sink threw ({}); the request is cancelled", emission.handle, e.what());
  } catch (...) {
    log::warn("request {}: its sink threw; the request is cancelled", emission.handle);
  }
  sinks_.erase(emission.handle);
  scheduler_.cancel(emission.handle);
}

void EngineImpl::publish(bool progressed) {
  EngineStats stats = scheduler_.stats();
  std::lock_guard lock(mutex_);
  stats.failed = stats_.failed;
  stats.failure = std::move(stats_.failure);
  stats_ = std::move(stats);
  const bool working = scheduler_.has_work() || !inbox_.empty();
  if (progressed || !working_) last_progress_ = Clock::now();
  working_ = working;
}

}  // namespace

std::unique_ptr<Engine> start_engine(ModelInfo info, Config config, SchedulerConfig scheduler,
                                     std::vector<RankSetup> ranks) {
  return std::make_unique<EngineImpl>(std::move(info), std::move(config), std::move(scheduler), std::move(ranks));
}

}  // namespace moectl
