#include "core/serving/generation.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "core/api/cluster.h"
#include "core/api/openai_response.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/http/sse.h"
#include "core/serving/increments.h"
#include "core/serving/job.h"
#include "core/serving/prepare.h"
#include "core/serving/request_record.h"
#include "core/serving/sampling.h"

namespace moectl {
namespace {

constexpr const char* kReadsTooSlowly = "The client reads its stream too slowly: too much of it waits to be sent";

// Longer answers are rendered on the CPU pool, in pieces, since the I/O thread serves other clients too.
constexpr size_t kInlineBytes = 32u << 10;
constexpr size_t kInlineTokens = 1024;
// A request with more and more to do yields to the others of its I/O thread after this time.
constexpr std::chrono::milliseconds kLongestTurn{5};

std::string random_id(const char* prefix) {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return fmt::format("{}{:016x}{:016x}", prefix, generator(), generator());
}

class DeadlinePassed : public Error {
 public:
  DeadlinePassed() : Error(Code::kUnavailable, "The request's deadline passed before its answer began") {}
};

// The engine failed while it computed this request, and the instance ends.
class EngineFailed : public Error {
 public:
  explicit EngineFailed(const std::string& why) : Error(Code::kUnavailable, "the engine failed: " + why) {}
};

// The engine requests of one job, one per choice, submitted in order. The destructor cancels those that still run.
class ChoiceRequests {
 public:
  ChoiceRequests(const Instance& instance, const GenerationJob& job, const RequestContext& context,
                 std::shared_ptr<Increments> increments)
      : instance_(instance),
        job_(job),
        context_(context),
        seed_(job.common.sampling.seed ? *job.common.sampling.seed : draw_seed()),
        increments_(std::move(increments)) {}
  ~ChoiceRequests() {
    for (const uint64_t handle : handles_) instance_.engine->cancel(handle);  // finished ones are ignored
  }
  ChoiceRequests(const ChoiceRequests&) = delete;

  void submit_next() {
    GenerateRequest request = make_request(handles_.size());
    auto sink = [increments = increments_, choice_idx = handles_.size()](GenerateOutput&& output) {
      increments->push(choice_idx, std::move(output));
    };
    try {
      handles_.push_back(instance_.engine->submit(std::move(request), std::move(sink)));
    } catch (const Error& e) {
      // The pool could never hold it and a retry would not help: the request is at fault.
      if (e.code() == Code::kResourceExhausted)
        throw Error(Code::kInvalidArgument, e.what(), job_.chat ? "messages" : "prompt");
      throw;
    }
  }
  bool complete() const { return handles_.size() == job_.num_choices(); }
  void cancel(size_t choice_idx) { instance_.engine->cancel(handles_[choice_idx]); }

 private:
  GenerateRequest make_request(size_t choice_idx) const {
    const EncodedPrompt& prompt = job_.prompts[choice_idx / size_t(job_.common.n)];
    const int idx_in_prompt = int(choice_idx % size_t(job_.common.n));
    const api::Sampling& sampling = job_.common.sampling;
    GenerateRequest request{.id = job_.num_choices() == 1 ? context_.id : fmt::format("{}-{}", context_.id, choice_idx),
                            .prompt_ids = prompt.ids,
                            .cache_salt = job_.common.cache_salt,
                            .deadline = context_.deadline,
                            .prefill_workers = context_.prefill_workers};
    request.sampling = to_engine_sampling(sampling, instance_.defaults, seed_, idx_in_prompt, prompt.ids.size(),
                                          instance_.engine->info().max_model_len);
    request.sampling.prompt_logprobs = job_.scores_prompt(idx_in_prompt);
    return request;
  }

