// The router's metrics. Any thread.
#pragma once

#include <string>

#include "core/base/metrics.h"
#include "router/dispatcher.h"
#include "router/verdict.h"

namespace moectl::router {

// Each client request ends in exactly one of them.
enum class RequestOutcome { kSuccess, kRefused, kCancelled, kFailed };
std::string_view name_of(RequestOutcome outcome);

class RouterMetrics {
 public:
  RouterMetrics();
  void count_request(RequestOutcome outcome, double seconds);
  void count_retry(RetryCause cause);
  void observe_queue(double seconds) { queue_.observe(seconds); }
  void observe_first_token(double seconds) { first_token_.observe(seconds); }
  void observe_overhead(double seconds) { overhead_.observe(seconds); }
  std::string text(const Dispatcher& dispatcher, int in_flight, TimePoint now);

 private:
  static std::string text_of_workers(const Dispatcher& dispatcher, TimePoint now);

  metrics::Registry registry_;
  metrics::Histogram queue_, first_token_, overhead_, request_;
};

}  // namespace moectl::router
