#include "core/serving/kv_role.h"

#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "core/base/error.h"
#include "core/http/async.h"

namespace moectl {
namespace {

// The engine as the KV server sees it, with a look at the clock. Called from the server's threads and, in sinks, from
// the engine's.
class MeasuredProducer {
 public:
  explicit MeasuredProducer(Instance& instance) : instance_(instance) {}

  uint64_t prefill(PrefillJob job, PrefillSink sink) {
    if (const Health health = health_of(instance_); health.state != Health::State::kReady)
      throw Error(Code::kUnavailable, fmt::format("the prefill worker is {}", name_of(health.state)));
    auto times = std::make_shared<Times>();
    PrefillSink measured = [&metrics = instance_.metrics, times, sink = std::move(sink)](const PrefillProgress& p) {
      {
        std::lock_guard lock(times->mutex);
        if (p.num_tokens_ready > 0 && !times->first_ready) times->first_ready = Clock::now();
        times->finished = p.finished && p.error.empty();
      }
      if (p.finished) metrics.observe_queue(p.queue_seconds);
      sink(p);
    };
    const uint64_t handle = instance_.engine->prefill(std::move(job), std::move(measured));
    std::lock_guard lock(mutex_);
    running_.emplace(handle, std::move(times));
    return handle;
  }

  void release(uint64_t handle) {
    std::shared_ptr<Times> times;
    {
      std::lock_guard lock(mutex_);
      if (const auto it = running_.find(handle); it != running_.end()) {
        times = std::move(it->second);
        running_.erase(it);
      }
    }
    instance_.engine->release_prefill(handle);
    if (!times) return;
    std::lock_guard lock(times->mutex);
    if (times->finished && times->first_ready)
      instance_.metrics.observe_transfer(std::chrono::duration<double>(Clock::now() - *times->first_ready).count());
  }

 private:
  struct Times {
    std::mutex mutex;
    std::optional<Clock::time_point> first_ready;
    bool finished = false;
  };

  Instance& instance_;
  std::mutex mutex_;
  std::map<uint64_t, std::shared_ptr<Times>> running_;
};

}  // namespace

std::unique_ptr<KvServer> start_kv_server(Instance& instance) {
  auto producer = std::make_shared<MeasuredProducer>(instance);
  Engine& engine = *instance.engine;
  KvProducer functions{
      .prefill = [producer](PrefillJob job,
                            PrefillSink sink) { return producer->prefill(std::move(job), std::move(sink)); },
      .cancel = [&engine](uint64_t handle) { engine.cancel(handle); },
      .release = [producer](uint64_t handle) { producer->release(handle); },
      .layout = [&engine] { return engine.kv_layout(); },
      .pools = [&engine] { return engine.kv_pools(); }};
  KvServerOptions options{.host = instance.options.api.host,
                          .port = uint16_t(instance.options.kv_port),
                          .secret = instance.options.cluster_secret,
                          .max_prompt_tokens = engine.info().max_model_len};
  return std::make_unique<KvServer>(std::move(functions), std::move(options));
}

KvTransferTotals transfer_totals(const Instance& instance) {
  KvTransferTotals totals;
  if (instance.prefill_source) {
    const KvClientStats stats = instance.prefill_source->stats();
    totals.num_bytes = stats.num_bytes;
    totals.num_active = stats.num_active;
    for (const char* cause : {"connect", "handshake", "closed", "protocol", "refused", "timeout", "limit"})
      totals.failures[cause] = 0;
    totals.leg_failures = {{"prefill", 0}, {"transfer", 0}};
    for (const auto& [cause, count] : stats.failures) {
      totals.failures[cause] += count;
      const bool on_the_way = cause == "closed" || cause == "protocol" || cause == "timeout";
      totals.leg_failures[on_the_way ? "transfer" : "prefill"] += count;
    }
  }
  if (instance.kv_server) {
    const KvServerStats stats = instance.kv_server->stats();
    totals.num_bytes = stats.num_bytes;
    totals.num_active = stats.num_active;
    totals.failures = {{"handshake", stats.num_refused_peers}, {"job", stats.num_failed}};
    totals.leg_failures = {{"prefill", stats.num_failed}};
  }
  return totals;
}

}  // namespace moectl
