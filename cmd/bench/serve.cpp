// `moectl bench serve`: streamed requests to a running server, timed as their events arrive. Coroutines on the main
// thread; Ctrl-C cancels what is in flight and shows what was measured.
#include "cmd/bench/serve.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "cmd/bench/html_report.h"
#include "cmd/interrupt.h"
#include "cmd/progress.h"
#include "cmd/sse_answer.h"
#include "core/base/error.h"
#include "core/base/json_depth.h"
#include "core/http/client.h"
#include "core/http/client_message.h"
#include "core/http/spawn.h"
#include "core/service/service.h"

namespace moectl {
namespace {

constexpr int64_t kMaxRequests = 1 << 20, kMaxInFlight = 4096, kRequestsAtARate = 100;
constexpr size_t kMaxDetail = 300;

double seconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

double cpu_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return double(t.tv_sec) + double(t.tv_usec) * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// A server and what every request to it carries.
struct BenchTarget {
  std::string base;
  http::Headers headers;
  std::chrono::milliseconds timeout;
  std::unique_ptr<http::Client> client;

  http::ClientRequest request(std::string method, std::string_view path) const {
    http::ClientRequest request;
    request.method = std::move(method);
    request.url = fmt::format("{}{}", base, path);
    request.headers = headers;
    request.header_timeout = request.idle_timeout = timeout;
    return request;
  }
};

std::string kind_of(const Error& error) {
  if (error.code() == Code::kBadData) return "not an answer";
  const auto* of_client = dynamic_cast<const http::ClientError*>(&error);
  if (!of_client) return "broken off";
  if (!of_client->connected()) return "cannot connect";
  return of_client->failure() == http::ClientFailure::kTimeout ? "timeout" : "broken off";
}

// Reads the events of one answer and times them.
class AnswerTimer {
 public:
  AnswerTimer(BenchSample& sample, BenchLevel& level, Clock::time_point level_start, Clock::time_point sent)
      : sample_(sample), level_(level), level_start_(level_start), sent_(sent) {}

  void take(std::string_view piece) {
    const auto now = Clock::now();
    for (const SseReader::Item& item : reader_.feed(piece))
      if (!item.is_comment) take_event(parse_answer(item.text), now);
  }
  void end() {
    if (!done_ && sample_.error_kind.empty()) fail("no [DONE]", "the stream ended before its end mark");
    if (usage_) sample_.output_tokens = usage_->completion_tokens;
    if (usage_) sample_.prompt_tokens = usage_->prompt_tokens, sample_.cached_tokens = usage_->cached_tokens;
    if (sample_.error_kind.empty() && !first_) fail("no tokens", "the answer is complete and holds no token");
    sample_.e2e_seconds = seconds_between(sent_, Clock::now());
    if (!sample_.error_kind.empty()) return;
    for (double gap : gaps_) level_.itl.add(gap);
  }
  void fail(std::string kind, std::string_view detail) {
    sample_.error_kind = std::move(kind);
    sample_.error_detail = detail.substr(0, kMaxDetail);
  }

 private:
  void take_event(const AnswerEvent& event, Clock::time_point now) {
    done_ |= event.done;
    if (event.is_error) fail("error event", event.error);
    if (event.usage) usage_ = event.usage;
    int tokens = 0;
    for (const AnswerDelta& delta : event.deltas)
      if (delta.has_tokens()) tokens += std::max(1, delta.num_token_ids);
    if (tokens == 0) return;
    if (first_) gaps_.push_back(seconds_between(last_, now));
    if (!first_) sample_.ttft_seconds = seconds_between(sent_, now);
    first_ = true;
    last_ = now;
    sample_.last_token_seconds = seconds_between(sent_, now);
    sample_.output_tokens += tokens;
    level_.add_tokens_at(seconds_between(level_start_, now), tokens);
  }

