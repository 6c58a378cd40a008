#include "cmd/sse_answer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/base/json_depth.h"

namespace moectl {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxEventBytes = 16 << 20;
constexpr int kMaxDepth = 64;

std::string text_at(const Json& object, const char* name) {
  const auto it = object.find(name);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

int64_t number_at(const Json& object, const char* name) {
  const auto it = object.find(name);
  return it != object.end() && it->is_number_integer() ? it->get<int64_t>() : 0;
}

const Json& child(const Json& object, const char* name) {
  static const Json kNone;
  const auto it = object.find(name);
  return it != object.end() ? *it : kNone;
}

// A call's first piece has its name, further ones more of its arguments.
std::string tool_call_text(const Json& calls) {
  std::string text;
  if (!calls.is_array()) return text;
  for (const Json& call : calls) {
    if (!call.is_object()) continue;
    const Json& function = child(call, "function");
    if (!function.is_object()) continue;
    if (const std::string name = text_at(function, "name"); !name.empty())
      text += (number_at(call, "index") > 0 || !text.empty() ? "\n" : "") + name + " ";
    text += text_at(function, "arguments");
  }
  return text;
}

AnswerDelta read_choice(const Json& choice) {
  AnswerDelta delta;
  delta.index = int(std::clamp<int64_t>(number_at(choice, "index"), 0, 1 << 16));
  delta.finish_reason = text_at(choice, "finish_reason");
  const char* message_name = choice.contains("delta") ? "delta" : "message";
  if (const Json& message = child(choice, message_name); message.is_object()) {
    delta.content = text_at(message, "content");
    delta.reasoning = text_at(message, "reasoning_content");
    if (delta.reasoning.empty()) delta.reasoning = text_at(message, "reasoning");
    delta.tool_calls = tool_call_text(child(message, "tool_calls"));
  } else {
    delta.content = text_at(choice, "text");
  }
  if (const Json& ids = child(choice, "token_ids"); ids.is_array())
    delta.num_token_ids = int(std::min<size_t>(ids.size(), 1 << 24));
  return delta;
}

Json parse_object(std::string_view text) {
  check_json_depth(text, kMaxDepth, "the answer");
  Json json = Json::parse(text, nullptr, false);
  if (!json.is_object())
    throw Error(Code::kBadData, fmt::format("the answer is not a JSON object: {}", text.substr(0, 120)));
  return json;
}

std::string message_of(const Json& error) {
  if (error.is_string()) return error.get<std::string>();
  const std::string message = error.is_object() ? text_at(error, "message") : "";
  return message.empty() ? error.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 400) : message;
}

}  // namespace

std::vector<SseReader::Item> SseReader::feed(std::string_view bytes) {
  std::vector<Item> items;
  if (skip_line_feed_ && !bytes.empty()) {  // of a CR LF that two pieces share
    if (bytes[0] == '\n') bytes.remove_prefix(1);
    skip_line_feed_ = false;
  }
  for (size_t end; (end = bytes.find_first_of("\r\n")) != bytes.npos;) {
    if (line_.empty()) {
      take_line(bytes.substr(0, end), items);
    } else {
      line_ += bytes.substr(0, end);
      take_line(line_, items);
      line_.clear();
    }
    const bool cr = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    if (cr && bytes.empty()) skip_line_feed_ = true;
    if (cr && !bytes.empty() && bytes[0] == '\n') bytes.remove_prefix(1);
  }
  line_ += bytes;
  if (line_.size() > kMaxEventBytes || data_.size() > kMaxEventBytes)
    throw Error(Code::kBadData, fmt::format("an event of the stream is larger than {} MiB", kMaxEventBytes >> 20));
  return items;
}

void SseReader::take_line(std::string_view line, std::vector<Item>& items) {
  if (line.empty()) {
    if (has_data_) items.push_back({false, std::move(data_)});
    data_.clear();
    has_data_ = false;
    return;
  }
  const size_t colon = line.find(':');
  std::string_view value = colon == line.npos ? std::string_view() : line.substr(colon + 1);
  if (value.starts_with(' ')) value.remove_prefix(1);
  if (colon == 0) {
    items.push_back({true, std::string(value)});
  } else if (line.substr(0, colon) == "data") {
    if (has_data_) data_ += '\n';
    data_ += value;
    has_data_ = true;
  }
}

AnswerEvent parse_answer(std::string_view text) {
  AnswerEvent event;
  if (text == "[DONE]") {
    event.done = true;
    return event;
  }
  const Json json = parse_object(text);
  event.id = text_at(json, "id");
  if (const Json& error = child(json, "error"); !error.is_null()) {
    event.is_error = true;
    event.error = message_of(error);
  }
  if (const Json& choices = child(json, "choices"); choices.is_array())
    for (const Json& choice : choices)
      if (choice.is_object()) event.deltas.push_back(read_choice(choice));
  if (const Json& usage = child(json, "usage"); usage.is_object()) {
    event.usage = AnswerUsage{number_at(usage, "prompt_tokens"), 0, number_at(usage, "completion_tokens")};
    if (const Json& details = child(usage, "prompt_tokens_details"); details.is_object())
      event.usage->cached_tokens = number_at(details, "cached_tokens");
  }
  return event;
}

std::string error_message(std::string_view text) {
  try {
    return parse_answer(text).error;
  } catch (const Error&) {
    return {};
  }
}

}  // namespace moectl
