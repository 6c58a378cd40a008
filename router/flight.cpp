#include "router/flight.h"

#include <fmt/format.h>

#include "core/api/loggable.h"
#include "core/base/log.h"

namespace moectl::router {
namespace {

double seconds_between(TimePoint from, TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

Flight::Flight(RouterContext& c, const http::Request& r, std::string p)
    : context(c), request(r), path(std::move(p)), traceparent(next_traceparent(r.header("traceparent"))) {
  debug = context.options.api.debug_header && !request.header(api::kDebugHeader).empty() &&
          request.header(api::kDebugHeader) != "0";
  ++context.in_flight;
}

Flight::~Flight() {
  --context.in_flight;
  const double seconds = seconds_between(start, Clock::now());
  context.metrics.count_request(outcome, seconds);
  if (overhead_seconds > 0) context.metrics.observe_overhead(overhead_seconds);
  if (body.call.stream && first_event != TimePoint{})
    context.metrics.observe_first_token(seconds_between(start, first_event));
  const std::string first =
      first_event == TimePoint{} ? "" : fmt::format(" first {:.1f} ms", seconds_between(start, first_event) * 1e3);
  const std::string decode = assignment.decode_url.empty() ? "-" : assignment.decode_url;
  const std::string why = api::loggable(problem);
  std::vector<log::Field> fields = {{"path", path},
                                    {"status", int64_t(status)},
                                    {"outcome", name_of(outcome)},
                                    {"attempts", int64_t(attempt)},
                                    {"decode", decode},
                                    {"choices", int64_t(body.call.choices)},
                                    {"queue_seconds", queue_seconds},
                                    {"total_seconds", seconds}};
  if (first_event != TimePoint{}) fields.push_back({"ttft_seconds", seconds_between(start, first_event)});
  if (!why.empty()) fields.push_back({"error", why});
  log::info(log::About{request.id, fields},
            "{} {} {} {} attempts {} decode {} prefill [{}] why `{}` queue {:.1f} ms{} total {:.1f} ms{}{}",
            request.method, path, status, name_of(outcome), attempt, decode, fmt::join(assignment.prefill_urls, " "),
            assignment.why, queue_seconds * 1e3, first, seconds * 1e3, why.empty() ? "" : ": ", why);
}

void Flight::stage(std::string name, TimePoint begin, TimePoint end, std::string detail) {
  stages.push_back(
      {std::move(name), seconds_between(start, begin) * 1e3, seconds_between(begin, end) * 1e3, std::move(detail)});
}

std::string Flight::timeline(const std::string& inner) const {
  api::Timeline timeline;
  timeline.role = "router";
  timeline.worker = context.url;
  timeline.request_id = request.id;
  timeline.stages = stages;
  timeline.decode_candidates = assignment.decode_candidates;
  timeline.prefill_candidates = assignment.prefill_candidates;
  if (first_event != TimePoint{}) timeline.ttft_ms = seconds_between(start, first_event) * 1e3;
  timeline.inner_json = inner;
  return api::to_json(timeline);
}

}  // namespace moectl::router