  BenchSample& sample_;
  BenchLevel& level_;
  const Clock::time_point level_start_, sent_;
  SseReader reader_;
  std::optional<AnswerUsage> usage_;
  std::vector<double> gaps_;
  Clock::time_point last_;
  bool done_ = false, first_ = false;
};

struct MeasurementPlan {
  int phase = 0;
  int64_t num_requests = 0;
  std::optional<std::chrono::seconds> duration;  // nullopt: until the requests are done
  uint64_t seed = 0;
};

// One measurement.
class Measurement {
 public:
  Measurement(BenchTarget& server, const BenchRequests& requests, MeasurementPlan plan, BenchLevel& level)
      : server_(server),
        requests_(requests),
        plan_(plan),
        level_(level),
        bar_(level.label(), ProgressBar::Unit::kCount) {}

  Task<void> run() {
    start_ = Clock::now();
    const double cpu = cpu_seconds();
    if (level_.concurrency > 0)
      co_await run_by_concurrency();
    else
      co_await run_by_rate();
    level_.seconds = seconds_between(start_, Clock::now());
    level_.cpu_seconds = cpu_seconds() - cpu;
    if (!stopped_) bar_.finish();
  }
  void stop() {
    stopped_ = true;
    for (const auto& cancellation : std::set(active_)) cancellation->cancel();
    ended_.push(0);
  }

 private:
  bool may_start() const {
    return !stopped_ && next_ < plan_.num_requests && (!plan_.duration || Clock::now() - start_ < *plan_.duration);
  }

  Task<void> run_by_concurrency() {
    std::vector<Task<void>> streams;
    for (int64_t i = 0; i < std::min<int64_t>(level_.concurrency, plan_.num_requests); ++i)
      streams.push_back(send_in_turn());
    co_await http::run_all(std::move(streams));
  }
  Task<void> send_in_turn() {
    while (may_start()) co_await send(next_++);
  }

  Task<void> run_by_rate() {
    PoissonArrivals arrivals(level_.request_rate, plan_.seed);
    int64_t running = 0;
    double at = arrivals.next_gap();
    for (;;) {
      const bool more = may_start();
      if (!more && running == 0) break;
      const double wait = at - seconds_between(start_, Clock::now());
      if (more && wait <= 0) {
        at += arrivals.next_gap();
        const int64_t index = next_++;
        if (running >= kMaxInFlight) {
          BenchSample not_sent;
          not_sent.error_kind = "not sent";
          not_sent.error_detail = fmt::format("{} requests are in flight", running);
          level_.add(not_sent);
          continue;
        }
        ++running;
        Task<void> one = send_and_tell(index);
        co_await http::spawn("request", std::move(one));
        continue;
      }
      const auto timeout = more ? std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(wait))
                                : Clock::duration::max();
      const std::optional<int> ended = co_await ended_.pop(timeout);
      if (ended) running -= *ended;
    }
  }
  Task<void> send_and_tell(int64_t index) {
    co_await send(index);
    ended_.push(1);
  }

  Task<void> send(int64_t index) {
    BenchRequest made = requests_.make(plan_.phase, index);
    http::ClientRequest request = server_.request("POST", made.path);
    request.body = std::move(made.body);
    auto cancellation = std::make_shared<http::Cancellation>();
    request.cancellation = cancellation;
    active_.insert(cancellation);
    level_.max_in_flight = std::max(level_.max_in_flight, int64_t(active_.size()));
    BenchSample sample;
    const auto sent = Clock::now();
    sample.start_seconds = seconds_between(start_, sent);
    AnswerTimer timer(sample, level_, start_, sent);
    try {
      const std::unique_ptr<http::ClientResponse> response = co_await server_.client->send(std::move(request));
      co_await read(*response, timer);
    } catch (const Error& error) {
      timer.fail(kind_of(error), error.what());
    }
    active_.erase(cancellation);
    if (cancellation->cancelled()) co_return;  // by Ctrl-C: neither good nor bad
    timer.end();
    level_.add(sample);
    show_progress();
  }

