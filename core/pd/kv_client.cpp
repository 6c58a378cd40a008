#include "core/pd/kv_client.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "core/base/check.h"
#include "core/base/hmac.h"
#include "core/base/log.h"
#include "core/pd/kv_peer.h"

namespace moectl {

using transfer::TransferPlan;
using Clock = std::chrono::steady_clock;

struct RemotePrefillSource::Impl {
  struct Request {
    RemotePrefill want;
    std::function<void(RemotePrefillResult)> done;
    Clock::time_point deadline, attempt_deadline;
    size_t next_worker = 0;
    std::string worker;  // tried now, or last
    std::string errors;  // of the workers tried so far
    std::shared_ptr<KvAttempt> attempt;
    std::shared_ptr<KvPeer> peer;
  };
  using RequestMap = std::map<uint64_t, Request>;
  struct PeerEntry {
    std::shared_ptr<KvPeer> peer;
    Clock::time_point last_used;
    // Requests share a peer, but never own it last: its end waits for its threads, which may want our lock.
    bool unused() const { return peer.use_count() == 1 && peer->idle(); }
  };

  explicit Impl(KvClientOptions o) : options(std::move(o)) {}

  // One function for each thing that can happen; all on the deciding thread.
  void run();
  void step(std::unique_lock<std::mutex>& lock);
  void on_outcome(std::unique_lock<std::mutex>& lock, const KvOutcome& outcome);
  void on_timeout(std::unique_lock<std::mutex>& lock, uint64_t handle);
  void try_next_worker(std::unique_lock<std::mutex>& lock, uint64_t handle);
  std::shared_ptr<KvPeer> peer_for(const std::string& endpoint);
  void drop_idle_peers(Clock::time_point now);
  std::shared_ptr<KvAttempt> make_attempt(const Request& request);
  void finish(std::unique_lock<std::mutex>& lock, RequestMap::iterator it, RemotePrefillResult result);
  void note_failure(Request& request, const std::string& cause, const std::string& error);
  TransferPlan plan_of(const RemotePrefill& want) const;
  Clock::time_point next_deadline() const;
  void push(KvOutcome outcome);

  const KvClientOptions options;
  KvLayout layout;  // set by attach(), before any request
  std::vector<KvPool> pools;

  mutable std::mutex mutex;
  std::condition_variable changed, done_returned;
  bool stop = false;
  RequestMap requests;
  std::deque<uint64_t> started;
  std::deque<KvOutcome> outcomes;
  std::optional<uint64_t> calling_done;  // the request whose `done` runs right now
  KvClientStats stats;
  uint64_t next_epoch = 1;

  std::map<std::string, PeerEntry> peers;  // the deciding thread's
  std::thread thread;
};

// ------------------------------------------------------------------------------------------------ any thread
RemotePrefillSource::RemotePrefillSource(KvClientOptions options) {
  if (options.secret.empty())
    throw Error(Code::kBadConfig,
                "a decode worker needs the cluster's secret to use prefill workers (--cluster-secret-file)");
  impl_ = std::make_unique<Impl>(std::move(options));
  impl_->thread = std::thread([impl = impl_.get()] { impl->run(); });
}

RemotePrefillSource::~RemotePrefillSource() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stop = true;
  }
  impl_->changed.notify_all();
  impl_->thread.join();
  for (auto& [handle, request] : impl_->requests)
    if (request.attempt) request.attempt->close();
  impl_->requests.clear();
  impl_->peers.clear();
}

void RemotePrefillSource::attach(KvLayout layout, std::vector<KvPool> pools) {
  std::lock_guard lock(impl_->mutex);
  impl_->layout = std::move(layout);
  impl_->pools = std::move(pools);
}

void RemotePrefillSource::start(RemotePrefill request, std::function<void(RemotePrefillResult)> done) {
  {
    std::lock_guard lock(impl_->mutex);
    const uint64_t handle = request.handle;
    CHECK(!impl_->requests.contains(handle), "prefill {} is under way already", handle);
    const auto deadline = Clock::now() + impl_->options.total_timeout;
    impl_->requests.emplace(
        handle,
        Impl::Request{
            .want = std::move(request), .done = std::move(done), .deadline = deadline, .attempt_deadline = deadline});
    impl_->started.push_back(handle);
  }
  impl_->changed.notify_all();
}

void RemotePrefillSource::cancel(uint64_t handle) {
  std::unique_lock lock(impl_->mutex);
  if (const auto it = impl_->requests.find(handle); it != impl_->requests.end()) {
    const auto attempt = it->second.attempt;
    const auto peer = it->second.peer;
    impl_->requests.erase(it);
    ++impl_->stats.num_cancelled;
    lock.unlock();
    if (!attempt) return;
    attempt->close();
    if (peer) peer->cancel(*attempt);
    return;
  }
  if (std::this_thread::get_id() == impl_->thread.get_id()) return;  // from within `done`
  impl_->done_returned.wait(lock, [&] { return impl_->calling_done != handle; });
}