  const Instance& instance_;
  const GenerationJob& job_;
  const RequestContext& context_;
  const uint64_t seed_;
  const std::shared_ptr<Increments> increments_;
  std::vector<uint64_t> handles_;
};

api::AnswerHead make_head(const Instance& instance, const GenerationJob& job) {
  const bool ids_only = !instance.text.tokenizer;
  return {
      .id = random_id(job.chat ? "chatcmpl-" : "cmpl-"),
      .model = instance.options.served_model_name,
      .created =
          std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count(),
      .logprobs = job.common.sampling.num_logprobs >= 0,
      .token_ids = job.common.return_token_ids || ids_only,
      .prompt_logprobs = job.common.sampling.num_prompt_logprobs >= 0,
      .tokens_as_ids = job.common.tokens_as_ids || ids_only,
      .usage_in_stream = job.common.include_usage,
      .tools = job.answer.tools.parses_calls()};
}

// One request from submission to its last byte. Lives in the handler's coroutine.
class Generation {
 public:
  Generation(Instance& instance, GenerationJob job, RequestRecord& record)
      : instance_(instance), job_(std::move(job)), record_(record), head_(make_head(instance, job_)) {
    std::shared_ptr<api::PromptScores> scores;
    for (size_t i = 0; i < job_.num_choices(); ++i) {
      if (i % size_t(job_.common.n) == 0) scores = std::make_shared<api::PromptScores>();
      answers_.emplace_back(instance_.text, job_.common, job_.prompts[i / size_t(job_.common.n)], job_.answer, int(i),
                            scores);
      choices_.push_back({.index = int(i)});
    }
    unsent_ids_.resize(answers_.size());
  }

  Task<void> run(http::Exchange& exchange) {
    // A whole answer is kept until it is complete in any case, and its coroutine never waits for the client.
    const size_t max_unsent = job_.common.stream ? kMaxUnsentBytes : std::numeric_limits<size_t>::max();
    auto increments = std::make_shared<Increments>(record_.context().id, answers_.size(), max_unsent);
    exchange.on_client_gone([increments] { increments->close(); });
    const std::unique_ptr<Admission::Ticket> ticket = enter(increments);  // outlives the requests
    ChoiceRequests requests(instance_, job_, record_.context(), increments);
    for (int64_t i = 0; i < ticket->num_admitted_at_once(); ++i) requests.submit_next();
    if (job_.common.stream) co_await start_stream(exchange);
    Clock::time_point turn_end = Clock::now() + kLongestTurn;
    for (size_t num_open = answers_.size(); num_open > 0;) {
      if (Clock::now() >= turn_end) {
        co_await sleep_for(Clock::duration::zero());
        turn_end = Clock::now() + kLongestTurn;
      }
      std::optional<Increment> increment = co_await increments->pop(patience(requests));
      if (!increment) {
        if (increments->overflowed()) throw Error(Code::kInvalidArgument, kReadsTooSlowly);
        if (!increments->timed_out()) throw Error(Code::kCancelled, "the client went away");
        // The engine checks the deadline of choices that were submitted.
        if (!requests.complete() && record_.context().deadline_passed(Clock::now())) throw DeadlinePassed();
        if (job_.common.stream) {
          std::string ping(http::kSsePing);
          co_await exchange.write(std::move(ping));
        }
        continue;
      }
      if (increment->admitted) {
        requests.submit_next();
        continue;
      }
      Answer& answer = answers_[increment->choice_idx];
      if (answer.done()) continue;  // tokens beyond a stop string
      if (increment->output.prefill) record_.on_prefill(*increment->output.prefill);
      const GenerateOutput failure = take_failure(increment->output);
      if (increment->output.tokens.empty()) check_finish(failure);
      api::Choice delta;
      if (increment->output.prompt_tokens.size() + increment->output.tokens.size() <= kInlineTokens) {
        delta = push(answer, increment->choice_idx, std::move(increment->output));
      } else {
        auto push_all = [this, &answer, &increment] {
          return push(answer, increment->choice_idx, std::move(increment->output));
        };
        delta = co_await run_on(instance_.pool, std::move(push_all));
      }
      if (answer.done()) {
        requests.cancel(increment->choice_idx);
        ticket->finish_one();
        --num_open;
      }
      if (job_.common.stream)
        co_await send(exchange, delta);
      else
        choices_[increment->choice_idx].append(std::move(delta));
      if (!answer.done()) check_finish(failure);
    }
    record_.on_end(Outcome::kSuccess, 200);
    if (job_.common.stream)
      co_await finish_stream(exchange);
    else
      co_await respond(exchange);
  }

