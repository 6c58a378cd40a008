#include "core/api/openai_response.h"

#include <fmt/core.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>

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

// ------------------------------------------------------------------------------------------------ long lists

constexpr size_t kScoresPerRun = 64;  // with 20 alternatives each about 100 KB of text
constexpr size_t kIdsPerRun = 4096;

// One list of scored tokens out of the prompt's and the answer's own.
struct Scores {
  const PromptScores* prompt = nullptr;  // null: not echoed
  size_t prompt_top = 0;
  const std::vector<ScoredToken>& own;

  size_t num_prompt() const { return prompt ? prompt->size() : 0; }
  size_t size() const { return num_prompt() + own.size(); }
  const ScoredToken& operator[](size_t i) const { return i < num_prompt() ? (*prompt)[i] : own[i - num_prompt()]; }
  std::span<const AlternativeToken> top(size_t i) const {
    const std::span<const AlternativeToken> all = (*this)[i].top;
    return i < num_prompt() ? all.first(std::min(all.size(), prompt_top)) : all;
  }
};

Scores scores_of(const Choice& choice) {
  const bool echoed = choice.echoed_top >= 0 && choice.prompt_scores;
  return {echoed ? choice.prompt_scores.get() : nullptr, size_t(std::max(choice.echoed_top, 0)), choice.logprobs};
}

// The elements are JSON values, made one after the other.
template <class MakeJson>
void add_scores(TextPieces& out, size_t count, MakeJson make) {
  out.add("[");
  out.add_list(count, kScoresPerRun, [make](std::string& text, size_t i) { text += to_text(make(i)); });
  out.add("]");
}

void add_ids(TextPieces& out, const std::vector<int32_t>& ids) {
  out.add("[");
  out.add_list(ids.size(), kIdsPerRun, [&ids](std::string& text, size_t i) { text += std::to_string(ids[i]); });
  out.add("]");
}

void add_chat_logprobs(TextPieces& out, const AnswerHead& head, const Choice& choice) {
  if (!head.logprobs) return out.add("null");
  out.add("{\"content\":");
  add_scores(out, choice.logprobs.size(), [&head, &choice](size_t i) {
    const ScoredToken& token = choice.logprobs[i];
    Json entry = chat_token(head, token.id, token.bytes, token.logprob);
    entry["top_logprobs"] = Json::array();
    for (const AlternativeToken& other : token.top)
      entry["top_logprobs"].push_back(chat_token(head, other.id, other.bytes, other.logprob));
    return entry;
  });
  out.add(",\"refusal\":null}");
}

// The older form, four parallel lists. The chosen token is always among its alternatives.
void add_completion_logprobs(TextPieces& out, const AnswerHead& head, const Choice& choice) {
  if (!head.logprobs) return out.add("null");
  const Scores scores = scores_of(choice);
  const size_t count = scores.size();
  out.add("{\"text_offset\":");
  add_scores(out, count, [scores](size_t i) -> Json { return scores[i].text_offset; });
  out.add(",\"token_logprobs\":");
  add_scores(out, count, [scores](size_t i) -> Json {
    if (!scores[i].has_logprob) return nullptr;
    return json_logprob(scores[i].logprob);
  });
  out.add(",\"tokens\":");
  add_scores(out, count, [scores, &head](size_t i) -> Json { return token_text(head, scores[i].id, scores[i].bytes); });
  out.add(",\"top_logprobs\":");
  add_scores(out, count, [scores, &head](size_t i) -> Json {
    const ScoredToken& token = scores[i];
    if (!token.has_logprob) return nullptr;
    Json top = Json::object();
    for (const AlternativeToken& other : scores.top(i))
      top[token_text(head, other.id, other.bytes)] = json_logprob(other.logprob);
    top[token_text(head, token.id, token.bytes)] = json_logprob(token.logprob);
    return top;
  });
  out.add("}");
}

