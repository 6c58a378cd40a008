#include "core/api/cost.h"

#include <algorithm>

#include "core/base/error.h"

namespace moectl::api {
namespace {

size_t content_bytes(const ChatMessage& message) {
  size_t bytes = message.content.size();
  if (message.reasoning_content) bytes += message.reasoning_content->size();
  for (const PastToolCall& call : message.tool_calls) bytes += call.name.size() + call.arguments.size();
  return bytes;
}

}  // namespace

Cost cost_of(const ChatRequest& request) {
  Cost cost{.num_prompts = 1, .num_choices = request.common.n};
  for (const ChatMessage& message : request.messages) cost.max_prompt_bytes += content_bytes(message);
  cost.max_prompt_tokens = int64_t(cost.max_prompt_bytes);
  return cost;
}

Cost cost_of(const CompletionRequest& request) {
  Cost cost{.num_prompts = int64_t(request.prompts.size())};
  cost.num_choices = cost.num_prompts * request.common.n;
  for (const Prompt& prompt : request.prompts) {
    const auto* text = std::get_if<std::string>(&prompt);
    if (text) cost.max_prompt_bytes = std::max(cost.max_prompt_bytes, text->size());
    cost.max_prompt_tokens += int64_t(text ? text->size() : std::get<std::vector<int32_t>>(prompt).size());
  }
  return cost;
}

void bound_logprobs(Common& common, bool chat, bool echo, const std::vector<size_t>& num_prompt_tokens,
                    int max_model_len) {
  Sampling& sampling = common.sampling;
  const auto per_token = [](int num_top) { return num_top < 0 ? int64_t{0} : int64_t{1} + num_top; };
  const bool counts_output = sampling.num_logprobs >= 0 && !common.stream;
  int64_t prompt_logprobs = 0, echoed = 0, output = 0;
  for (const size_t length : num_prompt_tokens) {
    const int64_t tokens = int64_t(length), room = std::max<int64_t>(0, max_model_len - tokens);
    // A chat's answer has them once, a completion's in each choice.
    prompt_logprobs += tokens * per_token(sampling.num_prompt_logprobs) * (chat ? 1 : common.n);
    if (echo) echoed += tokens * per_token(sampling.num_logprobs) * common.n;
    if (counts_output && sampling.max_tokens)
      output += std::min<int64_t>(*sampling.max_tokens, room) * per_token(sampling.num_logprobs) * common.n;
  }
  const int64_t total = prompt_logprobs + echoed + output;
  if (total > kMaxLogprobs)
    throw Error(Code::kInvalidArgument,
                fmt::format("the answer could have {} logprobs (tokens x (1 + alternatives) x choices); one answer may "
                            "have at most {}: ask for fewer alternatives, tokens or choices, or send several requests",
                            total, kMaxLogprobs),
                prompt_logprobs > echoed + output ? "prompt_logprobs" : "logprobs");
  const int64_t per_output = per_token(sampling.num_logprobs) * common.n * int64_t(num_prompt_tokens.size());
  if (counts_output && !sampling.max_tokens && per_output > 0)
    sampling.max_tokens = int(std::max<int64_t>(1, kMaxLogprobs / per_output));
}

void check_choices(const Cost& cost) {
  if (cost.num_choices <= kMaxRequestChoices) return;
  throw Error(Code::kInvalidArgument,
              fmt::format("{} prompts x `n` {} are {} choices; one request may have at most {}: send several requests",
                          cost.num_prompts, cost.num_choices / cost.num_prompts, cost.num_choices, kMaxRequestChoices),
              cost.num_choices > cost.num_prompts ? "n" : "prompt");
}

void check_tokenize(const TokenizeRequest& request) {
  const auto* prompt = std::get_if<std::string>(&request.input);
  const size_t num_bytes = prompt ? prompt->size() : cost_of(std::get<ChatRequest>(request.input)).max_prompt_bytes;
  if (num_bytes <= kMaxTokenizeBytes) return;
  throw Error(Code::kInvalidArgument,
              fmt::format("the text has {} bytes; at most {} are tokenized at once: send it in parts", num_bytes,
                          kMaxTokenizeBytes),
              prompt ? "prompt" : "messages");
}

bool exceeds_tokens(size_t num_bytes, size_t max_tokens, size_t max_token_bytes) {
  return max_token_bytes > 0 && num_bytes / max_token_bytes > max_tokens;
}

}  // namespace moectl::api
