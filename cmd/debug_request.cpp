// `moectl debug-request`: sends one request, shows the answer as it arrives and where its time went. Runs on the main
// thread; Ctrl-C ends the request and shows what there is.
#include "cmd/debug_request.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iterator>

#include "cmd/interrupt.h"
#include "core/base/error.h"
#include "core/http/client.h"
#include "core/http/client_message.h"
#include "core/http/response_head.h"
#include "core/http/spawn.h"

namespace moectl {
namespace {

constexpr size_t kMaxAnswerBytes = 64 << 20;

double milliseconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double, std::milli>(b - a).count();
}

std::string read_stdin() {
  std::string text, buffer(64 << 10, '\0');
  for (size_t n; (n = std::fread(buffer.data(), 1, buffer.size(), stdin)) > 0;) {
    text.append(buffer, 0, n);
    if (text.size() > kMaxAnswerBytes) throw Error(Code::kUsage, "--body -: standard input is too large");
  }
  return text;
}

// What a person sees while the answer arrives. Prints nothing with --json.
class Screen {
 public:
  explicit Screen(const CommonOptions& common)
      : silent_(common.json), color_(!common.json && !common.no_color && isatty(STDOUT_FILENO)) {}
  bool color() const { return color_; }

  void request(const DebugRequest& request) { print(fmt::format("{} {}\n", request.method, printable(request.url))); }
  void head(const DebugOutcome& outcome) {
    const char* tint = !color_ ? "" : outcome.status < 300 ? "\033[32m" : "\033[31m";
    print(fmt::format("{}HTTP {} {}{}\n", tint, outcome.status, http::reason_phrase(outcome.status),
                      color_ ? "\033[0m" : ""));
    for (const char* name : {"content-type", "x-request-id", "traceparent", "retry-after", "x-should-retry", "allow",
                             "www-authenticate", "server"})
      for (const auto& [header, value] : outcome.headers)
        if (header == name) print(fmt::format("  {}: {}\n", name, printable(value)));
    print("\n");
  }
  // Only choice 0 is shown as it arrives; further ones would mix with it.
  void delta(const AnswerDelta& delta) {
    if (delta.index != 0) return;
    if (!delta.reasoning.empty()) text("reasoning", delta.reasoning, true);
    if (!delta.content.empty()) text("answer", delta.content, false);
    if (!delta.tool_calls.empty()) text("tool calls", delta.tool_calls, false);
  }
  void further_choices(const DebugOutcome& outcome) {
    for (const auto& [index, choice] : outcome.choices) {
      if (index == 0) continue;
      section_.clear();
      const std::string name = fmt::format("choice {}", index);
      if (!choice.reasoning.empty()) text(name + ", reasoning", choice.reasoning, true);
      if (!choice.content.empty()) text(name, choice.content, false);
      if (!choice.tool_calls.empty()) text(name + ", tool calls", choice.tool_calls, false);
    }
  }
  void body(const std::string& text) {
    print(printable(text));
    if (!text.empty() && !text.ends_with('\n')) print("\n");
  }
  void end_of_answer() {
    if (!section_.empty()) print("\n");
    section_.clear();
  }
  void print(const std::string& text) {
    if (silent_) return;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

 private:
  void text(const std::string& section, const std::string& text, bool dim) {
    if (section != section_) print(fmt::format("{}--- {}\n", section_.empty() ? "" : "\n", section));
    section_ = section;
    print(color_ && dim ? fmt::format("\033[2m{}\033[0m", printable(text)) : printable(text));
  }

  const bool silent_, color_;
  std::string section_;
};

class RequestRun {
 public:
  RequestRun(const DebugRequestOptions& options, const DebugRequest& request, Screen& screen, DebugOutcome& outcome)
      : options_(options), request_(request), screen_(screen), outcome_(outcome) {}

  Task<void> run(const Interrupt& interrupt) {
    auto cancellation = std::make_shared<http::Cancellation>();
    Task<void> watching = cancel_on(interrupt, cancellation);
    co_await http::spawn("interrupt", std::move(watching));
    http::ClientOptions client_options;
    client_options.verify_tls = !options_.endpoint.insecure;
    const auto client = http::Client::create(client_options);
    http::ClientRequest request;
    request.method = request_.method;
    request.url = request_.url;
    request.headers = request_.headers;
    request.body = request_.body;
    request.header_timeout = request.idle_timeout = options_.endpoint.timeout;
    request.cancellation = cancellation;
    sent_ = Clock::now();
    const std::unique_ptr<http::ClientResponse> response = co_await client->send(std::move(request));
    outcome_.times.head_ms = milliseconds_between(sent_, Clock::now());
    outcome_.status = response->status();
    outcome_.headers = response->headers();
    outcome_.timeline_json = response->header(api::kTimelineHeader);
    outcome_.streamed = response->header("content-type").starts_with("text/event-stream");
    screen_.head(outcome_);
    // What was read before a failure is shown all the same.
    try {
      if (outcome_.streamed)
        co_await read_events(*response);
      else
        co_await read_body(*response);
    } catch (const Error& error) {
      outcome_.interrupted = error.code() == Code::kCancelled;
      outcome_.complete = false;
      if (outcome_.error.empty()) outcome_.error = error.what();
    }
    outcome_.times.total_ms = milliseconds_between(sent_, Clock::now());
  }

 private:
  static Task<void> cancel_on(const Interrupt& interrupt, std::shared_ptr<http::Cancellation> cancellation) {
    co_await interrupt.wait();
    cancellation->cancel();
  }

