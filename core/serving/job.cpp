#include "core/serving/job.h"

#include <algorithm>
#include <utility>

#include "core/api/cost.h"
#include "core/base/error.h"

namespace moectl {
namespace {

// The pool could never hold it: waiting and trying again would not help. Known before the first choice is admitted, so
// that a stream has not begun.
void check_fits(const Instance& instance, const char* prompt_param, const GenerationJob& job) {
  const int64_t max_model_len = instance.engine->info().max_model_len;
  for (const EncodedPrompt& prompt : job.prompts) {
    const int64_t max_tokens = job.common.sampling.max_tokens.value_or(int(max_model_len));
    const int64_t num_tokens = std::min(int64_t(prompt.ids.size()) + max_tokens, max_model_len);
    if (instance.max_request_tokens == 0 || num_tokens <= instance.max_request_tokens) continue;
    throw Error(Code::kInvalidArgument,
                fmt::format("prompt and max_tokens need {} tokens of KV cache; a rank has {}", num_tokens,
                            instance.max_request_tokens),
                prompt_param);
  }
}

void check_job(const Instance& instance, const char* prompt_param, GenerationJob& job) {
  const int max_model_len = instance.engine->info().max_model_len;
  for (const EncodedPrompt& prompt : job.prompts) {
    if (prompt.ids.empty())
      throw Error(Code::kInvalidArgument, "the prompt is empty; at least one token is needed", prompt_param);
    if (prompt.ids.size() >= size_t(max_model_len))
      job.refusal = api::context_length_exceeded(prompt.ids.size(), max_model_len, prompt_param);
  }
  if (!job.refusal) check_fits(instance, prompt_param, job);
  if (job.refusal) return;
  std::vector<size_t> prompt_lengths;
  for (const EncodedPrompt& prompt : job.prompts) prompt_lengths.push_back(prompt.ids.size());
  api::bound_logprobs(job.common, job.chat, job.answer.echo, prompt_lengths, max_model_len);
  if (!instance.text.tokenizer && !job.common.sampling.stop.empty())
    throw Error(Code::kInvalidArgument,
                "`stop` needs text; this server runs with --skip-tokenizer-init, use `stop_token_ids`", "stop");
}

// nullopt: more tokens than are counted.
std::optional<EncodedPrompt> encode(const ModelText& text, const api::CompletionRequest& request, api::Prompt&& prompt,
                                    size_t max_tokens) {
  if (auto* ids = std::get_if<std::vector<int32_t>>(&prompt)) return EncodedPrompt{.ids = std::move(*ids)};
  EncodedPrompt encoded{.text = std::get<std::string>(std::move(prompt))};
  auto ids = text.encode_prompt(*encoded.text, request.add_special_tokens, max_tokens);
  if (!ids) return std::nullopt;
  encoded.ids = std::move(*ids);
  const std::vector<int32_t>& before = text.prompt_tokens.before;
  const bool has_them = !before.empty() && encoded.ids.size() >= before.size() &&
                        std::equal(before.begin(), before.end(), encoded.ids.begin());
  if (has_them && !encoded.text->starts_with(text.token_bytes(before.front())))
    encoded.num_added_before = before.size();
  return encoded;
}

}  // namespace

api::Limits limits_of(const Instance& instance) {
  const ModelInfo& info = instance.engine->info();
  return {.vocab_size = info.vocab_size, .max_model_len = info.max_model_len};
}

GenerationJob make_chat_job(const Instance& instance, std::string_view body) {
  api::ChatRequest request = api::read_chat_request(body, limits_of(instance));
  GenerationJob job{.chat = true, .answer = {.chat = true}, .common = std::move(request.common)};
  if (!instance.serves(job.common.model)) {
    job.refusal = api::model_not_found(job.common.model, instance.options.served_model_name);
    return job;
  }
  const int max_model_len = instance.engine->info().max_model_len;
  auto ids = instance.text.encode_chat(request, api::max_counted_tokens(max_model_len));
  if (!ids) {
    job.refusal = api::context_length_exceeded(std::nullopt, max_model_len, "messages");
    return job;
  }
  job.prompts.push_back({.ids = std::move(*ids)});
  job.answer.tools = std::move(request.tools);
  check_job(instance, "messages", job);
  return job;
}

GenerationJob make_completion_job(const Instance& instance, std::string_view body) {
  api::CompletionRequest request = api::read_completion_request(body, limits_of(instance));
  GenerationJob job{.answer = {.echo = request.echo, .score_only = request.common.sampling.max_tokens == 0},
                    .common = std::move(request.common)};
  if (!instance.serves(job.common.model)) {
    job.refusal = api::model_not_found(job.common.model, instance.options.served_model_name);
    return job;
  }
  const int max_model_len = instance.engine->info().max_model_len;
  for (api::Prompt& prompt : request.prompts) {
    auto encoded = encode(instance.text, request, std::move(prompt), api::max_counted_tokens(max_model_len));
    if (!encoded) {
      job.refusal = api::context_length_exceeded(std::nullopt, max_model_len, "prompt");
      return job;
    }
    job.prompts.push_back(std::move(*encoded));
  }
  check_job(instance, "prompt", job);
  return job;
}

}  // namespace moectl
