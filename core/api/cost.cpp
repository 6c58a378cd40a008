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

void check_choices(const Cost& cost) {
  if (cost.num_choices <= kMaxRequestChoices) return;
  throw Error(Code::kInvalidArgument,
              fmt::format("{} prompts x `n` {} are {} choices; one request may have at most {}: send several requests",
                          cost.num_prompts, cost.num_choices / cost.num_prompts, cost.num_choices, kMaxRequestChoices),
              cost.num_choices > cost.num_prompts ? "n" : "prompt");
}

bool exceeds_tokens(size_t num_bytes, int64_t max_tokens, size_t max_token_bytes) {
  return max_token_bytes > 0 && num_bytes / max_token_bytes > size_t(max_tokens);
}

}  // namespace moectl::api
