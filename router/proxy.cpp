#include "router/proxy.h"

#include <array>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/http/sse.h"
#include "router/flight.h"
#include "router/sse_filter.h"

namespace moectl::router {
namespace {

using std::chrono::milliseconds;

constexpr size_t kReadOnPool = 256 << 10;     // larger bodies would stall the other requests of the I/O thread
constexpr size_t kMaxAnswerBytes = 64 << 20;  // of an answer that is not a stream
constexpr milliseconds kConnectTimeout{2'000};
constexpr milliseconds kHeaderTimeout{1'800'000};  // a whole answer may be computed before its head comes
constexpr milliseconds kSilence{60'000};           // within an answer; workers ping every 15 s

// The client may leave at any time: what waits then is told.
struct Departure {
  bool gone = false;
  std::shared_ptr<http::Cancellation> sending;
  Channel<std::optional<RouteResult>>* queued = nullptr;

  void leave() {
    gone = true;
    if (sending) sending->cancel();
    if (queued) queued->push(std::nullopt);
  }
};

// The workers of one attempt, given back whatever happens.
class Lease {
 public:
  Lease(Dispatcher& dispatcher, const Assignment& assignment) : dispatcher_(dispatcher), assignment_(assignment) {}
  ~Lease() { end(Outcome::kNeutral); }
  Lease(const Lease&) = delete;
  void prefill_done() {
    if (assignment_.prefill) dispatcher_.prefill_done(assignment_, Clock::now());
  }
  void end(Outcome outcome, const char* out_because = "") {
    if (std::exchange(ended_, true)) return;
    dispatcher_.finished(assignment_, outcome, out_because, Clock::now());
  }

 private:
  Dispatcher& dispatcher_;
  Assignment assignment_;
  bool ended_ = false;
};

// How one attempt ended when the client has not been answered by it.
struct Failed {
  bool final = false;      // the client has its answer, or has left
  const char* cause = "";  // "connect", "died", "busy": may be tried elsewhere
  std::string message;
  http::Response response;  // what the client gets when nobody else can do it
};

http::Response unavailable(std::string message) {
  return error_response(api::from_status(503, std::move(message)));
}

http::Response died_too_often(int worker_deaths) {
  api::ApiError error = api::from_status(
      500,
      fmt::format("{} workers ended while they worked on this request; it is not given to another one", worker_deaths));
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

Task<void> answer(Flight& flight, http::Exchange& exchange, http::Response response, RequestOutcome outcome) {
  flight.status = response.status;
  flight.outcome = outcome;
  co_await exchange.respond(std::move(response));
}

RequestOutcome outcome_of(int status) {
  return status < 400 ? RequestOutcome::kSuccess : status < 500 ? RequestOutcome::kRefused : RequestOutcome::kFailed;
}

// ------------------------------------------------------------------------------------------------ routing

// A decision, perhaps after waiting for one; nullopt: the client has left.
Task<std::optional<RouteResult>> route(Flight& flight, Forwarding forwarding, std::shared_ptr<Departure> departure,
                                       std::set<int> tried) {
  Dispatcher& dispatcher = flight.context.dispatcher;
  RouteRequest request;
  request.model = flight.call.model;
  request.prompt = flight.call.prompt;
  request.tokens = flight.call.tokens;
  request.generates = forwarding == Forwarding::kGenerate;
  request.tried = std::move(tried);
  const TimePoint asked = Clock::now();
  Channel<std::optional<RouteResult>> decisions;
  auto decided = [decisions](RouteResult result) mutable { decisions.push(std::move(result)); };
  auto submitted = dispatcher.submit(std::move(request), std::move(decided), asked);
  if (auto* assignment = std::get_if<Assignment>(&submitted)) co_return RouteResult(std::move(*assignment));
  if (auto* refusal = std::get_if<RouteRefusal>(&submitted)) co_return RouteResult(std::move(*refusal));

  const Ticket ticket = std::get<Ticket>(submitted);
  departure->queued = &decisions;
  if (departure->gone) departure->leave();
  std::optional<std::optional<RouteResult>> decision = co_await decisions.pop(flight.context.options.queue_timeout);
  departure->queued = nullptr;
  const TimePoint now = Clock::now();
  flight.queue_seconds += std::chrono::duration<double>(now - asked).count();
  flight.stage("queue", asked, now);
  flight.context.metrics.observe_queue(std::chrono::duration<double>(now - asked).count());
  if (decision && *decision) co_return std::move(*decision);
  if (!dispatcher.withdraw(ticket)) {  // decided in this very moment: the decision is in the channel
    while (!decision || !*decision) decision = co_await decisions.pop();
    if (!departure->gone) co_return std::move(*decision);
    if (auto* assignment = std::get_if<Assignment>(&**decision)) Lease given_back(dispatcher, *assignment);
  }
  if (departure->gone) co_return std::nullopt;
  co_return RouteResult(RouteRefusal{
      RefusalKind::kNoWorker,
      fmt::format("all are busy; it waited {} s in the queue", flight.context.options.queue_timeout.count())});
}

// ------------------------------------------------------------------------------------------------ forwarding

http::ClientRequest request_for_worker(const Flight& flight, Forwarding forwarding) {
  static constexpr std::array<std::string_view, 4> kPassedOn = {"authorization", "accept", "x-slo-ttft-ms",
                                                                "x-slo-tpot-ms"};
  const http::Request& client = flight.request;
  http::ClientRequest request;
  request.method = client.method == "HEAD" ? "GET" : client.method;
  request.url = flight.assignment.decode_url + url_target(flight.path, client.query);
  request.connect_timeout = kConnectTimeout;
  request.header_timeout = kHeaderTimeout;
  request.idle_timeout = kSilence;
  for (const std::string_view name : kPassedOn)
    if (const std::string_view value = client.header(name); !value.empty()) request.headers.emplace_back(name, value);
  request.headers.emplace_back("x-request-id", client.id);
  request.headers.emplace_back("traceparent", flight.traceparent);
  if (forwarding == Forwarding::kPlain) return request;
  request.headers.emplace_back("content-type", "application/json");
  request.body = client.body;
  if (forwarding == Forwarding::kBody) return request;
  if (flight.debug) request.headers.emplace_back(api::kDebugHeader, "1");
  api::ClusterHeaders cluster;
  cluster.request_id = client.id;
  cluster.attempt = flight.attempt;
  cluster.prefill = flight.assignment.prefill_endpoints;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  for (auto& header : api::sign_cluster_headers(cluster, request.body, flight.context.options.cluster_secret,
                                                std::chrono::duration_cast<milliseconds>(now).count()))
    request.headers.push_back(std::move(header));
  return request;
}

[[noreturn]] void throw_departed() {
  throw Error(Code::kCancelled, "the client has left");
}

// A whole answer of the worker as the client's.
http::Response response_of(const http::ClientResponse& worker, std::string body) {
  http::Response response;
  response.status = worker.status();
  if (const auto type = worker.header("content-type"); !type.empty()) response.content_type = type;
  response.body = std::move(body);
  for (const std::string_view name : {"retry-after", "x-should-retry", "www-authenticate", "allow"})
    if (const auto value = worker.header(name); !value.empty()) response.headers.emplace_back(name, value);
  return response;
}

// Ends a stream that cannot be completed: an error event and a close, never a clean end.
Task<void> break_off(Flight& flight, http::Exchange& exchange, std::string error_object, std::string message) {
  flight.status = 200;
  flight.outcome = RequestOutcome::kFailed;
  flight.problem = std::move(message);
  std::string event = http::sse_event(error_object);
  co_await exchange.write(std::move(event));
  exchange.abort();
}

// What the client has got of its stream so far; outlives an attempt that failed before its first text.
struct Streaming {
  bool started = false;  // the head is with the client
  int64_t events = 0;    // with the client
};

// Passes the stream on, piece by piece: the next is read when the last is written. Throws Error{kUnavailable} when the
// worker breaks off, Error{kInternal} with the worker's error object when it sent one, Error{kCancelled} when the
// client has left.
Task<void> relay(Flight& flight, http::Exchange& exchange, http::ClientResponse& worker, Lease& lease,
                 Streaming& streaming) {
  SseFilter filter;
  while (!filter.done() && filter.error().empty()) {
    std::optional<std::string> piece = co_await worker.read();
    if (!piece) throw Error(Code::kUnavailable, "it ended its stream before the end of the answer");
    std::string out;
    filter.feed(*piece, out);
    if (filter.overflow()) throw Error(Code::kUnavailable, "it sent an event without an end");
    if (filter.num_events() > 0 && flight.first_event == TimePoint{}) {
      flight.first_event = Clock::now();
      lease.prefill_done();
    }
    if (out.empty()) continue;
    if (!std::exchange(streaming.started, true)) co_await exchange.start_stream();
    co_await exchange.write(std::move(out));
    streaming.events = filter.num_events();
  }
  if (!filter.error().empty()) throw Error(Code::kInternal, filter.error());
  std::string end;
  if (flight.debug) {
    flight.stage("decode", flight.first_event, Clock::now(), fmt::format("{} events", filter.num_events()));
    end = std::string(api::kTimelineComment) + flight.timeline(filter.timeline()) + "\n\n";
  }
  end += http::kSseDone;
  if (!std::exchange(streaming.started, true)) co_await exchange.start_stream();
  co_await exchange.write(std::move(end));
  co_await exchange.finish();
}

// Reads what follows [DONE], which is nothing: then the worker's connection can be used again.
Task<void> drain(http::ClientResponse& worker) {
  try {
    co_await worker.read_all(0);
  } catch (const Error& e) {
    log::debug("after the end of a stream: {}", e.what());
  }
}

bool is_stream(const http::ClientResponse& worker) {
  return worker.status() == 200 && worker.header("content-type").starts_with("text/event-stream");
}

// One attempt on the assigned worker.
Task<Failed> attempt(Flight& flight, http::Exchange& exchange, Forwarding forwarding,
                     std::shared_ptr<Departure> departure, Streaming& streaming) {
  RouterContext& context = flight.context;
  Lease lease(context.dispatcher, flight.assignment);
  Failed failed;
  http::ClientRequest request = request_for_worker(flight, forwarding);
  request.cancellation = std::make_shared<http::Cancellation>();
  departure->sending = request.cancellation;
  if (departure->gone) request.cancellation->cancel();
  const TimePoint sent = Clock::now();
  if (flight.attempt == 1)
    flight.overhead_seconds = std::chrono::duration<double>(sent - flight.start).count() - flight.queue_seconds;

  const std::string worker_name = flight.assignment.decode_url;
  const int worker_id = flight.assignment.decode;
  std::unique_ptr<http::ClientResponse> worker;
  Code code = Code::kInternal;
  std::string message;
  bool connected = false;
  try {
    worker = co_await context.client->send(std::move(request));
    connected = true;
    if (is_stream(*worker)) {
      co_await relay(flight, exchange, *worker, lease, streaming);
      lease.end(Outcome::kSuccess);
      context.quarantine.on_success(flight.body_key);
      flight.status = 200;
      flight.outcome = RequestOutcome::kSuccess;
      co_await drain(*worker);
      failed.final = true;
      co_return failed;
    }
    std::string body = co_await worker->read_all(kMaxAnswerBytes);
    failed.response = response_of(*worker, std::move(body));
    code = Code::kUsage;  // nothing failed
  } catch (const Error& e) {
    code = e.code();
    message = e.what();
  }

  if (departure->gone || code == Code::kCancelled) throw_departed();
  const bool last_words = code == Code::kUsage && api::says_engine_failed(failed.response.body);
  if (last_words) message = failed.response.body;
  if (code == Code::kUsage && !last_words) {
    const int status = failed.response.status;
    if (status == 502 || status == 503 || status == 504 || status == 429) {
      lease.end(status == 502 || status == 504 ? Outcome::kFailure : Outcome::kNeutral);
      failed.cause = "busy";
      failed.message = fmt::format("{} answered {}", worker_name, status);
      co_return failed;
    }
    lease.end(status >= 500 ? Outcome::kFailure : Outcome::kSuccess);
    if (status < 500) context.quarantine.on_success(flight.body_key);
    if (flight.first_event == TimePoint{}) flight.first_event = Clock::now();
    flight.stage("decode", sent, Clock::now());
    if (flight.debug && forwarding == Forwarding::kGenerate)
      failed.response.headers.emplace_back(api::kTimelineHeader,
                                           flight.timeline(std::string(worker->header(api::kTimelineHeader))));
    if (!streaming.started) {
      co_await answer(flight, exchange, std::move(failed.response), outcome_of(status));
    } else {
      failed.message = fmt::format("{} answered {}", worker_name, status);
      failed.cause = "busy";
      co_return failed;
    }
    failed.final = true;
    co_return failed;
  }

  // The worker failed this request.
  const bool refused = !connected && message.starts_with("cannot connect");
  const bool told = code == Code::kInternal && message.starts_with("{");  // its own error object
  const bool engine_failed = last_words || (told && api::says_engine_failed(message));
  lease.end(Outcome::kFailure, refused ? "connection refused" : engine_failed ? "its engine failed" : "");
  failed.cause = refused ? "connect" : "died";
  failed.message = fmt::format("{}: {}", worker_name, message);
  if (!last_words)
    failed.response = refused ? unavailable("The decode worker cannot be reached: " + message)
                              : error_response(api::from_status(502, "The decode worker failed: " + message));
  if (told) failed.response.body = message;
  if (engine_failed || (!refused && !told)) context.quarantine.on_death(flight.body_key, worker_id, Clock::now());
  if (streaming.events > 0) {  // the client has part of the answer: nobody else can go on from there
    co_await break_off(flight, exchange, failed.response.body, failed.message);
    failed.final = true;
  }
  co_return failed;
}

// Nobody is left to try.
Task<void> give_up(Flight& flight, http::Exchange& exchange, http::Response response, const Streaming& streaming,
                   std::string message) {
  if (streaming.started) {
    co_await break_off(flight, exchange, std::move(response.body), std::move(message));
    co_return;
  }
  flight.problem = std::move(message);
  const RequestOutcome outcome = outcome_of(response.status);
  co_await answer(flight, exchange, std::move(response), outcome);
}

Task<void> read_client(Flight& flight, Forwarding forwarding) {
  check_client_headers(flight.request.headers);
  if (forwarding == Forwarding::kPlain) co_return;
  const std::string& body = flight.request.body;
  flight.body_key = Quarantine::key_of(body);
  if (body.size() <= kReadOnPool) {
    flight.call = read_call(body);
  } else {
    auto read = [&body] { return read_call(body); };
    flight.call = co_await run_on(flight.context.pool, std::move(read));
  }
}

Task<void> fly(Flight& flight, http::Exchange& exchange, Forwarding forwarding) {
  RouterContext& context = flight.context;
  co_await read_client(flight, forwarding);
  auto departure = std::make_shared<Departure>();
  exchange.on_client_gone([departure] { departure->leave(); });
  std::set<int> tried;
  Streaming streaming;
  Failed last;
  for (flight.attempt = 1; flight.attempt <= 1 + context.options.max_retries; ++flight.attempt) {
    if (forwarding == Forwarding::kGenerate && context.quarantine.holds(flight.body_key, Clock::now())) {
      http::Response response = died_too_often(int(Quarantine::kDeaths));
      co_await give_up(flight, exchange, std::move(response), streaming, "workers died of it");
      co_return;
    }
    const TimePoint begin = Clock::now();
    std::optional<RouteResult> routed = co_await route(flight, forwarding, departure, tried);
    if (!routed) throw_departed();
    if (const auto* refusal = std::get_if<RouteRefusal>(&*routed)) {
      const bool first = flight.attempt-- == 1;
      http::Response response = first ? refusal_response(*refusal, flight.call) : std::move(last.response);
      std::string message = first ? refusal->message : last.message;
      co_await give_up(flight, exchange, std::move(response), streaming, std::move(message));
      co_return;
    }
    if (flight.attempt > 1) context.metrics.count_retry(last.cause);
    flight.assignment = std::get<Assignment>(std::move(*routed));
    flight.stage("route", begin, Clock::now(), flight.assignment.why);
    tried.insert(flight.assignment.decode);
    last = co_await attempt(flight, exchange, forwarding, departure, streaming);
    if (last.final) co_return;
    log::warn(log::About{flight.request.id}, "attempt {} failed: {}", flight.attempt, last.message);
  }
  co_await give_up(flight, exchange, std::move(last.response), streaming, std::move(last.message));
}

}  // namespace

Task<void> forward(RouterContext& context, http::Exchange& exchange, std::string path, Forwarding forwarding) {
  Flight flight(context, exchange.request(), std::move(path));
  if (context.draining) {
    http::Response response = error_response(api::draining());
    co_await answer(flight, exchange, std::move(response), RequestOutcome::kFailed);
    co_return;
  }
  if (forwarding != Forwarding::kPlain && !exchange.request().header("content-type").starts_with("application/json")) {
    http::Response response = error_response(api::from_status(415, "The body must be application/json"));
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