// vLLM's extension: per prompt token an object from ids to logprob, rank and text; the first is null.
void add_prompt_logprobs(TextPieces& out, const Choice& choice) {
  static const std::vector<ScoredToken> kNone;
  const Scores scores{choice.prompt_top >= 0 ? choice.prompt_scores.get() : nullptr,
                      size_t(std::max(choice.prompt_top, 0)), kNone};
  add_scores(out, scores.size(), [scores](size_t i) -> Json {
    const ScoredToken& token = scores[i];
    if (!token.has_logprob) return nullptr;
    Json entry = Json::object();
    const auto add = [&](int32_t id, const std::string& bytes, float logprob, Json rank) {
      entry[std::to_string(id)] = {
          {"logprob", json_logprob(logprob)}, {"rank", std::move(rank)}, {"decoded_token", bytes}};
    };
    add(token.id, token.bytes, token.logprob, nullptr);  // beyond the best ones its rank is not known
    int rank = 0;
    for (const AlternativeToken& other : scores.top(i)) add(other.id, other.bytes, other.logprob, ++rank);
    return entry;
  });
}

// ------------------------------------------------------------------------------------------------ objects

// The members of an object as text, without its braces.
std::string members(const Json& object) {
  const std::string text = to_text(object);
  return text.substr(1, text.size() - 2);
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

// The parts around the one choice of a chunk.
void begin_chunk(TextPieces& out, const AnswerHead& head, const char* object) {
  out.add("{" + members(head_json(head, object)) + ",\"choices\":[{");
}
void end_chunk(TextPieces& out, const AnswerHead& head) {
  out.add(head.usage_in_stream ? "}],\"usage\":null}" : "}]}");
}

// `finish_reason` and, at the end, `stop_reason` of a chunk's choice.
Json ending(const Choice& delta) {
  Json json = {{"finish_reason", finish_reason(delta)}};
  if (!delta.finish_reason.empty()) json["stop_reason"] = stop_reason(delta);
  return json;
}

size_t scores_bytes(size_t num_tokens, size_t num_top) {
  constexpr size_t kBytesPerScore = 80;
  return num_tokens * (1 + num_top) * kBytesPerScore;
}

}  // namespace

void Choice::append(Choice&& more) {
  content += more.content;
  reasoning += more.reasoning;
  for (ToolCallDelta& call : more.tool_calls) append_tool_call(tool_calls, std::move(call));
  move_to_end(logprobs, std::move(more.logprobs));
  move_to_end(token_ids, std::move(more.token_ids));
  move_to_end(prompt_token_ids, std::move(more.prompt_token_ids));
  if (more.prompt_scores) prompt_scores = std::move(more.prompt_scores);
  echoed_top = std::max(echoed_top, more.echoed_top);
  prompt_top = std::max(prompt_top, more.prompt_top);
  if (more.finish_reason.empty()) return;
  finish_reason = std::move(more.finish_reason);
  stop_string = std::move(more.stop_string);
  stop_token = more.stop_token;
}

size_t Choice::text_bytes() const {
  size_t bytes = content.size() + 2 * reasoning.size() + 8 * (token_ids.size() + prompt_token_ids.size());
  for (const ToolCallDelta& call : tool_calls) bytes += call.arguments.size();
  if (!logprobs.empty()) bytes += scores_bytes(logprobs.size(), logprobs.back().top.size());
  for (const int top : {echoed_top, prompt_top})
    if (top >= 0 && prompt_scores) bytes += scores_bytes(prompt_scores->size(), size_t(top));
  return bytes;
}

TextPieces chat_response(const AnswerHead& head, const std::vector<Choice>& choices, const Usage& usage) {
  TextPieces out;
  out.add("{" + members(head_json(head, "chat.completion")) + ",\"choices\":[");
  for (const Choice& choice : choices) {
    Json message = {{"role", "assistant"}, {"content", choice.content}, {"refusal", nullptr}};
    if (choice.content.empty() && !(choice.reasoning.empty() && choice.tool_calls.empty()))
      message["content"] = nullptr;
    if (!choice.tool_calls.empty()) message["tool_calls"] = tool_calls_json(choice.tool_calls, false);
    if (!choice.reasoning.empty()) {
      message["reasoning_content"] = choice.reasoning;
      message["reasoning"] = choice.reasoning;
    }
    out.add(&choice == &choices.front() ? "{" : ",{");
    out.add(members({{"index", choice.index}, {"message", std::move(message)}}) + ",\"logprobs\":");
    add_chat_logprobs(out, head, choice);
    out.add("," + members({{"finish_reason", finish_reason(choice)}, {"stop_reason", stop_reason(choice)}}));
    if (head.token_ids) {
      out.add(",\"token_ids\":");
      add_ids(out, choice.token_ids);
    }
    out.add("}");
  }
  out.add("]," + members({{"usage", usage_json(usage)}}));
  if (head.token_ids) {
    out.add(",\"prompt_token_ids\":");
    add_ids(out, choices.front().prompt_token_ids);
  }
  if (head.prompt_logprobs) {
    out.add(",\"prompt_logprobs\":");
    add_prompt_logprobs(out, choices.front());
  }
  out.add("}");
  return out;
}

