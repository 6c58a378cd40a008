#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/api/cost.h"
#include "core/api/fields.h"
#include "core/api/json.h"
#include "core/api/openai.h"
#include "core/api/openai_tools.h"
#include "core/api/unsupported.h"
#include "core/base/error.h"

namespace moectl::api {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxInt32 = 2147483647;

[[noreturn]] void refuse(const std::string& param, const std::string& message) {
  throw Error(Code::kInvalidArgument, message, param);
}

int64_t max_token_id(const Limits& limits) {
  return limits.vocab_size > 0 ? limits.vocab_size - 1 : kMaxInt32;
}

std::vector<int32_t> read_token_ids(const Json& list, const std::string& path, const Limits& limits) {
  if (!list.is_array()) fail_value(path, "an array of token ids", list);
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const Json& entry : list)
    ids.push_back(int32_t(integer_value(entry, fmt::format("{}[{}]", path, ids.size()), 0, max_token_id(limits))));
  return ids;
}

std::vector<std::string> read_stop(const Fields& fields) {
  const Json* stop = fields.find("stop");
  if (!stop) return {};
  if (!stop->is_string() && !stop->is_array()) fields.fail("stop", "a string or an array of strings");
  const Json list = stop->is_string() ? Json::array({*stop}) : *stop;
  if (list.size() > size_t(kMaxStops)) fields.fail("stop", fmt::format("at most {} strings", kMaxStops));
  std::vector<std::string> strings;
  for (const Json& entry : list) {
    const std::string path = stop->is_string() ? "stop" : fmt::format("stop[{}]", strings.size());
    strings.push_back(string_value(entry, path, kMaxStopBytes));
    if (strings.back().empty()) refuse(path, fmt::format("`{}` must not be empty", path));
  }
  return strings;
}

std::vector<std::pair<int32_t, float>> read_logit_bias(const Fields& fields, const Limits& limits) {
  const Json* bias = fields.find("logit_bias");
  if (!bias) return {};
  if (!bias->is_object()) fields.fail("logit_bias", "an object from token ids to numbers");
  if (bias->size() > size_t(kMaxLogitBias)) fields.fail("logit_bias", fmt::format("at most {} entries", kMaxLogitBias));
  std::vector<std::pair<int32_t, float>> entries;
  for (const auto& [key, value] : bias->items()) {
    const bool digits = !key.empty() && key.size() <= 9 &&
                        std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!digits || std::stol(key) > max_token_id(limits))
      refuse("logit_bias", fmt::format("`logit_bias` has the key \"{}\"; keys must be token ids from 0 to {}",
                                       key.substr(0, 32), max_token_id(limits)));
    const auto id = int32_t(std::stol(key));
    if (std::any_of(entries.begin(), entries.end(), [&](const auto& entry) { return entry.first == id; }))
      refuse("logit_bias", fmt::format("`logit_bias` names the token id {} twice", id));
    entries.emplace_back(id, float(number_value(value, "logit_bias." + key, kLogitBiasRange)));
  }
  return entries;
}

std::optional<int> read_max_tokens(const Fields& fields, bool chat, bool may_be_zero) {
  const auto old_name = fields.integer("max_tokens", may_be_zero ? 0 : 1, kMaxInt32);
  const auto new_name = chat ? fields.integer("max_completion_tokens", 1, kMaxInt32) : std::nullopt;
  if (old_name && new_name && *old_name != *new_name)
    refuse("max_tokens", fmt::format("`max_tokens` ({}) and `max_completion_tokens` ({}) differ; send one of them",
                                     *old_name, *new_name));
  if (new_name) return int(*new_name);
  if (old_name) return int(*old_name);
  return std::nullopt;
}

