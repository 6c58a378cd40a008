#include "router/attempt.h"

#include <array>
#include <charconv>
#include <utility>

#include "core/api/routing.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/http/sse.h"
#include "router/sse_filter.h"

namespace moectl::router {
namespace {

using std::chrono::milliseconds;

constexpr size_t kCheckedWhole = 1 << 20;  // of an answer that is not a stream; a longer one is forwarded as it comes
constexpr milliseconds kConnectTimeout{2'000};
constexpr milliseconds kHeaderTimeout{1'800'000};  // a whole answer may be computed before its head comes
constexpr milliseconds kSilence{60'000};           // within an answer; workers ping every 15 s

// The workers of one attempt, released whatever happens.
class Lease {
 public:
  Lease(Dispatcher& dispatcher, const Assignment& assignment) : dispatcher_(dispatcher), assignment_(assignment) {}
  ~Lease() { end(Outcome::kNeutral); }
  Lease(const Lease&) = delete;
  void first_text() {
    if (!std::exchange(has_text_, true)) dispatcher_.first_text(assignment_, Clock::now());
  }
  // Whether the worker had nothing else.
  bool end(Outcome outcome, std::string_view out_because = "") {
    if (std::exchange(ended_, true)) return false;
    return dispatcher_.finished(assignment_, outcome, out_because, Clock::now());
  }

 private:
  Dispatcher& dispatcher_;
  Assignment assignment_;
  bool ended_ = false, has_text_ = false;
};

// The worker was found unhealthy while this attempt waited for it. On the attempt's executor.
struct Ejection {
  bool ejected = false;
  std::string reason;
  std::shared_ptr<http::Cancellation> sending;
};

void watch_worker(Dispatcher& dispatcher, const Assignment& assignment, const std::shared_ptr<Ejection>& ejection,
                  const Executor& home) {
  dispatcher.watch(assignment, [weak = std::weak_ptr<Ejection>(ejection), home](const std::string& reason) {
    post_to(home, [weak, reason] {
      const auto alive = weak.lock();
      if (!alive || std::exchange(alive->ejected, true)) return;
      alive->reason = reason;
      alive->sending->cancel();
    });
  });
}

// ------------------------------------------------------------------------------------------------ request

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
  cluster.client = flight.client;
  for (auto& header :
       api::sign_cluster_headers(cluster, flight.body.digest, flight.context.options.cluster_secret, api::unix_ms()))
    request.headers.push_back(std::move(header));
  return request;
}

// ------------------------------------------------------------------------------------------------ answers

bool is_json(const http::ClientResponse& worker) {
  return worker.header("content-type").starts_with("application/json");
}
bool is_stream(const http::ClientResponse& worker) {
  return worker.status() == 200 && worker.header("content-type").starts_with("text/event-stream");
}

http::Response head_of(const http::ClientResponse& worker) {
  http::Response response;
  response.status = worker.status();
  if (const auto type = worker.header("content-type"); !type.empty()) response.content_type = type;
  for (const std::string_view name : {"retry-after", "x-should-retry", "www-authenticate", "allow"})
    if (const auto value = worker.header(name); !value.empty()) response.headers.emplace_back(name, value);
  return response;
}

std::optional<size_t> length_of(const http::ClientResponse& worker) {
  const std::string_view text = worker.header("content-length");
  size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// Why an attempt did not end in an answer. Thrown from where it was seen; caught in attempt().
struct Ended {
  AttemptResult result;
  std::string message;
  http::Response response;  // kErrorAnswer: the worker's
};

[[noreturn]] void nonsense(std::string message) {
  throw Ended{{.end = AttemptEnd::kNonsense}, std::move(message), {}};
}

// Passes one answer of a worker on. A reader of the worker's connection; attempt() classifies its failures.
class Relay {
 public:
  Relay(Flight& flight, http::Exchange& exchange, http::ClientResponse& worker, Lease& lease, AnswerProgress& progress,
        Forwarding forwarding)
      : flight_(flight),
        exchange_(exchange),
        worker_(worker),
        lease_(lease),
        progress_(progress),
        forwarding_(forwarding) {}

  // Returns when the client has the whole answer. Throws Ended, what reading the worker throws, and Error{kCancelled}
  // when the client has left.
  Task<void> run() {
    sent_ = Clock::now();
    if (is_stream(worker_)) {
      co_await stream();
    } else {
      co_await whole();
    }
  }

 private:
  Task<std::optional<std::string>> read() {
    std::optional<std::string> piece = co_await worker_.read();
    flight_.assignment.pulse->last_bytes = Clock::now().time_since_epoch().count();
    co_return piece;
  }
  void first_text() {
    if (flight_.first_event == TimePoint{}) flight_.first_event = Clock::now();
    lease_.first_text();
  }

  // The next piece is read when the last is written: a slow client slows its worker.
  Task<void> stream() {
    SseFilter filter;
    while (!filter.done() && filter.error().empty()) {
      std::optional<std::string> piece = co_await read();
      if (!piece) throw Error(Code::kUnavailable, "it ended its stream before the end of the answer");
      std::string out;
      filter.feed(*piece, out);
      if (filter.nonsense()) nonsense("it sent what is no event of an answer");
      if (filter.num_events() > 0) first_text();
      if (out.empty()) continue;
      if (!std::exchange(progress_.started, true)) co_await exchange_.start_stream();
      progress_.has_text |= filter.num_events() > 0;
      progress_.amid_event = filter.amid_event();
      co_await exchange_.write(std::move(out));
    }
    if (!filter.error().empty()) {
      Ended ended{{.end = AttemptEnd::kErrorAnswer, .error = api::parse_error(filter.error(), 0)}, "", {}};
      ended.response = error_response(ended.result.error);
      ended.response.body = filter.error();
      throw ended;
    }
    std::string end;
    if (flight_.debug) {
      flight_.stage("decode", flight_.first_event, Clock::now(), fmt::format("{} events", filter.num_events()));
      end = std::string(api::kTimelineComment) + flight_.timeline(filter.timeline()) + "\n\n";
    }
    end += http::kSseDone;
    if (!std::exchange(progress_.started, true)) co_await exchange_.start_stream();
    co_await exchange_.write(std::move(end));
    co_await exchange_.finish();
    flight_.status = 200;
  }

  Task<void> whole() {
    std::string body;
    std::optional<std::string> piece;
    for (;;) {
      piece = co_await read();
      if (!piece || body.size() + piece->size() > kCheckedWhole) break;
      body += *piece;
    }
    if (worker_.status() != 200) throw error_answer(std::move(body), !piece);
    if (!piece) {
      const std::string problem = is_json(worker_) ? api::answer_problem(body, forwarding_ == Forwarding::kGenerate)
                                                   : "its Content-Type is not application/json";
      if (!problem.empty()) nonsense(fmt::format("it answered 200, but {}", problem));
      if (progress_.started) nonsense("it answered a stream with a whole answer");
    } else if (!is_json(worker_) || !body.starts_with('{') || progress_.started) {
      nonsense("it answered 200 with something that is not a JSON object");
    }
    first_text();
    flight_.stage("decode", sent_, Clock::now());
    http::Response head = head_of(worker_);
    if (flight_.debug && forwarding_ == Forwarding::kGenerate)
      head.headers.emplace_back(api::kTimelineHeader,
                                flight_.timeline(std::string(worker_.header(api::kTimelineHeader))));
    if (!piece) {
      head.body = std::move(body);
      co_await answer(flight_, exchange_, std::move(head), RequestOutcome::kSuccess);
    } else {
      body += *piece;
      co_await pass_large(std::move(head), std::move(body));
    }
  }

  Task<void> pass_large(http::Response head, std::string body) {
    flight_.status = 200;
    progress_.started = progress_.has_text = progress_.amid_event = true;
    co_await exchange_.start_body(std::move(head), length_of(worker_));
    char last = 0;
    for (std::optional<std::string> piece = std::move(body); piece;) {
      if (const size_t end = piece->find_last_not_of(" \n\r\t"); end != std::string::npos) last = (*piece)[end];
      co_await exchange_.write(std::move(*piece));
      piece = co_await read();
    }
    if (last != '}') nonsense("its answer does not end as a JSON object");
    co_await exchange_.finish();
  }

  Ended error_answer(std::string body, bool complete) {
    const int status = worker_.status();
    if (status < 400 || !complete) nonsense(fmt::format("it answered {}", status));
    Ended ended{{.end = AttemptEnd::kErrorAnswer, .error = api::parse_error(body, status)}, "", head_of(worker_)};
    ended.response.body = std::move(body);
    return ended;
  }

  Flight& flight_;
  http::Exchange& exchange_;
  http::ClientResponse& worker_;
  Lease& lease_;
  AnswerProgress& progress_;
  const Forwarding forwarding_;
  TimePoint sent_;
};

// Reads what follows [DONE], which is nothing: then the worker's connection can be used again.
Task<void> drain(http::ClientResponse& worker) {
  try {
    co_await worker.read_all(0);
  } catch (const Error& e) {
    log::debug("after the end of a stream: {}", e.what());
  }
}

// What a failure of the connection means.
AttemptResult result_of(const Error& error, const Ejection& ejection) {
  if (ejection.ejected) return {.end = AttemptEnd::kEjected};
  if (error.code() == Code::kResourceExhausted) return {.end = AttemptEnd::kOwnLimit};
  const auto* of_client = dynamic_cast<const http::ClientError*>(&error);
  if (!of_client) return {.end = AttemptEnd::kBroken};  // Relay: the stream ended before the answer did
  switch (of_client->failure()) {
    case http::ClientFailure::kRefused:
      return {.end = AttemptEnd::kUnreachable, .refused = true};
    case http::ClientFailure::kNoConnection:
      return {.end = AttemptEnd::kUnreachable};
    case http::ClientFailure::kNotHttp:
      return {.end = AttemptEnd::kNonsense};
    case http::ClientFailure::kTimeout:
    case http::ClientFailure::kBroken:
      break;
  }
  return {.end = AttemptEnd::kBroken};
}

// The client's answer when no other worker can serve the request.
http::Response response_for(const Verdict& verdict, const Ended& ended) {
  switch (ended.result.end) {
    case AttemptEnd::kErrorAnswer:
      if (verdict.retry_cause != RetryCause::kMisconfigured) return ended.response;
      return error_response(api::from_status(503, "No decode worker can take the request: " + ended.message));
    case AttemptEnd::kUnreachable:
      return error_response(api::from_status(503, "The decode worker cannot be reached: " + ended.message));
    case AttemptEnd::kEjected:
      return error_response(api::from_status(503, "The decode worker became unhealthy: " + ended.message));
    case AttemptEnd::kOwnLimit:
      return error_response(api::from_status(503, "The router is at its limit: " + ended.message));
    default:
      return error_response(api::from_status(502, "The decode worker failed: " + ended.message));
  }
}

Outcome outcome_for(const Verdict& verdict) {
  if (verdict.worker_ended) return Outcome::kEnded;
  if (verdict.blame == Blame::kWorker) return Outcome::kFailure;
  return verdict.blame == Blame::kRequest ? Outcome::kSuccess : Outcome::kNeutral;
}

}  // namespace

[[noreturn]] void throw_departed() {
  throw Error(Code::kCancelled, "the client has left");
}

RequestOutcome outcome_of(int status) {
  return status < 400 ? RequestOutcome::kSuccess : status < 500 ? RequestOutcome::kRefused : RequestOutcome::kFailed;
}

Task<void> answer(Flight& flight, http::Exchange& exchange, http::Response response, RequestOutcome outcome) {
  flight.status = response.status;
  flight.outcome = outcome;
  co_await exchange.respond(std::move(response));
}

Task<void> break_off(Flight& flight, http::Exchange& exchange, const AnswerProgress& progress, std::string error_object,
                     std::string message) {
  flight.status = 200;
  flight.outcome = RequestOutcome::kFailed;
  flight.problem = std::move(message);
  if (flight.body.call.stream) {
    std::string event = (progress.amid_event ? "\n\n" : "") + http::sse_event(error_object);
    co_await exchange.write(std::move(event));
  }
  exchange.abort();
}

Task<AttemptOutcome> attempt(Flight& flight, http::Exchange& exchange, Forwarding forwarding,
                             std::shared_ptr<Departure> departure, AnswerProgress& progress) {
  RouterContext& context = flight.context;
  Lease lease(context.dispatcher, flight.assignment);
  const WorkerLife life = flight.assignment.decode;
  http::ClientRequest request = request_for_worker(flight, forwarding);
  request.cancellation = std::make_shared<http::Cancellation>();
  departure->sending = request.cancellation;
  if (departure->gone) request.cancellation->cancel();
  auto ejection = std::make_shared<Ejection>();
  ejection->sending = request.cancellation;
  const Executor home = co_await this_executor();
  watch_worker(context.dispatcher, flight.assignment, ejection, home);
  if (flight.attempt == 1)
    flight.overhead_seconds = std::chrono::duration<double>(Clock::now() - flight.start).count() - flight.queue_seconds;

  AttemptOutcome outcome;
  Ended ended;
  std::unique_ptr<http::ClientResponse> worker;
  try {
    worker = co_await context.client->send(std::move(request));
    Relay relay(flight, exchange, *worker, lease, progress, forwarding);
    co_await relay.run();
    outcome.answered = true;
  } catch (Ended& e) {
    ended = std::move(e);
  } catch (const Error& e) {
    if (departure->gone || (e.code() == Code::kCancelled && !ejection->ejected)) throw;
    ended.result = result_of(e, *ejection);
    ended.message = ejection->ejected ? ejection->reason : e.what();
  }
  if (outcome.answered) {
    lease.end(Outcome::kSuccess);
    if (forwarding == Forwarding::kGenerate) context.quarantine.on_success(flight.body.key);
    flight.outcome = RequestOutcome::kSuccess;
    if (is_stream(*worker)) co_await drain(*worker);
    co_return outcome;
  }

  if (departure->gone) throw_departed();
  if (ended.message.empty())
    ended.message = fmt::format("{} {}", ended.result.error.status, ended.result.error.message);
  outcome.verdict = judge(ended.result);
  outcome.response = response_for(outcome.verdict, ended);
  outcome.message = fmt::format("{}: {}", flight.assignment.decode_url, ended.message);
  const bool alone = lease.end(outcome_for(outcome.verdict), outcome.verdict.out_because);
  if (!outcome.verdict.out_because.empty()) context.probe_now(life.id);
  if (outcome.verdict.worker_ended && forwarding == Forwarding::kGenerate)
    context.quarantine.on_worker_ended(flight.body.key, life, alone, Clock::now());
  co_return outcome;
}

}  // namespace moectl::router