KvClientStats RemotePrefillSource::stats() const {
  std::lock_guard lock(impl_->mutex);
  KvClientStats stats = impl_->stats;
  stats.num_active = int64_t(impl_->requests.size());
  return stats;
}

void RemotePrefillSource::Impl::push(KvOutcome outcome) {
  {
    std::lock_guard lock(mutex);
    outcomes.push_back(std::move(outcome));
  }
  changed.notify_all();
}

// ------------------------------------------------------------------------------------------------ the deciding thread
void RemotePrefillSource::Impl::run() {
  std::unique_lock lock(mutex);
  while (!stop) {
    try {
      changed.wait_until(lock, next_deadline(), [this] { return stop || !started.empty() || !outcomes.empty(); });
      if (!stop) step(lock);
    } catch (const std::exception& e) {
      log::error("kv: {}", e.what());
      if (!lock.owns_lock()) lock.lock();
    }
  }
}

void RemotePrefillSource::Impl::step(std::unique_lock<std::mutex>& lock) {
  while (!outcomes.empty()) {
    const KvOutcome outcome = std::move(outcomes.front());
    outcomes.pop_front();
    on_outcome(lock, outcome);
  }
  while (!started.empty()) {
    const uint64_t handle = started.front();
    started.pop_front();
    try_next_worker(lock, handle);
  }
  const auto now = Clock::now();
  std::vector<uint64_t> late;
  for (const auto& [handle, request] : requests)
    if (std::min(request.deadline, request.attempt_deadline) <= now) late.push_back(handle);
  for (uint64_t handle : late) on_timeout(lock, handle);
  lock.unlock();
  drop_idle_peers(now);
  lock.lock();
}

Clock::time_point RemotePrefillSource::Impl::next_deadline() const {
  auto next = Clock::now() + options.idle_timeout;
  for (const auto& [handle, request] : requests) next = std::min({next, request.deadline, request.attempt_deadline});
  return next;
}

void RemotePrefillSource::Impl::note_failure(Request& request, const std::string& cause, const std::string& error) {
  ++stats.failures[cause];
  request.errors += fmt::format("{}{}: {}", request.errors.empty() ? "" : "; ", request.worker, error);
  request.attempt = nullptr;
  request.peer = nullptr;
  request.attempt_deadline = request.deadline;
  log::warn(log::About{request.want.request_id}, "kv: prefill at {} failed: {}", request.worker, error);
}

void RemotePrefillSource::Impl::on_outcome(std::unique_lock<std::mutex>& lock, const KvOutcome& outcome) {
  const auto it = requests.find(outcome.attempt->handle);
  if (it == requests.end() || it->second.attempt != outcome.attempt) return;  // cancelled, or timed out
  Request& request = it->second;
  if (!outcome.ok) {
    note_failure(request, outcome.cause, outcome.error);
    return try_next_worker(lock, outcome.attempt->handle);
  }
  ++stats.num_done;
  stats.num_bytes += outcome.num_bytes;
  finish(lock, it,
         {.ok = true,
          .worker = request.worker,
          .num_bytes = outcome.num_bytes,
          .num_cached_tokens = int(outcome.done.num_cached_tokens),
          .queue_seconds = outcome.done.queue_seconds,
          .compute_seconds = outcome.done.compute_seconds,
          .transfer_seconds = outcome.done.transfer_seconds});
}

void RemotePrefillSource::Impl::on_timeout(std::unique_lock<std::mutex>& lock, uint64_t handle) {
  const auto it = requests.find(handle);
  if (it == requests.end()) return;
  Request& request = it->second;
  if (request.attempt) {
    if (!request.attempt->close()) {  // it has ended: the outcome is on its way
      request.deadline = request.attempt_deadline = Clock::time_point::max();
      return;
    }
    request.peer->cancel(*request.attempt);
    note_failure(request, "timeout", "not done in time");
  }
  try_next_worker(lock, handle);
}

