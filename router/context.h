// What all parts of one router share. Options are written before the servers start; everything else is safe from any
// thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/http/client.h"
#include "core/service/service.h"
#include "router/dispatcher.h"
#include "router/quarantine.h"
#include "router/router_metrics.h"

namespace moectl::router {

struct RouterContext {
  explicit RouterContext(RouterOptions o) : options(std::move(o)), dispatcher(options.dispatcher) {}

  RouterOptions options;
  Dispatcher dispatcher;
  RouterMetrics metrics;
  Quarantine quarantine;
  std::unique_ptr<http::Client> client = http::Client::create();
  CpuPool pool{1};                     // reads large bodies and answers
  std::function<void(int)> probe_now;  // asks a worker for its load before its turn; set before the servers start
  std::string url;                     // of the data port
  std::atomic<int> in_flight{0};
  Administration administration;  // written before the servers start
  std::atomic<bool> draining{false};
  std::atomic<bool> shutting_down{false};  // draining will not end
  std::atomic<TimePoint::rep> last_probe_round{0};
};

// "http://host:port" from what a user gives: the scheme may be missing, a slash may follow. Throws
// Error{kInvalidArgument}.
std::string worker_url(std::string_view text);

}  // namespace moectl::router