 private:
  // The end of an output that failed, without the tokens before it; these are sent first.
  static GenerateOutput take_failure(GenerateOutput& output) {
    const bool failed = output.finish == FinishReason::kError || output.finish == FinishReason::kCancelled ||
                        output.finish == FinishReason::kDeadline;
    if (!failed) return {};
    return {.finish = std::exchange(output.finish, FinishReason::kNone),
            .error = output.error,
            .error_param = output.error_param,
            .error_code = output.error_code};
  }

  std::unique_ptr<Admission::Ticket> enter(const std::shared_ptr<Increments>& increments) {
    int64_t num_prompt_tokens = 0;
    for (const EncodedPrompt& prompt : job_.prompts) num_prompt_tokens += int64_t(prompt.ids.size());
    auto ticket =
        instance_.admission.enter(record_.context().client, int64_t(job_.num_choices()),
                                  num_prompt_tokens * job_.common.n, [increments] { increments->push_admitted(); });
    record_.on_submit(num_prompt_tokens);
    return ticket;
  }

  // How long to wait for an increment: up to the next ping, or the deadline of choices that are not admitted yet.
  Clock::duration patience(const ChoiceRequests& requests) const {
    const auto& deadline = record_.context().deadline;
    if (requests.complete() || !deadline) return kPingInterval;
    return std::clamp<Clock::duration>(*deadline - Clock::now(), Clock::duration(0), kPingInterval);
  }

  // Throws what the request's answer becomes when it ended without success.
  void check_finish(const GenerateOutput& output) const {
    if (output.finish == FinishReason::kDeadline) throw DeadlinePassed();
    if (output.finish == FinishReason::kError && instance_.engine->stats().failed) throw EngineFailed(output.error);
    if (output.finish == FinishReason::kError && output.error_code == Code::kInvalidArgument)
      throw Error(Code::kInvalidArgument, output.error, output.error_param);
    if (output.finish == FinishReason::kError) throw Error(Code::kInternal, "the engine failed: " + output.error);
    if (output.finish == FinishReason::kCancelled) throw Error(Code::kUnavailable, "the server is going down");
  }

  api::Choice push(Answer& answer, size_t choice_idx, GenerateOutput&& output) {
    std::vector<int32_t> ids;
    for (const GenerateOutput::Token& token : output.tokens) ids.push_back(token.id);
    const int64_t tokens_before = answer.num_tokens();
    api::Choice delta = answer.push(std::move(output));
    const size_t num_new = size_t(answer.num_tokens() - tokens_before);  // fewer than `ids` at a stop string
    record_.on_tokens(int64_t(num_new));
    if (record_.context().from_router)
      unsent_ids_[choice_idx].insert(unsent_ids_[choice_idx].end(), ids.begin(), ids.begin() + ptrdiff_t(num_new));
    return delta;
  }

  Task<void> start_stream(http::Exchange& exchange) {
    http::Headers headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
    co_await exchange.start_stream(std::move(headers));
    if (!job_.chat) co_return;
    for (const Answer& answer : answers_) {
      const size_t index = size_t(&answer - answers_.data());
      auto make = [this, index] {
        return http::sse_event(api::chat_role_chunk(head_, int(index), job_.prompts.front().ids));
      };
      std::string event;
      if (head_.token_ids && job_.prompts.front().ids.size() > kInlineTokens)
        event = co_await run_on(instance_.pool, std::move(make));
      else
        event = make();
      co_await exchange.write(std::move(event));
    }
  }

