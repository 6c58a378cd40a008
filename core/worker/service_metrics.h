// The metrics of one serving instance: request outcomes and latencies, and the engine's own statistics at each scrape.
// Any thread.
#pragma once

#include <string>

#include "core/base/metrics.h"
#include "core/engine/engine.h"

namespace moectl {

// Each generation request ends in exactly one of them.
enum class Outcome { kSuccess, kRefused, kCancelled, kFailed };

class ServiceMetrics {
 public:
  ServiceMetrics();
  void count_request(Outcome outcome);
  void observe_first_token(double seconds) { first_token_.observe(seconds); }
  void observe_inter_token(double seconds) { inter_token_.observe(seconds); }
  void observe_request(double seconds, double prompt_tokens, double generation_tokens);
  void add_in_flight(int change) { in_flight_.add(change); }
  // `stats` and `info` are null while the model loads.
  std::string text(const EngineStats* stats, const ModelInfo* info, bool ready);

 private:
  metrics::Registry registry_;
  metrics::Histogram first_token_, inter_token_, request_, prompt_tokens_, generation_tokens_;
  metrics::Gauge in_flight_, ready_;
};

}  // namespace moectl
