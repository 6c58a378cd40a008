#include "router/router_metrics.h"

#include "core/base/log.h"

namespace moectl::router {
namespace {

const std::vector<double> kSeconds = {0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                      0.5,    1,      2.5,   5,      10,    20,   40,    80,   160};
const std::vector<double> kOverhead = {0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25};

constexpr const char* kRequests = "moectl_router_requests_total";
constexpr const char* kRequestsHelp = "Client requests by outcome";
constexpr const char* kRetries = "moectl_router_retries_total";
constexpr const char* kRetriesHelp = "Attempts after the first, by what the attempt before ended in";

}  // namespace

std::string_view name_of(RequestOutcome outcome) {
  switch (outcome) {
    case RequestOutcome::kSuccess:
      return "success";
    case RequestOutcome::kRefused:
      return "refused";
    case RequestOutcome::kCancelled:
      return "cancelled";
    case RequestOutcome::kFailed:
      return "failed";
  }
  return "failed";
}

RouterMetrics::RouterMetrics()
    : queue_(registry_.histogram("moectl_router_queue_seconds", "Time a request waited for a decode worker", kSeconds)),
      first_token_(registry_.histogram("moectl_router_time_to_first_token_seconds",
                                       "From the request to the first event of a streamed answer", kSeconds)),
      overhead_(registry_.histogram("moectl_router_overhead_seconds",
                                    "Time the router itself took before it sent a request on, waiting apart",
                                    kOverhead)),
      request_(
          registry_.histogram("moectl_router_request_seconds", "From the request to the end of its answer", kSeconds)) {
  using enum RequestOutcome;
  for (const RequestOutcome outcome : {kSuccess, kRefused, kCancelled, kFailed})
    registry_.counter(kRequests, kRequestsHelp, {{"outcome", std::string(name_of(outcome))}});
  for (const RetryCause cause : kRetryCauses) registry_.counter(kRetries, kRetriesHelp, {{"cause", name_of(cause)}});
}

void RouterMetrics::count_request(RequestOutcome outcome, double seconds) {
  registry_.counter(kRequests, kRequestsHelp, {{"outcome", std::string(name_of(outcome))}}).add();
  request_.observe(seconds);
}

void RouterMetrics::count_retry(RetryCause cause) {
  registry_.counter(kRetries, kRetriesHelp, {{"cause", name_of(cause)}}).add();
}

std::string RouterMetrics::text(const Dispatcher& dispatcher, int in_flight, TimePoint now) {
  const auto gauge = [&](const char* name, const char* help, const metrics::Labels& labels, double value) {
    registry_.gauge(name, help, labels).set(value);
  };
  gauge("moectl_router_requests_in_flight", "Requests taken and not yet answered", {}, in_flight);
  gauge("moectl_router_queue_depth", "Requests that wait for a decode worker", {}, double(dispatcher.num_waiting()));
  gauge("moectl_router_state_bytes", "Memory of the routing policies, about", {}, double(dispatcher.state_bytes()));
  registry_.counter("moectl_log_lines_dropped_total", "Log lines lost because stderr did not take them")
      .set_total(double(log::num_dropped()));
  for (const Role role : {Role::kPrefill, Role::kDecode})
    gauge("moectl_router_workers_ready", "Workers that take requests", {{"role", std::string(name_of(role))}},
          dispatcher.num_ready(role, now));
  return registry_.text() + text_of_workers(dispatcher, now);
}

// Anew each time, so that the series of a worker go with it.
std::string RouterMetrics::text_of_workers(const Dispatcher& dispatcher, TimePoint now) {
  metrics::Registry registry;
  const auto gauge = [&](const char* name, const char* help, const metrics::Labels& labels, double value) {
    registry.gauge(name, help, labels).set(value);
  };
  for (const WorkerView& worker : dispatcher.view(now)) {
    const metrics::Labels labels = {{"role", std::string(name_of(worker.address.role))},
                                    {"worker", worker.address.url}};
    for (const WorkerState state :
         {WorkerState::kUnknown, WorkerState::kReady, WorkerState::kDraining, WorkerState::kUnhealthy}) {
      metrics::Labels with_state = labels;
      with_state["state"] = name_of(state);
      gauge("moectl_worker_state", "1 for the state a worker is in", with_state, worker.state == state);
    }
    gauge("moectl_router_worker_requests", "This router's requests on a worker, each choice counted", labels,
          worker.in_flight);
    gauge("moectl_router_worker_tokens", "Tokens on a worker, estimated", labels, worker.load_tokens);
    gauge("moectl_router_breaker_open", "1 while a worker's circuit breaker is open", labels, worker.breaker_open);
  }
  return registry.text();
}

}  // namespace moectl::router