  static Task<void> read(http::ClientResponse& response, AnswerTimer& timer) {
    if (response.status() != 200) {
      const std::string kind = fmt::format("HTTP {}", response.status());
      const std::string body = co_await response.read_all(1 << 20);
      const std::string message = error_message(body);
      timer.fail(kind, message.empty() ? body : message);
      co_return;
    }
    for (;;) {
      std::optional<std::string> piece = co_await response.read();
      if (!piece) co_return;
      timer.take(*piece);
    }
  }

  void show_progress() {
    ++done_;
    if (!plan_.duration || plan_.num_requests < kMaxRequests)
      bar_.update(done_, plan_.num_requests);
    else
      bar_.update((Clock::now() - start_) / std::chrono::seconds(1), plan_.duration->count());
  }

  BenchTarget& server_;
  const BenchRequests& requests_;
  const MeasurementPlan plan_;
  BenchLevel& level_;
  ProgressBar bar_;
  Clock::time_point start_;
  std::set<std::shared_ptr<http::Cancellation>> active_;
  AsyncQueue<int> ended_;
  int64_t next_ = 0, done_ = 0;
  bool stopped_ = false;
};

// All measurements, one after the other. Outlives the coroutines: what is cut off ends with the I/O loop.
class Benchmark {
 public:
  Benchmark(const BenchServeOptions& options, BenchTarget& server, BenchRun& run)
      : options_(options), server_(server), run_(run) {}

  Task<void> all(const Interrupt& interrupt) {
    Task<void> watching = stop_on(interrupt);
    co_await http::spawn("interrupt", std::move(watching));
    if (run_.model.empty()) run_.model = co_await ask_model();
    requests_ = std::make_unique<BenchRequests>(options_, run_.model);
    co_await warm_up();
    int phase = 0;
    if (options_.serve_load.request_rate > 0) {
      BenchLevel level;
      level.request_rate = options_.serve_load.request_rate;
      co_await measure(++phase, std::move(level));
      co_return;
    }
    for (int concurrency : options_.load.concurrency) {
      if (run_.interrupted) break;
      BenchLevel level;
      level.concurrency = concurrency;
      co_await measure(++phase, std::move(level));
    }
  }

 private:
  Task<void> stop_on(const Interrupt& interrupt) {
    co_await interrupt.wait();
    run_.interrupted = true;
    asking_->cancel();
    if (current_) current_->stop();
  }

  Task<std::string> ask_model() {
    http::ClientRequest request = server_.request("GET", "/v1/models");
    request.cancellation = asking_;
    const std::unique_ptr<http::ClientResponse> response = co_await server_.client->send(std::move(request));
    const std::string body = co_await response->read_all(1 << 20);
    if (response->status() == 401 || response->status() == 403)
      throw Error(Code::kInvalidArgument, fmt::format("{} wants a key: HTTP {}: {}; give --api-key", server_.base,
                                                      response->status(), error_message(body)));
    check_json_depth(body, 64, "the list of models");
    const nlohmann::json json = nlohmann::json::parse(body, nullptr, false);
    if (response->status() == 200 && json.is_object() && json.contains("data") && json["data"].is_array() &&
        !json["data"].empty() && json["data"][0].is_object() && json["data"][0].contains("id") &&
        json["data"][0]["id"].is_string())
      co_return json["data"][0]["id"].get<std::string>();
    co_return std::string();
  }

  Task<void> warm_up() {
    const int64_t count = options_.serve_load.num_warmup;
    if (count == 0 || run_.interrupted) co_return;
    BenchLevel level;
    level.concurrency = 1;
    const MeasurementPlan plan{0, count, std::nullopt, 0};
    current_ = std::make_unique<Measurement>(server_, *requests_, plan, level);
    co_await current_->run();
    current_.reset();
  }

