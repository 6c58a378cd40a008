#include "core/serving/request_record.h"

#include <algorithm>
#include <utility>

#include "core/serving/expert_load.h"

namespace moectl {
namespace {

constexpr size_t kMaxReasonBytes = 512;  // errors of peers go into a response header

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

double tokens_per_second(int64_t num_tokens, double seconds) {
  return num_tokens > 1 && seconds > 0 ? double(num_tokens - 1) / seconds : 0;
}

std::string transfer_detail(const PrefillStats& stats) {
  const double mb = double(stats.kv_bytes) / 1e6;
  if (stats.transfer_seconds <= 0) return fmt::format("{:.2f} MB", mb);
  return fmt::format("{:.2f} MB, {:.2f} GB/s", mb, mb / 1e3 / stats.transfer_seconds);
}

}  // namespace

std::vector<api::Stage> stages_of(const RequestTimes& times, const PrefillStats& stats, int64_t num_tokens) {
  std::vector<api::Stage> stages;
  const auto add = [&](const char* name, double start, double end, std::string detail = {}) {
    stages.push_back({name, 1e3 * start, 1e3 * std::max(0.0, end - start), std::move(detail)});
  };
  const double submitted = seconds_between(times.start, times.submitted);
  const double first_token = seconds_between(times.start, times.first_token);
  const double end = seconds_between(times.start, times.last_token);
  const double admitted = std::min(submitted + stats.queue_seconds, first_token);
  add("prepare", 0, submitted, "read, render, tokenise");
  add("queue", submitted, admitted);
  if (stats.worker.empty()) {
    add("prefill", admitted, first_token, "here: " + stats.local_reason);
  } else {
    // The prefill worker's own measurements, laid end to end from the admission and cut at the first token, since the
    // clocks of two machines may contradict each other. KV blocks are sent while it still computes.
    const double computing = std::min(admitted + stats.remote_queue_seconds, first_token);
    const double computed = std::min(computing + stats.remote_compute_seconds, first_token);
    const double received = std::min(std::max(computed, computing + stats.transfer_seconds), first_token);
    add("prefill.queue", admitted, computing, stats.worker);
    add("prefill.compute", computing, computed,
        stats.remote_cached_tokens > 0 ? fmt::format("{} tokens from its cache", stats.remote_cached_tokens) : "");
    add("kv.transfer", std::max(computing, received - stats.transfer_seconds), received, transfer_detail(stats));
    add("first_token", received, first_token, "the last prompt token, here");
  }
  add("decode", first_token, end,
      fmt::format("{} tokens, {:.1f} a second", num_tokens, tokens_per_second(num_tokens, end - first_token)));
  return stages;
}

RequestRecord::RequestRecord(Instance& instance, const http::Request& request)
    : instance_(instance), context_{.id = request.id}, path_(request.path) {
  ++instance_.in_flight;
  instance_.metrics.add_in_flight(1);
}

RequestRecord::~RequestRecord() {
  const double seconds = seconds_between(start_, Clock::now());
  instance_.metrics.count_request(outcome_);
  if (outcome_ == Outcome::kSuccess)
    instance_.metrics.observe_request(seconds, double(num_prompt_tokens_), double(num_tokens_));
  std::string more;
  if (prefill_ && !prefill_->worker.empty()) more += fmt::format(" prefill={}", prefill_->worker);
  if (context_.attempt > 1) more += fmt::format(" attempt={}", context_.attempt);
  if (!context_.trace_id.empty()) more += fmt::format(" trace={}", context_.trace_id);
  if (!error_.param.empty()) more += fmt::format(" param={}", error_.param);
  if (!error_.message.empty()) more += fmt::format(": {}", error_.message);
  const double ttft_seconds = seconds_between(start_, first_token_.value_or(start_));
  log::info(log::About{context_.id, log_fields(seconds)},
            "{} {} prompt={} completion={} ttft={:.1f}ms total={:.1f}ms{}", path_, status_, num_prompt_tokens_,
            num_tokens_, 1e3 * ttft_seconds, 1e3 * seconds, more);
  instance_.metrics.add_in_flight(-1);
  --instance_.in_flight;
}

std::vector<log::Field> RequestRecord::log_fields(double seconds) const {
  std::vector<log::Field> fields = {{"path", path_},
                                    {"status", int64_t(status_)},
                                    {"prompt_tokens", num_prompt_tokens_},
                                    {"completion_tokens", num_tokens_}};
  if (submitted_) fields.push_back({"prepare_seconds", seconds_between(start_, *submitted_)});
  if (first_token_) fields.push_back({"ttft_seconds", seconds_between(start_, *first_token_)});
  fields.push_back({"total_seconds", seconds});
  if (prefill_ && !prefill_->worker.empty()) fields.push_back({"prefill", prefill_->worker});
  if (context_.attempt > 1) fields.push_back({"attempt", int64_t(context_.attempt)});
  if (!context_.trace_id.empty()) fields.push_back({"trace_id", context_.trace_id});
  if (!error_.message.empty()) fields.push_back({"error", error_.message});
  if (!error_.param.empty()) fields.push_back({"param", error_.param});
  if (!error_code_.empty()) fields.push_back({"code", error_code_});
  return fields;
}

void RequestRecord::on_context(const RequestContext& context) {
  context_ = context;
}

void RequestRecord::on_submit(int64_t num_prompt_tokens) {
  num_prompt_tokens_ = num_prompt_tokens;
  submitted_ = Clock::now();
}

void RequestRecord::on_prefill(const PrefillStats& stats) {
  instance_.metrics.observe_prefill(stats);
  kv_bytes_ += stats.kv_bytes;
  if (!prefill_) prefill_ = stats;
}

void RequestRecord::on_tokens(int64_t count) {
  if (count == 0) return;
  num_tokens_ += count;
  const auto now = Clock::now();
  if (!first_token_) {
    first_token_ = now;
    instance_.metrics.observe_first_token(seconds_between(start_, now));
    if (context_.debug) read_expert_load(instance_);  // for the timeline, without delaying it
  } else {
    instance_.metrics.observe_inter_token(seconds_between(last_token_, now) / double(count));
  }
  last_token_ = now;
}

void RequestRecord::on_end(Outcome outcome, int status) {
  outcome_ = outcome;
  status_ = status;
}

void RequestRecord::on_error(const api::ApiError& error) {
  on_end(error.status >= 500 ? Outcome::kFailed : Outcome::kRefused, error.status);
  error_ = api::loggable(error);
  error_code_ = error.code;
}

api::Timeline RequestRecord::timeline(int64_t num_cached_tokens) const {
  const auto now = Clock::now();
  const PrefillStats stats = prefill_.value_or(PrefillStats{});
  api::Timeline timeline{.role = "decode", .worker = instance_.url, .request_id = context_.id};
  if (first_token_) {
    const RequestTimes times{start_, submitted_.value_or(start_), *first_token_, last_token_};
    timeline.stages = stages_of(times, stats, num_tokens_);
    timeline.ttft_ms = 1e3 * seconds_between(start_, *first_token_);
    timeline.tokens_per_second = tokens_per_second(num_tokens_, seconds_between(*first_token_, last_token_));
  } else {
    timeline.stages.push_back({"queue", 0, 1e3 * seconds_between(start_, now), "no token was computed"});
  }
  timeline.prefill_worker = stats.worker;
  timeline.prefill_reason = stats.local_reason.substr(0, kMaxReasonBytes);
  timeline.kv_bytes = kv_bytes_;
  timeline.prompt_tokens = int(num_prompt_tokens_);
  timeline.cached_tokens = int(num_cached_tokens);
  timeline.output_tokens = int(num_tokens_);
  if (const auto balance = instance_.metrics.expert_balance())
    timeline.expert_balance = {balance->mean, balance->lowest, balance->lowest_layer};
  return timeline;
}

}  // namespace moectl
