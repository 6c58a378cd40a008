// RequestRecord: what one generation request did and when. It counts the request in and out, writes its line in the log
// (sizes, times, why it was refused; never text), and makes its timeline. One object per request, in its handler's
// coroutine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/cluster.h"
#include "core/api/loggable.h"
#include "core/base/log.h"
#include "core/serving/instance.h"
#include "core/serving/request_context.h"

namespace moectl {

class RequestRecord {
 public:
  RequestRecord(Instance& instance, const http::Request& request);
  ~RequestRecord();
  RequestRecord(const RequestRecord&) = delete;

  // The events of a request's life, in order.
  void on_context(const RequestContext& context);
  void on_submit(int64_t num_prompt_tokens);
  void on_prefill(const PrefillStats& stats);  // once per choice
  void on_tokens(int64_t count);
  void on_end(Outcome outcome, int status);
  void on_error(const api::ApiError& error);  // the end of a request that was refused or failed

  const RequestContext& context() const { return context_; }
  int64_t num_prompt_tokens() const { return num_prompt_tokens_; }
  int64_t num_tokens() const { return num_tokens_; }
  api::Timeline timeline(int64_t num_cached_tokens) const;

 private:
  std::vector<log::Field> log_fields(double seconds) const;  // point into this

  Instance& instance_;
  RequestContext context_;
  const std::string path_;
  const Clock::time_point start_ = Clock::now();
  Outcome outcome_ = Outcome::kCancelled;  // what is true when the coroutine is dropped
  int status_ = 499;                       // likewise; as proxies log a client that went away
  int64_t num_prompt_tokens_ = 0, num_tokens_ = 0, kv_bytes_ = 0;
  api::LoggedError error_;
  std::string error_code_;
  std::optional<PrefillStats> prefill_;  // of the first choice
  std::optional<Clock::time_point> submitted_, first_token_;
  Clock::time_point last_token_;
};

// The stages of a request, from its own measurements; `end` is now when it still runs. Pure.
struct RequestTimes {
  Clock::time_point start, submitted, first_token, last_token;
};
std::vector<api::Stage> stages_of(const RequestTimes& times, const PrefillStats& stats, int64_t num_tokens);

}  // namespace moectl
