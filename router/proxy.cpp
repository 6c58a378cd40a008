#include "router/proxy.h"

#include <algorithm>
#include <utility>

#include "core/api/loggable.h"
#include "core/base/error.h"
#include "core/base/log.h"

namespace moectl::router {
namespace {

// A request that must be tried alone waits so long for an idle worker, then shares one.
constexpr std::chrono::seconds kWaitAlone{5};

http::Response unavailable(std::string message) {
  return error_response(api::from_status(503, std::move(message)));
}

http::Response quarantined() {
  api::ApiError error = api::from_status(
      500, fmt::format("{} workers ended while they worked on this request, the last with nothing else to do; it is "
                       "given to none for {} s",
                       Quarantine::kEnds, Quarantine::kDuration.count()));
  error.code = "worker_died";
  http::Response response = error_response(error);
  response.headers.emplace_back("x-should-retry", "false");
  return response;
}

http::Response refusal_response(const RouteRefusal& refusal, const ClientCall& call) {
  switch (refusal.kind) {
    case RefusalKind::kQueueFull:
      return error_response(api::from_status(429, "The queue is full: " + refusal.message));
    case RefusalKind::kUnknownModel:
      return error_response(api::model_not_found(call.model, refusal.message));
    case RefusalKind::kNoWorker:
      break;
  }
  return unavailable("No decode worker can take the request: " + refusal.message);
}

// ------------------------------------------------------------------------------------------------ routing

// Waits for a decision; nullopt: none came within `patience`, or the client has left (departure->gone).
Task<std::optional<RouteResult>> wait_in_queue(Flight& flight, Ticket ticket,
                                               AsyncQueue<std::optional<RouteResult>>& decisions,
                                               std::shared_ptr<Departure> departure, Clock::duration patience) {
  Dispatcher& dispatcher = flight.context.dispatcher;
  const TimePoint asked = Clock::now();
  departure->queued = &decisions;
  if (departure->gone) departure->leave();
  std::optional<std::optional<RouteResult>> decision = co_await decisions.pop(patience);
  departure->queued = nullptr;
  const TimePoint now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - asked).count();
  flight.queue_seconds += seconds;
  flight.stage("queue", asked, now);
  flight.context.metrics.observe_queue(seconds);
  if (decision && *decision) co_return std::move(*decision);
  if (!dispatcher.withdraw(ticket)) {  // decided in this very moment: the decision is in the channel
    while (!decision || !*decision) decision = co_await decisions.pop();
    if (!departure->gone) co_return std::move(*decision);
    if (auto* assignment = std::get_if<Assignment>(&**decision))
      dispatcher.finished(*assignment, Outcome::kNeutral, "", Clock::now());
  }
  co_return std::nullopt;
}

// A decision, perhaps after waiting for one. Throws Error{kCancelled} when the client has left.
Task<RouteResult> route(Flight& flight, Forwarding forwarding, std::shared_ptr<Departure> departure,
                        std::set<WorkerLife> tried, bool alone) {
  RouteRequest request;
  const ClientCall& call = flight.body.call;
  request.model = call.model;
  request.prompt = call.prompt;
  request.tokens = call.tokens;
  request.choices = call.choices;
  request.client = flight.client;
  request.generates = forwarding == Forwarding::kGenerate;
  request.tried = std::move(tried);
  request.alone = alone;
  const std::chrono::seconds queue_timeout = flight.context.options.queue_timeout;
  for (;;) {
    AsyncQueue<std::optional<RouteResult>> decisions;
    auto decided = [decisions](RouteResult result) mutable { decisions.push(std::move(result)); };
    auto submitted = flight.context.dispatcher.submit(request, std::move(decided), Clock::now());
    if (auto* assignment = std::get_if<Assignment>(&submitted)) co_return RouteResult(std::move(*assignment));
    if (auto* refusal = std::get_if<RouteRefusal>(&submitted)) co_return RouteResult(std::move(*refusal));
    const Clock::duration patience = request.alone ? std::min(queue_timeout, kWaitAlone) : queue_timeout;
    std::optional<RouteResult> decision =
        co_await wait_in_queue(flight, std::get<Ticket>(submitted), decisions, departure, patience);
    if (departure->gone) throw_departed();
    if (decision) co_return std::move(*decision);
    if (!std::exchange(request.alone, false)) break;
  }
  co_return RouteResult(RouteRefusal{RefusalKind::kNoWorker,
                                     fmt::format("all are busy; it waited {} s in the queue", queue_timeout.count())});
}

// ------------------------------------------------------------------------------------------------ the whole way

// No worker is left to try.
Task<void> give_up(Flight& flight, http::Exchange& exchange, http::Response response, const AnswerProgress& progress,
                   std::string message) {
  if (progress.started) {
    co_await break_off(flight, exchange, progress, std::move(response.body), std::move(message));
    co_return;
  }
  flight.problem = std::move(message);
  const RequestOutcome outcome = outcome_of(response.status);
  co_await answer(flight, exchange, std::move(response), outcome);
}

Task<void> read_client(Flight& flight, Forwarding forwarding) {
  check_client_headers(flight.request.headers);
  const std::string_view key = flight.context.options.api.api_keys.empty()
                                   ? std::string_view()
                                   : api::api_key_of(flight.request.header("authorization"));
  flight.client = client_id(key, flight.request.peer);
  if (forwarding == Forwarding::kPlain) co_return;
  const std::string& body = flight.request.body;
  if (read_body_inline(body.size())) {
    flight.body = read_body(body);
  } else {
    auto read = [&body] { return read_body(body); };
    flight.body = co_await run_on(flight.context.pool, std::move(read));
  }
}

Task<void> fly(Flight& flight, http::Exchange& exchange, Forwarding forwarding) {
  RouterContext& context = flight.context;
  auto departure = std::make_shared<Departure>();
  exchange.on_client_gone([departure] { departure->leave(); });
  co_await read_client(flight, forwarding);
  std::set<WorkerLife> tried;
  std::optional<WorkerLife> unproven;  // it answered with an internal error: its fault, or the request's?
  AnswerProgress progress;
  AttemptOutcome last;
  for (flight.attempt = 1; flight.attempt <= 1 + context.options.max_retries; ++flight.attempt) {
    const Quarantine::Standing standing = forwarding == Forwarding::kGenerate
                                              ? context.quarantine.standing(flight.body.key, Clock::now())
                                              : Quarantine::Standing::kClear;
    if (standing == Quarantine::Standing::kQuarantined) {
      http::Response response = quarantined();
      co_await give_up(flight, exchange, std::move(response), progress, "workers ended with it: quarantined");
      co_return;
    }
    const TimePoint begin = Clock::now();
    RouteResult routed =
        co_await route(flight, forwarding, departure, tried, standing == Quarantine::Standing::kSuspect);
    if (const auto* refusal = std::get_if<RouteRefusal>(&routed)) {
      const bool first = flight.attempt-- == 1;
      http::Response response = first ? refusal_response(*refusal, flight.body.call) : std::move(last.response);
      std::string message = first ? refusal->message : last.message;
      co_await give_up(flight, exchange, std::move(response), progress, std::move(message));
      co_return;
    }
    if (flight.attempt > 1) context.metrics.count_retry(last.verdict.retry_cause);
    flight.assignment = std::get<Assignment>(std::move(routed));
    const WorkerLife life = flight.assignment.decode;
    flight.stage("route", begin, Clock::now(), flight.assignment.why);
    tried.insert(life);
    last = co_await attempt(flight, exchange, forwarding, departure, progress);
    if (last.answered) {
      if (unproven) context.dispatcher.charge(*unproven, Clock::now());
      co_return;
    }
    if (!last.verdict.retry || progress.has_text) break;
    log::warn(log::About{flight.request.id}, "attempt {} failed: {}", flight.attempt, api::loggable(last.message));
    // Two workers say the same of this request: it is not they.
    if (last.verdict.blame == Blame::kUnproven && std::exchange(unproven, life)) break;
  }
  flight.attempt = std::min(flight.attempt, 1 + context.options.max_retries);
  co_await give_up(flight, exchange, std::move(last.response), progress, std::move(last.message));
}

}  // namespace

Task<void> forward(RouterContext& context, http::Exchange& exchange, std::string path, Forwarding forwarding) {
  Flight flight(context, exchange.request(), std::move(path));
  if (context.draining) {
    http::Response response = error_response(api::draining());
    co_await answer(flight, exchange, std::move(response), RequestOutcome::kFailed);
    co_return;
  }
  if (forwarding != Forwarding::kPlain && !is_json_type(exchange.request().header("content-type"))) {
    http::Response response = error_response(unsupported_type());
    co_await answer(flight, exchange, std::move(response), RequestOutcome::kRefused);
    co_return;
  }
  try {
    co_await fly(flight, exchange, forwarding);
  } catch (const Error& e) {
    flight.problem = e.what();
    if (e.code() == Code::kInvalidArgument && !exchange.responded()) {
      flight.status = 400;
      flight.outcome = RequestOutcome::kRefused;
    } else if (e.code() != Code::kCancelled) {
      flight.status = 500;
      flight.outcome = RequestOutcome::kFailed;
    }
    throw;  // the server answers
  } catch (...) {
    flight.status = 500;
    flight.outcome = RequestOutcome::kFailed;
    throw;
  }
}

}  // namespace moectl::router
