#include "router/worker.h"

#include <algorithm>

#include "core/base/error.h"

namespace moectl::router {
namespace {
constexpr int kFailedProbes = 2;  // in a row, before a worker that was ready counts as unhealthy
}

std::string_view name_of(WorkerState state) {
  switch (state) {
    case WorkerState::kUnknown:
      return "unknown";
    case WorkerState::kReady:
      return "ready";
    case WorkerState::kDraining:
      return "draining";
    case WorkerState::kUnhealthy:
      return "unhealthy";
  }
  return "unknown";
}

bool Breaker::allows(TimePoint now, int in_flight) const {
  return !open_ || (now >= open_until_ && in_flight == 0);
}

void Breaker::on_success(const BreakerOptions& options) {
  failures_ = 0;
  if (open_ && ++successes_ >= options.success_threshold) open_ = false;
}

void Breaker::on_failure(const BreakerOptions& options, TimePoint now) {
  successes_ = 0;
  if (open_ || ++failures_ >= options.failure_threshold) {
    open_ = true;
    open_until_ = now + options.timeout;
    failures_ = 0;
  }
}

double Worker::load_requests() const {
  const int64_t others = report.num_running + report.num_waiting - in_flight_at_report;
  return double(in_flight + std::max<int64_t>(0, others));
}

double Worker::load_tokens() const {
  const double reported = double(report.num_running + report.num_waiting), now = load_requests();
  if (reported == 0) return double(tokens);
  const double reported_tokens = double(report.num_tokens_in_flight);
  if (now <= reported) return reported_tokens * now / reported;
  return reported_tokens + double(std::max<int64_t>(0, tokens - tokens_at_report));
}

void apply_probe(Worker& worker, const ProbeResult& probe) {
  if (!probe.ok) {
    if (!probe.refused && worker.pulse->last_bytes > probe.started.time_since_epoch().count()) return;
    ++worker.failed_probes;
    worker.reason = probe.error;
    if (probe.refused || worker.failed_probes >= kFailedProbes || worker.state != WorkerState::kReady)
      worker.state = WorkerState::kUnhealthy;
    return;
  }
  worker.failed_probes = 0;
  const bool restarted = !worker.report.instance_id.empty() && worker.report.instance_id != probe.report.instance_id;
  if (restarted) {  // what failed was another process
    ++worker.epoch;
    worker.breaker = {};
  }
  worker.report = probe.report;
  worker.in_flight_at_report = worker.in_flight;
  worker.tokens_at_report = worker.tokens;
  worker.reason.clear();
  if (probe.report.role != name_of(worker.address.role)) {
    worker.state = WorkerState::kUnhealthy;
    worker.reason =
        fmt::format("it is a {} worker and was given as --{}", probe.report.role, name_of(worker.address.role));
  } else if (!probe.report.cluster_problem.empty()) {
    worker.state = WorkerState::kUnhealthy;
    worker.reason = probe.report.cluster_problem;
  } else if (probe.report.state == "ready") {
    worker.state = WorkerState::kReady;
  } else if (probe.report.state == "draining") {
    worker.state = WorkerState::kDraining;
    worker.reason = "draining";
  } else {
    worker.state = probe.report.state == "loading" ? WorkerState::kUnknown : WorkerState::kUnhealthy;
    worker.reason = probe.report.state;
    if (probe.report.state == "stalled")
      worker.reason = fmt::format("stalled: nothing computed for {:.0f} s", probe.report.seconds_since_progress);
  }
}

std::string pair_problem(const Worker& prefill, const Worker& decode) {
  const api::LoadReport &p = prefill.report, &d = decode.report;
  if (p.kv_endpoint.empty()) return "it reports no KV endpoint";
  if (p.model_hash != d.model_hash)
    return fmt::format("another model: {} is not {}", p.model_hash.substr(0, 16), d.model_hash.substr(0, 16));
  if (p.kv_format != d.kv_format) return fmt::format("another KV format: {} is not {}", p.kv_format, d.kv_format);
  return "";
}

bool is_exact_pair(const Worker& prefill, const Worker& decode) {
  return prefill.report.exactness == decode.report.exactness;
}

}  // namespace moectl::router