  Task<void> measure(int phase, BenchLevel level) {
    const BenchLoad& load = options_.load;
    const auto& duration = options_.serve_load.duration;
    const auto fitting = [&] {  // requests that fit the measurement, when no number was asked for
      if (duration) return kMaxRequests;
      if (level.request_rate > 0) return kRequestsAtARate;
      return int64_t(2 * *std::max_element(load.concurrency.begin(), load.concurrency.end()));
    };
    const MeasurementPlan plan{phase, load.num_requests ? *load.num_requests : fitting(), duration,
                               load.seed + uint64_t(phase)};
    run_.levels.push_back(std::move(level));
    current_ = std::make_unique<Measurement>(server_, *requests_, plan, run_.levels.back());
    co_await current_->run();
    current_.reset();
  }

  const BenchServeOptions& options_;
  BenchTarget& server_;
  BenchRun& run_;
  std::shared_ptr<http::Cancellation> asking_ = std::make_shared<http::Cancellation>();
  std::unique_ptr<BenchRequests> requests_;
  std::unique_ptr<Measurement> current_;
};

BenchTarget connect_to(const EndpointOptions& endpoint, bool allow_remote) {
  BenchTarget server;
  server.base = endpoint.url;
  while (server.base.ends_with('/')) server.base.pop_back();
  const http::Url url = http::parse_url(server.base);
  if (!allow_remote && !is_loopback(url.host))
    throw Error(Code::kUsage,
                fmt::format("--url: {} is not this machine. Load on another machine needs its owner's consent "
                            "and --allow-remote",
                            url.host));
  server.headers = {{"content-type", "application/json"}, {"user-agent", "moectl"}};
  if (!endpoint.api_keys.empty()) server.headers.emplace_back("authorization", "Bearer " + endpoint.api_keys.front());
  server.timeout = endpoint.timeout;
  http::ClientOptions options;
  options.max_idle_per_host = size_t(kMaxInFlight);
  options.verify_tls = !endpoint.insecure;
  server.client = http::Client::create(options);
  return server;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[40];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

BenchRun describe_run(const BenchServeOptions& options) {
  const BenchLoad& load = options.load;
  BenchRun run;
  run.url = options.endpoint.url;
  run.model = options.endpoint.model;
  run.started = utc_now();
  run.seed = load.seed;
  run.output_len = load.output_len;
  run.levels.reserve(std::max<size_t>(1, load.concurrency.size()));  // measurements hold references
  if (!options.serve_load.prompts_file.empty()) {
    run.load = fmt::format("prompts of {}, {} tokens out, greedy", options.serve_load.prompts_file, load.output_len);
    return run;
  }
  run.input_len = load.input_len;
  run.shared_prefix_len = options.serve_load.shared_prefix_len;
  run.load =
      fmt::format("{} random tokens in{}, {} out, greedy", load.input_len,
                  run.shared_prefix_len > 0 ? fmt::format(" ({} shared)", run.shared_prefix_len) : "", load.output_len);
  return run;
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  if (!file.flush()) throw Error(Code::kNotFound, fmt::format("--html {}: the file cannot be written", path));
}

}  // namespace

int bench_serve(const BenchServeOptions& options) {
  BenchTarget server = connect_to(options.endpoint, options.serve_load.allow_remote);
  BenchRun run = describe_run(options);
  const Interrupt interrupt;
  Benchmark benchmark(options, server, run);
  try {
    http::run_blocking(benchmark.all(interrupt));
  } catch (const Error& error) {
    if (error.code() == Code::kUnavailable && run.levels.empty())
      throw Error(error.code(), fmt::format("{}. Is a server running there? --url names another", error.what()));
    if (error.code() != Code::kCancelled) throw;
  }
  const std::string text = options.common.json ? bench_json(run) : bench_text(run);
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (!options.serve_load.html_file.empty()) write_file(options.serve_load.html_file, html_report(run));
  return bench_exit_code(run);
}

}  // namespace moectl