Sampling read_sampling(const Fields& fields, const Limits& limits) {
  Sampling s;
  s.temperature = fields.number("temperature", kTemperatureRange);
  s.top_p = fields.number("top_p", kTopPRange);
  s.min_p = fields.number("min_p", kMinPRange);
  s.presence_penalty = fields.number("presence_penalty", kPresencePenaltyRange);
  s.frequency_penalty = fields.number("frequency_penalty", kFrequencyPenaltyRange);
  s.repetition_penalty = fields.number("repetition_penalty", kRepetitionPenaltyRange);
  if (const auto k = fields.integer("top_k", -1, kMaxInt32))
    s.top_k = std::max(0, int(*k));  // -1 means off, as in vLLM
  if (const auto seed =
          fields.integer("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()))
    s.seed = uint64_t(*seed);
  s.min_tokens = int(fields.integer("min_tokens", 0, kMaxInt32).value_or(0));
  s.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  s.logit_bias = read_logit_bias(fields, limits);
  s.stop = read_stop(fields);
  if (const Json* ids = fields.find("stop_token_ids")) {
    s.stop_token_ids = read_token_ids(*ids, "stop_token_ids", limits);
    if (s.stop_token_ids.size() > size_t(kMaxStops))
      fields.fail("stop_token_ids", fmt::format("an array of at most {} token ids", kMaxStops));
  }
  if (const auto k = fields.integer("prompt_logprobs", 0, kMaxTopLogprobs)) s.num_prompt_logprobs = int(*k);
  return s;
}

void read_stream_options(const Fields& fields, Common& common) {
  const Json* options = fields.find("stream_options");
  if (!options) return;
  if (!common.stream) refuse("stream_options", "`stream_options` may be set only with `stream`: true");
  const Fields nested(*options, "stream_options");
  common.include_usage = nested.boolean("include_usage").value_or(false);
  for (const char* name : {"continuous_usage_stats", "include_obfuscation"})
    if (nested.boolean(name).value_or(false))
      refuse(nested.path(name), fmt::format("`{}` is not supported by this server", nested.path(name)));
}

// Fields without influence on the answer. They are checked, so that a mistake in them is still seen.
void check_harmless(const Fields& fields) {
  for (const char* name : {"user", "safety_identifier", "prompt_cache_key", "request_id"}) fields.string(name, 1024);
  fields.boolean("parallel_tool_calls");  // a completion has nothing to call
  if (const Json* metadata = fields.find("metadata")) {
    const Fields nested(*metadata, "metadata");
    if (metadata->size() > 16) fields.fail("metadata", "an object of at most 16 entries");
    for (const auto& [key, value] : metadata->items()) string_value(value, "metadata." + key, 512);
  }
}

// Everything but max_tokens and logprobs, whose meaning differs between the two kinds of request.
Common read_common(const Fields& fields, const Limits& limits, bool chat) {
  refuse_unsupported(fields, chat);
  check_harmless(fields);
  Common c;
  c.model = fields.string("model", 1024).value_or("");
  c.sampling = read_sampling(fields, limits);
  c.n = int(fields.integer("n", 1, kMaxChoices).value_or(1));
  c.stream = fields.boolean("stream").value_or(false);
  read_stream_options(fields, c);
  c.include_stop = fields.boolean("include_stop_str_in_output").value_or(false);
  c.skip_special = fields.boolean("skip_special_tokens").value_or(true);
  c.return_token_ids = fields.boolean("return_token_ids").value_or(false);
  c.tokens_as_ids = fields.boolean("return_tokens_as_token_ids").value_or(false);
  c.cache_salt = fields.string("cache_salt", 1024).value_or("");
  if (c.stream && c.sampling.num_prompt_logprobs >= 0)
    refuse("prompt_logprobs", "`prompt_logprobs` is not available with `stream`; ask without streaming");
  return c;
}

void check_min_tokens(const Sampling& sampling) {
  if (sampling.min_tokens > 0 && !sampling.stop.empty())
    refuse("min_tokens", "`min_tokens` cannot be combined with `stop` strings; use `stop_token_ids`");
  if (sampling.max_tokens && sampling.min_tokens > *sampling.max_tokens)
    refuse("min_tokens",
           fmt::format("`min_tokens` ({}) is over `max_tokens` ({})", sampling.min_tokens, *sampling.max_tokens));
}

// ------------------------------------------------------------------------------------------------ chat

std::string read_content(const Fields& message, const std::string& role) {
  const Json* content = message.find("content");
  if (!content) {
    if (role == "assistant") return "";  // an answer may have been reasoning only
    message.fail("content", "a string or an array of text parts");
  }
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) message.fail("content", "a string or an array of text parts");
  std::string text;
  for (size_t i = 0; i < content->size(); ++i) {
    const Fields part((*content)[i], fmt::format("{}[{}]", message.path("content"), i));
    const std::string type = part.string("type").value_or("");
    if (type.empty()) part.fail("type", "\"text\"");
    if (type != "text")
      refuse(part.path("type"),
             fmt::format("`{}` is \"{}\"; this model reads text only, and nothing is fetched from URLs",
                         part.path("type"), type.substr(0, 32)));
    const auto piece = part.string("text");
    if (!piece) part.fail("text", "a string");
    if (i > 0) text += "\n";
    text += *piece;
  }
  return text;
}

ChatMessage read_message(const Json& json, size_t index) {
  constexpr const char* kRoleExpected = "one of system, developer, user, assistant, tool";
  const Fields fields(json, fmt::format("messages[{}]", index));
  ChatMessage message;
  const auto role = fields.string("role");
  if (!role) fields.fail("role", kRoleExpected);
  static constexpr std::array kRoles = {"system", "developer", "user", "assistant", "tool"};
  if (std::find(kRoles.begin(), kRoles.end(), *role) == kRoles.end()) fields.fail("role", kRoleExpected);
  message.role = *role == "developer" ? "system" : *role;
  for (const char* name : {"function_call", "audio"})
    if (const Json* value = fields.find(name); value && !(value->is_array() && value->empty()))
      refuse(fields.path(name), fmt::format("`{}` is not supported by this server", fields.path(name)));
  message.tool_calls = read_past_tool_calls(fields);
  if (!message.tool_calls.empty() && message.role != "assistant")
    refuse(fields.path("tool_calls"), "`tool_calls` belong to assistant messages");
  message.tool_call_id = fields.string("tool_call_id", kMaxCallIdBytes);
  if (message.tool_call_id && message.role != "tool")
    refuse(fields.path("tool_call_id"), "`tool_call_id` belongs to tool messages");
  if (!message.tool_call_id && message.role == "tool") fields.fail("tool_call_id", "the id of the call it answers");
  message.content = read_content(fields, message.role);
  if (const auto refusal = fields.string("refusal"); refusal && message.content.empty()) message.content = *refusal;
  message.name = fields.string("name", 256);
  message.reasoning_content = fields.string("reasoning_content");
  if (!message.reasoning_content) message.reasoning_content = fields.string("reasoning");
  return message;
}

std::vector<ChatMessage> read_messages(const Fields& fields) {
  const Json* list = fields.find("messages");
  if (!list || !list->is_array() || list->empty()) fields.fail("messages", "an array of at least one message");
  if (list->size() > size_t(kMaxMessages)) fields.fail("messages", fmt::format("at most {} messages", kMaxMessages));
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < list->size(); ++i) messages.push_back(read_message((*list)[i], i));
  return messages;
}