void RemotePrefillSource::Impl::try_next_worker(std::unique_lock<std::mutex>& lock, uint64_t handle) {
  for (;;) {
    auto it = requests.find(handle);
    if (it == requests.end()) return;
    const bool late = Clock::now() >= it->second.deadline;
    if (late || it->second.next_worker >= it->second.want.workers.size()) {
      std::string why = it->second.errors;
      if (late) why += fmt::format("{}over the limit of {} ms", why.empty() ? "" : "; ", options.total_timeout.count());
      if (why.empty()) why = "no prefill worker was named";
      return finish(lock, it, {.worker = it->second.worker, .error = why});
    }
    const std::string endpoint = it->second.worker = it->second.want.workers[it->second.next_worker++];

    std::shared_ptr<KvPeer> peer;
    std::string error;
    lock.unlock();
    try {
      peer = peer_for(endpoint);
    } catch (const std::exception& e) {
      error = e.what();
    }
    lock.lock();
    it = requests.find(handle);  // it may have been cancelled
    if (it == requests.end()) return;
    Request& request = it->second;
    if (!peer) {
      note_failure(request, "limit", error);
      continue;
    }
    std::shared_ptr<KvAttempt> attempt;
    try {
      attempt = make_attempt(request);
    } catch (const std::exception& e) {  // no worker can help
      return finish(lock, it, {.worker = endpoint, .error = e.what()});
    }
    request.attempt = attempt;
    request.peer = peer;
    request.attempt_deadline = std::min(request.deadline, Clock::now() + options.attempt_timeout);
    lock.unlock();
    peer->submit(std::move(attempt));
    lock.lock();
    return;
  }
}

// Connections are few; the one unused for longest makes room.
std::shared_ptr<KvPeer> RemotePrefillSource::Impl::peer_for(const std::string& endpoint) {
  const auto now = Clock::now();
  if (const auto it = peers.find(endpoint); it != peers.end()) {
    it->second.last_used = now;
    return it->second.peer;
  }
  parse_endpoint(endpoint);
  if (int(peers.size()) >= options.max_peers) {
    auto oldest = peers.end();
    for (auto it = peers.begin(); it != peers.end(); ++it)
      if (it->second.unused() && (oldest == peers.end() || it->second.last_used < oldest->second.last_used))
        oldest = it;
    if (oldest == peers.end())
      throw Error(Code::kResourceExhausted, fmt::format("{} other prefill workers are in use", options.max_peers));
    peers.erase(oldest);
  }
  auto peer =
      std::make_shared<KvPeer>(endpoint, layout, options, [this](KvOutcome outcome) { push(std::move(outcome)); });
  peers.emplace(endpoint, PeerEntry{peer, now});
  return peer;
}

void RemotePrefillSource::Impl::drop_idle_peers(Clock::time_point now) {
  for (auto& [endpoint, entry] : peers)
    if (!entry.unused()) entry.last_used = now;
  std::erase_if(peers,
                [&](const auto& p) { return p.second.unused() && now - p.second.last_used >= options.idle_timeout; });
}

TransferPlan RemotePrefillSource::Impl::plan_of(const RemotePrefill& want) const {
  TransferPlan plan{.num_lanes = layout.num_lanes,
                    .page_size = layout.page_size,
                    .page_bytes = layout.page_bytes,
                    .first_page = want.into.first_page,
                    .num_tokens = want.num_tokens,
                    .token_rows = layout.token_rows};
  check_plan(plan, int64_t(want.prompt_ids.size()));
  return plan;
}

std::shared_ptr<KvAttempt> RemotePrefillSource::Impl::make_attempt(const Request& request) {
  const RemotePrefill& want = request.want;
  CHECK(want.into.rank >= 0 && size_t(want.into.rank) < pools.size(), "rank {} of {}", want.into.rank, pools.size());
  TransferPlan plan = plan_of(want);
  random_bytes(plan.id.data(), plan.id.size());
  plan.epoch = next_epoch++;
  const transfer::Prefill message{.id = plan.id,
                                  .epoch = plan.epoch,
                                  .first_page = plan.first_page,
                                  .num_tokens = plan.num_tokens,
                                  .request_id = want.request_id,
                                  .cache_salt = want.cache_salt,
                                  .prompt_ids = want.prompt_ids};
  return std::make_shared<KvAttempt>(want.handle, message,
                                     transfer::IncomingTransfer(plan, pools[size_t(want.into.rank)], want.into.pages));
}

// Takes the request out, then calls `done` without the lock.
void RemotePrefillSource::Impl::finish(std::unique_lock<std::mutex>& lock, RequestMap::iterator it,
                                       RemotePrefillResult result) {
  const uint64_t handle = it->first;
  const auto done = std::move(it->second.done);
  requests.erase(it);
  calling_done = handle;
  lock.unlock();
  try {
    done(std::move(result));
  } catch (const std::exception& e) {
    log::error("kv: the end of prefill {} was not taken: {}", handle, e.what());
  }
  lock.lock();
  calling_done.reset();
  done_returned.notify_all();
}

}  // namespace moectl
