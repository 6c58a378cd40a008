// The metrics of one serving instance: request outcomes and latencies, and the engine's own statistics at each scrape.
// Any thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/base/metrics.h"
#include "core/engine/engine.h"

namespace moectl {

// Each generation request ends in exactly one of them.
enum class Outcome { kSuccess, kRefused, kCancelled, kFailed };

// KV transfers since the start, of either end.
struct KvTransferTotals {
  int64_t num_bytes = 0, num_active = 0;
  std::map<std::string, int64_t> failures;      // by cause, from a fixed list
  std::map<std::string, int64_t> leg_failures;  // "prefill": no worker computed it; "transfer": it failed in transit
};

// What a scrape shows of the instance's state.
struct InstanceReport {
  std::string role, phase;
  const EngineStats* stats = nullptr;  // both null while the model loads
  const ModelInfo* info = nullptr;
  const KvTransferTotals* transfers = nullptr;  // null: not part of a cluster
};

class ServiceMetrics {
 public:
  ServiceMetrics();
  void count_request(Outcome outcome);
  void observe_first_token(double seconds) { first_token_.observe(seconds); }
  void observe_inter_token(double seconds) { inter_token_.observe(seconds); }
  void observe_request(double seconds, double prompt_tokens, double generation_tokens);
  // Decode: how a prompt's KV was obtained.
  void observe_prefill(const PrefillStats& stats);
  // Prefill: a job for a peer, from its first page ready to its last one sent.
  void observe_queue(double seconds) { queue_.observe(seconds); }
  void observe_transfer(double seconds) { transfer_.observe(seconds); }
  void add_in_flight(int change) { in_flight_.add(change); }
  void set_expert_load(const ExpertLoad& load);  // cheap: the engine's thread calls it
  // Over the experts of each layer; nullopt: no token was computed when the load was read, or it never was.
  std::optional<LoadBalance> expert_balance() const;
  std::string text(const InstanceReport& report);

 private:
  metrics::Registry registry_;
  std::shared_ptr<const ExpertLoad> expert_load() const;
  void show_engine(const EngineStats& stats);
  void show_expert_load(const ExpertLoad& load);
  void show_transfers(const KvTransferTotals& totals);
  metrics::Counter prefills(const char* where);

  metrics::Histogram first_token_, inter_token_, request_, queue_, transfer_, prompt_tokens_, generation_tokens_;
  metrics::Gauge in_flight_, ready_;
  mutable std::mutex expert_load_mutex_;
  std::shared_ptr<const ExpertLoad> expert_load_ = std::make_shared<const ExpertLoad>();  // as last read
};

}  // namespace moectl