TextPieces completion_response(const AnswerHead& head, const std::vector<Choice>& choices, const Usage& usage) {
  TextPieces out;
  out.add("{" + members(head_json(head, "text_completion")) + ",\"choices\":[");
  for (const Choice& choice : choices) {
    out.add(&choice == &choices.front() ? "{" : ",{");
    out.add(members({{"index", choice.index}, {"text", choice.content}}) + ",\"logprobs\":");
    add_completion_logprobs(out, head, choice);
    out.add("," + members({{"finish_reason", finish_reason(choice)}, {"stop_reason", stop_reason(choice)}}));
    if (head.token_ids) {
      out.add(",\"prompt_token_ids\":");
      add_ids(out, choice.prompt_token_ids);
      out.add(",\"token_ids\":");
      add_ids(out, choice.token_ids);
    }
    if (head.prompt_logprobs) {
      out.add(",\"prompt_logprobs\":");
      add_prompt_logprobs(out, choice);
    }
    out.add("}");
  }
  out.add("]," + members({{"usage", usage_json(usage)}}) + "}");
  return out;
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

TextPieces chat_chunk(const AnswerHead& head, const Choice& delta) {
  Json fields = Json::object();
  if (!delta.reasoning.empty()) {
    fields["reasoning_content"] = delta.reasoning;
    fields["reasoning"] = delta.reasoning;
  }
  if (!delta.content.empty()) fields["content"] = delta.content;
  if (!delta.tool_calls.empty()) fields["tool_calls"] = tool_calls_json(delta.tool_calls, true);
  TextPieces out;
  begin_chunk(out, head, "chat.completion.chunk");
  out.add(members({{"index", delta.index}, {"delta", std::move(fields)}}) + ",\"logprobs\":");
  if (delta.logprobs.empty())
    out.add("null");
  else
    add_chat_logprobs(out, head, delta);
  out.add("," + members(ending(delta)));
  if (head.token_ids) {
    out.add(",\"token_ids\":");
    add_ids(out, delta.token_ids);
  }
  end_chunk(out, head);
  return out;
}

TextPieces completion_chunk(const AnswerHead& head, const Choice& delta) {
  TextPieces out;
  begin_chunk(out, head, "text_completion");
  out.add(members({{"index", delta.index}, {"text", delta.content}}) + ",\"logprobs\":");
  if (scores_of(delta).size() == 0)
    out.add("null");
  else
    add_completion_logprobs(out, head, delta);
  out.add("," + members(ending(delta)));
  if (head.token_ids && !delta.prompt_token_ids.empty()) {
    out.add(",\"prompt_token_ids\":");
    add_ids(out, delta.prompt_token_ids);
  }
  if (head.token_ids) {
    out.add(",\"token_ids\":");
    add_ids(out, delta.token_ids);
  }
  end_chunk(out, head);
  return out;
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
                              const std::function<std::string(int32_t)>& token_text) {
  // Written at once: as a JSON value each entry would take 16 bytes and more.
  std::string text = fmt::format(R"({{"count":{},"max_model_len":{},"tokens":[)", ids.size(), max_model_len);
  for (const int32_t& id : ids) fmt::format_to(std::back_inserter(text), "{}{}", &id == ids.data() ? "" : ",", id);
  text += ']';
  if (token_text) {
    text += R"(,"token_strs":[)";
    for (const int32_t& id : ids) {
      if (&id != ids.data()) text += ',';
      text += to_text(token_text(id));
    }
    text += ']';
  }
  text += '}';
  return text;
}

std::string detokenize_response(std::string_view prompt) {
  return to_text({{"prompt", prompt}});
}

int64_t count_characters(std::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

}  // namespace moectl::api
