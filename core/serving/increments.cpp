#include "core/serving/increments.h"

#include <iterator>
#include <limits>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"

namespace moectl {
namespace {

constexpr size_t kAdmitted = std::numeric_limits<size_t>::max();

// Prompt tokens are not counted: they come once, and their number is bounded before the request is taken.
size_t bytes_of(const GenerateOutput& output) {
  size_t bytes = 0;
  for (const GenerateOutput::Token& token : output.tokens)
    bytes += sizeof token + token.top.size() * sizeof(TokenLogprob);
  return bytes;
}

void merge(GenerateOutput& first, GenerateOutput&& more) {
  first.tokens.insert(first.tokens.end(), std::make_move_iterator(more.tokens.begin()),
                      std::make_move_iterator(more.tokens.end()));
  first.finish = more.finish;
  first.stop_token = more.stop_token;
  first.error = std::move(more.error);
  first.error_param = std::move(more.error_param);
  first.error_code = more.error_code;
}

}  // namespace

Increments::Increments(std::string request_id, size_t num_choices, size_t max_bytes)
    : request_id_(std::move(request_id)), max_bytes_(max_bytes), waiting_(num_choices) {}

void Increments::push(size_t choice_idx, GenerateOutput&& output) {
  std::lock_guard lock(mutex_);
  if (closed_) throw Error(Code::kCancelled, "the client is gone or reads too slowly");
  waiting_bytes_ += bytes_of(output);
  if (waiting_bytes_ > max_bytes_) {
    log::warn("{}: the client reads its stream too slowly: more than {} bytes wait for it; the request is cancelled",
              request_id_, max_bytes_);
    closed_ = overflowed_ = true;
    for (auto& waiting : waiting_) waiting.reset();
    ready_.close();
    throw Error(Code::kCancelled, "the client reads too slowly");
  }
  std::optional<GenerateOutput>& waiting = waiting_[choice_idx];
  if (waiting) return merge(*waiting, std::move(output));
  waiting = std::move(output);
  ready_.push(choice_idx);
}

void Increments::push_admitted() {
  ready_.push(kAdmitted);
}

void Increments::close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  ready_.close();
}

Task<std::optional<Increment>> Increments::pop(Clock::duration timeout) {
  const std::optional<size_t> choice_idx = co_await ready_.pop(timeout);
  if (!choice_idx) co_return std::nullopt;
  Increment increment;
  if (*choice_idx == kAdmitted) {
    increment.admitted = true;
    co_return std::optional<Increment>(std::move(increment));
  }
  std::lock_guard lock(mutex_);
  std::optional<GenerateOutput> output = std::exchange(waiting_[*choice_idx], std::nullopt);
  if (!output) co_return std::nullopt;  // dropped by an overflow
  waiting_bytes_ -= bytes_of(*output);
  increment.choice_idx = *choice_idx;
  increment.output = std::move(*output);
  co_return std::optional<Increment>(std::move(increment));
}

bool Increments::overflowed() const {
  std::lock_guard lock(mutex_);
  return overflowed_;
}

}  // namespace moectl
