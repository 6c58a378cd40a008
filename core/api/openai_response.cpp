#include "core/api/openai_response.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/api/json.h"

namespace moectl::api {
namespace {

using Json = nlohmann::ordered_json;

template <class T>
void move_to_end(std::vector<T>& target, std::vector<T>&& more) {
  target.insert(target.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

// JSON has no infinities; OpenAI's servers write -9999 for "impossible".
double json_logprob(float logprob) {
  return std::max(double(logprob), -9999.0);
}

std::string token_text(const AnswerHead& head, int32_t id, const std::string& bytes) {
  return head.tokens_as_ids ? fmt::format("token_id:{}", id) : bytes;
}

Json byte_list(const std::string& bytes) {
  Json list = Json::array();
  for (unsigned char byte : bytes) list.push_back(int(byte));
  return list;
}

Json chat_token(const AnswerHead& head, int32_t id, const std::string& bytes, float logprob) {
  return {{"token", token_text(head, id, bytes)}, {"logprob", json_logprob(logprob)}, {"bytes", byte_list(bytes)}};
}

Json chat_logprobs(const AnswerHead& head, const std::vector<ScoredToken>& tokens) {
  if (!head.logprobs) return nullptr;
  Json content = Json::array();
  for (const ScoredToken& token : tokens) {
    Json entry = chat_token(head, token.id, token.bytes, token.logprob);
    entry["top_logprobs"] = Json::array();
    for (const AlternativeToken& other : token.top)
      entry["top_logprobs"].push_back(chat_token(head, other.id, other.bytes, other.logprob));
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

// The older form, four parallel lists. The chosen token is always among its alternatives.
Json completion_logprobs(const AnswerHead& head, const std::vector<ScoredToken>& tokens) {
  if (!head.logprobs) return nullptr;
  Json names = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
  for (const ScoredToken& token : tokens) {
    names.push_back(token_text(head, token.id, token.bytes));
    offsets.push_back(token.text_offset);
    if (!token.has_logprob) {
      values.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    values.push_back(json_logprob(token.logprob));
    Json top = Json::object();
    for (const AlternativeToken& other : token.top)
      top[token_text(head, other.id, other.bytes)] = json_logprob(other.logprob);
    top[token_text(head, token.id, token.bytes)] = json_logprob(token.logprob);
    tops.push_back(std::move(top));
  }
  return {{"text_offset", std::move(offsets)},
          {"token_logprobs", std::move(values)},
          {"tokens", std::move(names)},
          {"top_logprobs", std::move(tops)}};
}

// vLLM's extension: per prompt token an object from ids to logprob, rank and text; the first is null.
Json prompt_logprobs(const std::vector<ScoredToken>& tokens) {
  Json list = Json::array();
  for (const ScoredToken& token : tokens) {
    if (!token.has_logprob) {
      list.push_back(nullptr);
      continue;
    }
    Json entry = Json::object();
    const auto add = [&](int32_t id, const std::string& bytes, float logprob, Json rank) {
      entry[std::to_string(id)] = {
          {"logprob", json_logprob(logprob)}, {"rank", std::move(rank)}, {"decoded_token", bytes}};
    };
    add(token.id, token.bytes, token.logprob, nullptr);  // beyond the best ones its rank is not known
    for (size_t i = 0; i < token.top.size(); ++i)
      add(token.top[i].id, token.top[i].bytes, token.top[i].logprob, int(i) + 1);
    list.push_back(std::move(entry));
  }
  return list;
}

Json finish_reason(const Choice& choice) {
  return choice.finish_reason.empty() ? Json(nullptr) : Json(choice.finish_reason);
}

Json stop_reason(const Choice& choice) {
  if (!choice.stop_string.empty()) return choice.stop_string;
  if (choice.stop_token >= 0) return choice.stop_token;
  return nullptr;
}

Json usage_json(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}}};
}

// One entry of `tool_calls`: whole in a message, a part of the call with `index` in a stream.
Json tool_call_json(const ToolCallDelta& call, bool in_stream) {
  Json json = Json::object();
  if (in_stream) json["index"] = call.index;
  if (!call.name.empty()) {
    json["id"] = call.id;
    json["type"] = "function";
    json["function"]["name"] = call.name;
  }
  json["function"]["arguments"] = call.arguments;
  return json;
}

Json tool_calls_json(const std::vector<ToolCallDelta>& calls, bool in_stream) {
  Json list = Json::array();
  for (const ToolCallDelta& call : calls) list.push_back(tool_call_json(call, in_stream));
  return list;
}

Json head_json(const AnswerHead& head, const char* object) {
  return {{"id", head.id}, {"object", object}, {"created", head.created}, {"model", head.model}};
}

std::string chunk(const AnswerHead& head, const char* object, Json choice) {
  Json json = head_json(head, object);
  json["choices"] = Json::array({std::move(choice)});
  if (head.usage_in_stream) json["usage"] = nullptr;
  return to_text(json);
}

}  // namespace

void Choice::append(Choice&& more) {
  content += more.content;
  reasoning += more.reasoning;
  for (ToolCallDelta& call : more.tool_calls) append_tool_call(tool_calls, std::move(call));
  move_to_end(logprobs, std::move(more.logprobs));
  move_to_end(token_ids, std::move(more.token_ids));
  move_to_end(prompt_token_ids, std::move(more.prompt_token_ids));
  move_to_end(prompt_logprobs, std::move(more.prompt_logprobs));
  if (more.finish_reason.empty()) return;
  finish_reason = std::move(more.finish_reason);
  stop_string = std::move(more.stop_string);
  stop_token = more.stop_token;
}

std::string chat_response(const AnswerHead& head, const std::vector<Choice>& choices, const Usage& usage) {
  Json json = head_json(head, "chat.completion");
  json["choices"] = Json::array();
  for (const Choice& choice : choices) {
    Json message = {{"role", "assistant"}, {"content", choice.content}, {"refusal", nullptr}};
    if (choice.content.empty() && !(choice.reasoning.empty() && choice.tool_calls.empty()))
      message["content"] = nullptr;
    if (!choice.tool_calls.empty()) message["tool_calls"] = tool_calls_json(choice.tool_calls, false);
    if (!choice.reasoning.empty()) {
      message["reasoning_content"] = choice.reasoning;
      message["reasoning"] = choice.reasoning;
    }
    Json entry = {{"index", choice.index},
                  {"message", std::move(message)},
                  {"logprobs", chat_logprobs(head, choice.logprobs)},
                  {"finish_reason", finish_reason(choice)},
                  {"stop_reason", stop_reason(choice)}};
    if (head.token_ids) entry["token_ids"] = choice.token_ids;
    json["choices"].push_back(std::move(entry));
  }
  json["usage"] = usage_json(usage);
  if (head.token_ids) json["prompt_token_ids"] = choices.front().prompt_token_ids;
  if (head.prompt_logprobs) json["prompt_logprobs"] = prompt_logprobs(choices.front().prompt_logprobs);
  return to_text(json);
}

std::string completion_response(const AnswerHead& head, const std::vector<Choice>& choices, const Usage& usage) {
  Json json = head_json(head, "text_completion");
  json["choices"] = Json::array();
  for (const Choice& choice : choices) {
    Json entry = {{"index", choice.index},
                  {"text", choice.content},
                  {"logprobs", completion_logprobs(head, choice.logprobs)},
                  {"finish_reason", finish_reason(choice)},
                  {"stop_reason", stop_reason(choice)}};
    if (head.token_ids) {
      entry["prompt_token_ids"] = choice.prompt_token_ids;
      entry["token_ids"] = choice.token_ids;
    }
    if (head.prompt_logprobs) entry["prompt_logprobs"] = prompt_logprobs(choice.prompt_logprobs);
    json["choices"].push_back(std::move(entry));
  }
  json["usage"] = usage_json(usage);
  return to_text(json);
}

std::string chat_role_chunk(const AnswerHead& head, int index, const std::vector<int32_t>& prompt_token_ids) {
  Json json = head_json(head, "chat.completion.chunk");
  json["choices"] =
      Json::array({{{"index", index},
                    {"delta", {{"role", "assistant"}, {"content", head.tools ? Json(nullptr) : Json("")}}},
                    {"logprobs", nullptr},
                    {"finish_reason", nullptr}}});
  if (head.usage_in_stream) json["usage"] = nullptr;
  if (head.token_ids) json["prompt_token_ids"] = prompt_token_ids;
  return to_text(json);
}

// Inside a text the quotes would be escaped: what is searched for is ours.
bool is_role_chunk(std::string_view event) {
  const auto has = [event](std::string_view text) { return event.find(text) != std::string_view::npos; };
  return (has(R"("delta":{"role":"assistant","content":""})") ||
          has(R"("delta":{"role":"assistant","content":null})")) &&
         has(R"("finish_reason":null)");
}

std::string chat_chunk(const AnswerHead& head, const Choice& delta) {
  Json fields = Json::object();
  if (!delta.reasoning.empty()) {
    fields["reasoning_content"] = delta.reasoning;
    fields["reasoning"] = delta.reasoning;
  }
  if (!delta.content.empty()) fields["content"] = delta.content;
  if (!delta.tool_calls.empty()) fields["tool_calls"] = tool_calls_json(delta.tool_calls, true);
  Json entry = {{"index", delta.index},
                {"delta", std::move(fields)},
                {"logprobs", delta.logprobs.empty() ? Json(nullptr) : chat_logprobs(head, delta.logprobs)},
                {"finish_reason", finish_reason(delta)}};
  if (!delta.finish_reason.empty()) entry["stop_reason"] = stop_reason(delta);
  if (head.token_ids) entry["token_ids"] = delta.token_ids;
  return chunk(head, "chat.completion.chunk", std::move(entry));
}

std::string completion_chunk(const AnswerHead& head, const Choice& delta) {
  Json entry = {{"index", delta.index},
                {"text", delta.content},
                {"logprobs", delta.logprobs.empty() ? Json(nullptr) : completion_logprobs(head, delta.logprobs)},
                {"finish_reason", finish_reason(delta)}};
  if (!delta.finish_reason.empty()) entry["stop_reason"] = stop_reason(delta);
  if (head.token_ids) {
    if (!delta.prompt_token_ids.empty()) entry["prompt_token_ids"] = delta.prompt_token_ids;
    entry["token_ids"] = delta.token_ids;
  }
  return chunk(head, "text_completion", std::move(entry));
}

std::string usage_chunk(const AnswerHead& head, bool chat, const Usage& usage) {
  Json json = head_json(head, chat ? "chat.completion.chunk" : "text_completion");
  json["choices"] = Json::array();
  json["usage"] = usage_json(usage);
  return to_text(json);
}

std::string error_event(std::string_view error_body) {
  return "data: " + std::string(error_body) + "\n\n";
}

namespace {
Json model_json(std::string_view model, int64_t created, int max_model_len) {
  return {{"id", model},
          {"object", "model"},
          {"created", created},
          {"owned_by", "moectl"},
          {"max_model_len", max_model_len}};
}
}  // namespace

std::string models_response(std::string_view model, int64_t created, int max_model_len) {
  return to_text({{"object", "list"}, {"data", Json::array({model_json(model, created, max_model_len)})}});
}

std::string model_response(std::string_view model, int64_t created, int max_model_len) {
  return to_text(model_json(model, created, max_model_len));
}

std::string tokenize_response(const std::vector<int32_t>& ids, int max_model_len,
                              const std::optional<std::vector<std::string>>& token_strs) {
  Json json = {{"count", ids.size()}, {"max_model_len", max_model_len}, {"tokens", ids}};
  if (token_strs) json["token_strs"] = *token_strs;
  return to_text(json);
}

std::string detokenize_response(std::string_view prompt) {
  return to_text({{"prompt", prompt}});
}

int64_t count_characters(std::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

}  // namespace moectl::api