Scalar read_scalar(const Json& value, const std::string& path) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer())
    return integer_value(value, path, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
  if (value.is_number_float()) return value.get<double>();
  if (value.is_string()) return string_value(value, path, 4096);
  fail_value(path, "a string, a number, true or false", value);
}

// Scalars only, and never a name the server sets: a client must not replace messages or smuggle trusted text.
std::vector<std::pair<std::string, Scalar>> read_template_kwargs(const Fields& fields) {
  static constexpr std::array kReserved = {"messages",  "tools",     "documents",    "add_generation_prompt",
                                           "bos_token", "eos_token", "pad_token",    "unk_token",
                                           "cls_token", "sep_token", "chat_template"};
  std::vector<std::pair<std::string, Scalar>> kwargs;
  static constexpr std::array kEfforts = {"none", "minimal", "low", "medium", "high", "xhigh"};
  if (const auto effort = fields.string("reasoning_effort", 32)) {
    if (std::find(kEfforts.begin(), kEfforts.end(), *effort) == kEfforts.end())
      fields.fail("reasoning_effort", "one of none, minimal, low, medium, high, xhigh");
    kwargs.emplace_back("reasoning_effort", *effort);
  }
  const Json* given = fields.find("chat_template_kwargs");
  if (!given) return kwargs;
  if (!given->is_object()) fields.fail("chat_template_kwargs", "an object");
  if (given->size() > size_t(kMaxTemplateKwargs))
    fields.fail("chat_template_kwargs", fmt::format("at most {} entries", kMaxTemplateKwargs));
  for (const auto& [name, value] : given->items()) {
    const std::string path = "chat_template_kwargs." + name.substr(0, 64);
    if (std::find(kReserved.begin(), kReserved.end(), name) != kReserved.end())
      refuse(path, fmt::format("`{}` is set by the server and cannot be replaced", path));
    std::erase_if(kwargs, [&](const auto& kwarg) { return kwarg.first == name; });
    kwargs.emplace_back(name, read_scalar(value, path));
  }
  return kwargs;
}

ChatRequest read_chat(const Fields& fields, std::string_view body, const Limits& limits) {
  for (const char* name : {"echo", "continue_final_message"})
    if (fields.boolean(name).value_or(false)) refuse(name, fmt::format("`{}` is not supported in chats", name));
  if (fields.integer("best_of", 1, kMaxChoices).value_or(1) != 1)
    refuse("best_of", "`best_of` is not supported in chats");
  ChatRequest request;
  request.common = read_common(fields, limits, true);
  request.messages = read_messages(fields);
  request.tools = read_tools(fields, body);
  request.add_generation_prompt = fields.boolean("add_generation_prompt").value_or(true);
  request.template_kwargs = read_template_kwargs(fields);
  if (fields.boolean("add_special_tokens").value_or(false))
    refuse("add_special_tokens", "`add_special_tokens` is not supported in chats: the template writes them");
  Sampling& sampling = request.common.sampling;
  sampling.max_tokens = read_max_tokens(fields, true, false);
  check_min_tokens(sampling);
  const auto top = fields.integer("top_logprobs", 0, kMaxTopLogprobs);
  const bool logprobs = fields.boolean("logprobs").value_or(false);
  if (top && *top > 0 && !logprobs) refuse("top_logprobs", "`top_logprobs` needs `logprobs`: true");
  if (logprobs) sampling.num_logprobs = int(top.value_or(0));
  return request;
}