  // Clients (openai's) end a tool call at an event after its last delta, so the finish reason has an event of its own.
  Task<void> send(http::Exchange& exchange, api::Choice delta) {
    if (delta.tool_calls.empty() || delta.finish_reason.empty()) {
      co_await send_event(exchange, delta);
      co_return;
    }
    const api::Choice end = {.index = delta.index,
                             .finish_reason = std::exchange(delta.finish_reason, {}),
                             .stop_string = std::exchange(delta.stop_string, {}),
                             .stop_token = std::exchange(delta.stop_token, -1)};
    co_await send_event(exchange, delta);
    co_await send_event(exchange, end);
  }

  Task<void> send_event(http::Exchange& exchange, const api::Choice& delta) {
    const bool empty = delta.content.empty() && delta.reasoning.empty() && delta.tool_calls.empty() &&
                       delta.logprobs.empty() && delta.token_ids.empty() && delta.prompt_token_ids.empty() &&
                       delta.finish_reason.empty();
    if (empty) co_return;  // everything is held back
    std::string events = take_token_comment(size_t(delta.index));
    auto make = [this, &delta] {
      return job_.chat ? api::chat_chunk(head_, delta) : api::completion_chunk(head_, delta);
    };
    if (delta.text_bytes() <= kInlineBytes) {
      events += http::sse_event(make().all());
      co_await exchange.write(std::move(events));
      co_return;
    }
    // One event; JSON has no line breaks.
    events += "data: ";
    co_await exchange.write(std::move(events));
    api::TextPieces pieces = co_await run_on(instance_.pool, std::move(make));
    co_await write_pieces(exchange, pieces);
    std::string end = "\n\n";
    co_await exchange.write(std::move(end));
  }

  Task<void> write_pieces(http::Exchange& exchange, api::TextPieces& pieces) {
    for (;;) {
      auto make = [&pieces] { return pieces.next(); };
      std::string piece = co_await run_on(instance_.pool, std::move(make));
      if (piece.empty()) break;
      co_await exchange.write(std::move(piece));
    }
  }

  // For the router: the ids behind the text of the next event, held-back ones included.
  std::string take_token_comment(size_t choice_idx) {
    const std::vector<int32_t> ids = std::exchange(unsent_ids_[choice_idx], {});
    return ids.empty() ? "" : api::token_comment(int(choice_idx), ids, answers_[choice_idx].num_tokens());
  }

  Task<void> finish_stream(http::Exchange& exchange) {
    std::string end;
    if (job_.common.include_usage) end = http::sse_event(api::usage_chunk(head_, job_.chat, usage()));
    if (record_.context().debug)
      end += fmt::format("{}{}\n\n", api::kTimelineComment, api::to_json(record_.timeline(usage().cached_tokens)));
    end += http::kSseDone;
    co_await exchange.write(std::move(end));
    co_await exchange.finish();
  }

  Task<void> respond(http::Exchange& exchange) {
    http::Response response;
    if (record_.context().debug)
      response.headers.emplace_back(api::kTimelineHeader, api::to_json(record_.timeline(usage().cached_tokens)));
    auto make = [this] {
      return job_.chat ? api::chat_response(head_, choices_, usage())
                       : api::completion_response(head_, choices_, usage());
    };
    size_t bytes = 0;
    for (const api::Choice& choice : choices_) bytes += choice.text_bytes();
    if (bytes <= kInlineBytes) {
      response.body = make().all();
      co_await exchange.respond(std::move(response));
      co_return;
    }
    api::TextPieces pieces = co_await run_on(instance_.pool, std::move(make));
    co_await exchange.start_body(std::move(response), std::nullopt);
    try {
      co_await write_pieces(exchange, pieces);
    } catch (...) {
      exchange.abort();  // an error event has no place in this body
      throw;
    }
    co_await exchange.finish();
  }