  Task<void> read_events(http::ClientResponse& response) {
    SseReader reader;
    size_t num_bytes = 0;
    for (;;) {
      std::optional<std::string> piece = co_await response.read();
      if (!piece) break;
      num_bytes += piece->size();
      if (num_bytes > kMaxAnswerBytes) throw Error(Code::kResourceExhausted, "the answer is larger than 64 MiB");
      for (const SseReader::Item& item : reader.feed(*piece)) take(item);
    }
    if (!outcome_.complete && outcome_.error.empty()) outcome_.error = "the stream ended without [DONE]";
  }

  void take(const SseReader::Item& item) {
    if (item.is_comment) {
      const std::string_view mark = api::kTimelineComment.substr(2);  // without ": "
      if (item.text.starts_with(mark)) outcome_.timeline_json = item.text.substr(mark.size());
      return;
    }
    const AnswerEvent event = parse_answer(item.text);
    const bool tokens = std::any_of(event.deltas.begin(), event.deltas.end(),
                                    [](const AnswerDelta& delta) { return delta.has_tokens(); });
    if (tokens) {
      const auto now = Clock::now();
      if (!outcome_.times.ttft_ms)
        outcome_.times.ttft_ms = milliseconds_between(sent_, now);
      else
        outcome_.times.gaps_ms.push_back(milliseconds_between(last_, now));
      last_ = now;
    }
    add_to_outcome(outcome_, event);
    for (const AnswerDelta& delta : event.deltas) screen_.delta(delta);
  }

  Task<void> read_body(http::ClientResponse& response) {
    outcome_.body = co_await response.read_all(kMaxAnswerBytes);
    outcome_.complete = true;
    const bool failed = outcome_.status >= 300;
    if (failed) outcome_.error = error_message(outcome_.body);
    if (failed && outcome_.error.empty()) outcome_.error = fmt::format("HTTP {}", outcome_.status);
    AnswerEvent answer;
    try {
      answer = parse_answer(outcome_.body);
    } catch (const Error&) {  // metrics, a list: not an answer
    }
    if (failed || answer.deltas.empty()) {
      screen_.body(outcome_.body);
      co_return;
    }
    answer.is_error = false;
    add_to_outcome(outcome_, answer);
    for (const AnswerDelta& delta : answer.deltas) screen_.delta(delta);
  }

  const DebugRequestOptions& options_;
  const DebugRequest& request_;
  Screen& screen_;
  DebugOutcome& outcome_;
  Clock::time_point sent_, last_;
};

void show_end(Screen& screen, const DebugOutcome& outcome) {
  screen.end_of_answer();
  screen.further_choices(outcome);
  screen.end_of_answer();
  const bool shown = !outcome.streamed && outcome.complete;  // the body itself says what is wrong
  if (!outcome.error.empty() && !shown)
    screen.print(fmt::format("\n{}error{}: {}\n", screen.color() ? "\033[31m" : "", screen.color() ? "\033[0m" : "",
                             printable(outcome.error)));
  screen.print("\n");
  if (!outcome.timeline_json.empty()) {
    try {
      screen.print(timeline_text(parse_timeline(outcome.timeline_json), outcome.times, screen.color()));
    } catch (const Error& error) {
      screen.print(fmt::format("the timeline of the server cannot be read: {}\n", error.what()));
    }
  }
  screen.print(client_text(outcome.times));
  if (outcome.usage)
    screen.print(fmt::format("  {:<14} {} tokens in ({} cached), {} out\n", "usage", outcome.usage->prompt_tokens,
                             outcome.usage->cached_tokens, outcome.usage->completion_tokens));
  if (!outcome.answer_id.empty()) screen.print(fmt::format("  {:<14} {}\n", "answer id", printable(outcome.answer_id)));
  if (outcome.timeline_json.empty())
    screen.print(fmt::format(
        "  {:<14} the server gave none (one that listens beyond loopback needs --allow-debug-header)\n", "timeline"));
}

}  // namespace

int debug_request(const DebugRequestOptions& options) {
  const DebugRequest request = build_debug_request(options, read_stdin);
  const http::Url url = http::parse_url(request.url);
  const Interrupt interrupt;
  Screen screen(options.common);
  screen.request(request);
  DebugOutcome outcome;
  RequestRun exchange(options, request, screen, outcome);
  int code = 1;
  try {
    http::run_blocking(exchange.run(interrupt));
  } catch (const Error& error) {
    outcome.interrupted = error.code() == Code::kCancelled;
    outcome.error = error.what();
    code = exit_code(error.code());
    const auto* of_client = dynamic_cast<const http::ClientError*>(&error);
    if (of_client && !of_client->connected())
      outcome.error += fmt::format(
          ". Is a server running on {}? `moectl deploy up` or `moectl serve-decode` starts "
          "one; --url names another",
          url.authority);
  }
  if (options.common.json) {
    const std::string json = outcome_json(request, outcome);
    std::fwrite(json.data(), 1, json.size(), stdout);
  }
  if (outcome.status == 0) {  // nothing was answered
    if (!options.common.json) std::fprintf(stderr, "moectl: error: %s\n", printable(outcome.error).c_str());
    return outcome.interrupted ? 130 : code;
  }
  show_end(screen, outcome);
  if (outcome.interrupted) return 130;
  return outcome.succeeded() ? 0 : 1;
}

}  // namespace moectl