// ------------------------------------------------------------------------------------------------ completions

std::vector<Prompt> read_prompts(const Fields& fields, const Limits& limits) {
  const char* kExpected = "a string, an array of strings, an array of token ids, or an array of such arrays";
  const Json* prompt = fields.find("prompt");
  if (!prompt) fields.fail("prompt", kExpected);
  if (prompt->is_string()) return {prompt->get<std::string>()};
  if (!prompt->is_array() || prompt->empty()) fields.fail("prompt", kExpected);
  if (prompt->front().is_number()) return {read_token_ids(*prompt, "prompt", limits)};
  if (prompt->size() > size_t(kMaxPrompts)) fields.fail("prompt", fmt::format("at most {} prompts", kMaxPrompts));
  std::vector<Prompt> prompts;
  for (size_t i = 0; i < prompt->size(); ++i) {
    const Json& entry = (*prompt)[i];
    const std::string path = fmt::format("prompt[{}]", i);
    if (entry.type() != prompt->front().type() || !(entry.is_string() || entry.is_array()))
      fail_value(path, "of the same kind as the other entries, a string or an array of token ids", entry);
    if (entry.is_string())
      prompts.emplace_back(entry.get<std::string>());
    else
      prompts.emplace_back(read_token_ids(entry, path, limits));
  }
  for (size_t i = 0; i < prompts.size(); ++i)
    if (const auto* ids = std::get_if<std::vector<int32_t>>(&prompts[i]); ids && ids->empty())
      refuse("prompt", fmt::format("`prompt[{}]` is empty; at least one token id is needed", i));
  return prompts;
}

}  // namespace

ChatRequest read_chat_request(std::string_view body, const Limits& limits) {
  const Json json = parse_json(body);
  return read_chat(Fields(json, ""), body, limits);
}

CompletionRequest read_completion_request(std::string_view body, const Limits& limits) {
  const Json json = parse_json(body);
  const Fields fields(json, "");
  CompletionRequest request;
  request.common = read_common(fields, limits, false);
  request.prompts = read_prompts(fields, limits);
  request.echo = fields.boolean("echo").value_or(false);
  request.add_special_tokens = fields.boolean("add_special_tokens").value_or(true);
  if (const auto best_of = fields.integer("best_of", 1, kMaxChoices); best_of && *best_of != request.common.n)
    refuse("best_of", "`best_of` is supported only when it equals `n`");
  Sampling& sampling = request.common.sampling;
  sampling.max_tokens = read_max_tokens(fields, false, request.echo).value_or(16);
  check_min_tokens(sampling);
  if (const auto k = fields.integer("logprobs", 0, kMaxTopLogprobs)) sampling.num_logprobs = int(*k);
  check_choices(cost_of(request));
  return request;
}

TokenizeRequest read_tokenize_request(std::string_view body, const Limits& limits) {
  const Json json = parse_json(body);
  const Fields fields(json, "");
  TokenizeRequest request;
  request.model = fields.string("model", 1024).value_or("");
  request.add_special_tokens = fields.boolean("add_special_tokens").value_or(true);
  request.return_token_strs = fields.boolean("return_token_strs").value_or(false);
  if (fields.find("messages")) {
    if (fields.find("prompt")) refuse("prompt", "send `prompt` or `messages`, not both");
    request.input = read_chat(fields, body, limits);
    return request;
  }
  refuse_unsupported(fields, false);
  const auto prompt = fields.string("prompt");
  if (!prompt) fields.fail("prompt", "a string (or send `messages`)");
  request.input = *prompt;
  return request;
}

DetokenizeRequest read_detokenize_request(std::string_view body, const Limits& limits) {
  const Json json = parse_json(body);
  const Fields fields(json, "");
  refuse_unsupported(fields, false);
  DetokenizeRequest request;
  request.model = fields.string("model", 1024).value_or("");
  const Json* tokens = fields.find("tokens");
  if (!tokens) fields.fail("tokens", "an array of token ids");
  request.tokens = read_token_ids(*tokens, "tokens", limits);
  return request;
}

}  // namespace moectl::api