  // Prompts count once, however many choices they have.
  api::Usage usage() const {
    api::Usage usage{.prompt_tokens = record_.num_prompt_tokens()};
    for (const Answer& answer : answers_) {
      usage.completion_tokens += answer.num_tokens();
      usage.reasoning_tokens += answer.num_reasoning_tokens();
      if (size_t(&answer - answers_.data()) % size_t(job_.common.n) == 0)
        usage.cached_tokens += answer.num_cached_tokens();
    }
    return usage;
  }

  Instance& instance_;
  const GenerationJob job_;
  RequestRecord& record_;
  const api::AnswerHead head_;
  std::vector<Answer> answers_;
  std::vector<api::Choice> choices_;
  std::vector<std::vector<int32_t>> unsent_ids_;  // by choice; from the router only
};

// A refusal, or what went wrong: a response while that is possible, an event in a stream that has begun. A stream that
// failed is closed without its end mark, so that no client takes it for complete.
Task<void> report(http::Exchange& exchange, RequestRecord& record, const api::ApiError& error) {
  record.on_error(error);
  if (!exchange.responded()) {
    http::Response response = error_response(error);
    if (record.context().debug) response.headers.emplace_back(api::kTimelineHeader, api::to_json(record.timeline(0)));
    co_await exchange.respond(std::move(response));
    co_return;
  }
  std::string event = http::sse_event(api::error_body(error));
  co_await exchange.write(std::move(event));
  exchange.abort();
}

api::ApiError to_api_error(const std::exception& e) {
  const auto* error = dynamic_cast<const Error*>(&e);
  if (dynamic_cast<const DeadlinePassed*>(&e)) return api::from_status(504, e.what());
  if (dynamic_cast<const EngineFailed*>(&e)) return api::engine_failed(e.what());
  if (error) return api::from_error(*error);
  return api::from_status(500, e.what());
}

using MakeJob = GenerationJob (*)(const Instance&, std::string_view);

Task<void> generate(Instance& instance, MakeJob make_job, http::Exchange& exchange, RequestRecord& record) {
  const http::Request& request = exchange.request();
  std::unique_ptr<Admission::Ticket> turn = co_await turn_to_prepare(instance, exchange);
  auto check = [&instance, &request] {
    const ServiceOptions& options = instance.options;
    RequestContext context =
        read_context(request, options.cluster_secret, read_clocks(), !options.api.api_keys.empty());
    context.debug &= context.from_router || options.api.debug_header;
    return context;
  };
  RequestContext context = co_await run_on(instance.pool, std::move(check));
  record.on_context(context);
  if (context.deadline_passed(Clock::now())) throw DeadlinePassed();
  instance.admission.check(context.client, 1);  // before the work of preparing it
  auto prepare = [&instance, make_job, &request] { return make_job(instance, request.body); };
  GenerationJob job = co_await run_on(instance.pool, std::move(prepare));
  turn.reset();
  if (job.refusal) {
    const api::ApiError refusal = *job.refusal;
    co_await report(exchange, record, refusal);
    co_return;
  }
  Generation generation(instance, std::move(job), record);
  co_await generation.run(exchange);
}

http::Handler generation_handler(Instance& instance, MakeJob make_job) {
  auto handler = [&instance, make_job](http::Exchange& exchange) -> Task<void> {
    RequestRecord record(instance, exchange.request());
    std::optional<api::ApiError> failure;  // no co_await inside a catch block
    try {
      co_await generate(instance, make_job, exchange, record);
    } catch (const Error& e) {
      if (e.code() == Code::kCancelled) throw;  // the client is gone; the server closes the connection
      failure = to_api_error(e);
    } catch (const std::exception& e) {
      failure = to_api_error(e);
    }
    if (!failure) co_return;
    if (failure->status >= 500) log::warn("{} {}", record.context().id, failure->message);
    co_await report(exchange, record, *failure);
  };
  return when_ready(instance, true, std::move(handler));
}

}  // namespace

http::Handler chat_handler(Instance& instance) {
  return generation_handler(instance, make_chat_job);
}
http::Handler completion_handler(Instance& instance) {
  return generation_handler(instance, make_completion_job);
}

}  // namespace moectl
