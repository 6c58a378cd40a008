// Options of debug-request -> the request, and the outcome -> JSON. Pure but for reading the body's file.
#include <algorithm>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cmd/debug_request.h"
#include "core/base/error.h"

namespace moectl {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxBodyBytes = 64 << 20;

std::string lower(std::string text) {
  for (char& c : text) c = char(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

bool has_header(const http::Headers& headers, std::string_view name) {
  return std::any_of(headers.begin(), headers.end(), [&](const auto& header) { return header.first == name; });
}

std::pair<std::string, std::string> read_header(const std::string& text) {
  const size_t colon = text.find(':');
  if (colon == text.npos || colon == 0)
    throw Error(Code::kUsage, fmt::format("--header: '{}' is not of the form `Name: value`", text));
  const size_t value = std::min(text.find_first_not_of(" \t", colon + 1), text.size());
  return {lower(text.substr(0, colon)), text.substr(value)};
}

std::string read_body_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(Code::kNotFound, fmt::format("--body @{}: the file cannot be read", path));
  std::string text(kMaxBodyBytes + 1, '\0');
  file.read(text.data(), std::streamsize(text.size()));
  text.resize(size_t(file.gcount()));
  if (text.size() > kMaxBodyBytes)
    throw Error(Code::kUsage, fmt::format("--body @{}: larger than {} MiB", path, kMaxBodyBytes >> 20));
  return text;
}

std::string body_of_message(const DebugRequestOptions& options, bool chat) {
  Json body;
  if (!options.endpoint.model.empty()) body["model"] = options.endpoint.model;
  if (chat)
    body["messages"] = Json::array({{{"role", "user"}, {"content", options.message}}});
  else
    body["prompt"] = options.message;
  if (options.max_tokens) body["max_tokens"] = *options.max_tokens;
  body["stream"] = options.stream;
  if (options.stream) body["stream_options"] = {{"include_usage", true}};
  try {
    return body.dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(Code::kUsage, "--message is not valid UTF-8");
  }
}

double rounded(double value) {
  return std::round(value * 1e3) / 1e3;
}

Json gaps_json(std::vector<double> gaps) {
  if (gaps.empty()) return nullptr;
  std::sort(gaps.begin(), gaps.end());
  double sum = 0;
  for (double gap : gaps) sum += gap;
  const auto at = [&](double part) { return rounded(gaps[size_t(part * double(gaps.size() - 1) + 0.5)]); };
  return {{"mean", rounded(sum / double(gaps.size()))},
          {"p50", at(0.5)},
          {"p90", at(0.9)},
          {"p99", at(0.99)},
          {"max", rounded(gaps.back())}};
}

Json parsed_or_text(const std::string& text) {
  Json value;
  try {
    parse_answer(text);  // an object that does not nest too deep
    value = Json::parse(text, nullptr, false);
  } catch (const Error&) {
    value = text;
  }
  return value;
}

}  // namespace

DebugRequest build_debug_request(const DebugRequestOptions& options, std::string (*read_stdin)()) {
  DebugRequest request;
  std::string base = options.endpoint.url;
  while (base.ends_with('/')) base.pop_back();
  if (!options.path.starts_with('/'))
    throw Error(Code::kUsage, fmt::format("--path: '{}' must start with `/`", options.path));
  request.url = base + options.path;
  if (!options.body.empty() && !options.message.empty())
    throw Error(Code::kUsage, "--body and --message exclude each other");
  const bool completions = options.path.ends_with("/completions"), chat = options.path.ends_with("/chat/completions");
  if (!options.message.empty()) {
    request.body = body_of_message(options, chat || !completions);
  } else if (options.body == "-") {
    request.body = read_stdin();
  } else if (options.body.starts_with('@')) {
    request.body = read_body_file(options.body.substr(1));
  } else {
    request.body = options.body;
  }
  const bool has_body = !options.body.empty() || !options.message.empty();
  request.method = !options.method.empty() ? options.method : has_body ? "POST" : "GET";
  if (completions && !has_body && options.method.empty())
    throw Error(Code::kUsage,
                fmt::format("{} needs something to send: --message TEXT or --body JSON|@FILE|-", options.path));
  for (const std::string& text : options.headers) request.headers.push_back(read_header(text));
  const auto add = [&](const char* name, std::string value) {
    if (!has_header(request.headers, name)) request.headers.emplace_back(name, std::move(value));
  };
  if (has_body) add("content-type", "application/json");
  add("accept", "*/*");
  add("user-agent", "moectl");
  add(api::kDebugHeader.data(), "1");
  if (!options.endpoint.api_keys.empty()) add("authorization", "Bearer " + options.endpoint.api_keys.front());
  return request;
}

void add_to_outcome(DebugOutcome& outcome, const AnswerEvent& event) {
  if (event.done) outcome.complete = true;
  if (event.is_error && outcome.error.empty()) outcome.error = event.error;
  if (outcome.answer_id.empty()) outcome.answer_id = event.id;
  if (event.usage) outcome.usage = event.usage;
  for (const AnswerDelta& delta : event.deltas) {
    DebugChoice& choice = outcome.choices[delta.index];
    choice.content += delta.content;
    choice.reasoning += delta.reasoning;
    choice.tool_calls += delta.tool_calls;
    if (!delta.finish_reason.empty()) choice.finish_reason = delta.finish_reason;
  }
}

std::string outcome_json(const DebugRequest& request, const DebugOutcome& outcome) {
  Json result = {{"request", {{"method", request.method}, {"url", request.url}}},
                 {"ok", outcome.succeeded()},
                 {"status", outcome.status > 0 ? Json(outcome.status) : Json()},
                 {"complete", outcome.complete},
                 {"interrupted", outcome.interrupted},
                 {"error", outcome.error.empty() ? Json() : Json(outcome.error)}};
  Json& headers = result["headers"] = Json::object();
  for (const auto& [name, value] : outcome.headers)
    if (name != api::kTimelineHeader) headers[name] = value;
  result["id"] = outcome.answer_id.empty() ? Json() : Json(outcome.answer_id);
  Json& choices = result["choices"] = Json::array();
  for (const auto& [index, choice] : outcome.choices)
    choices.push_back({{"index", index},
                       {"content", choice.content},
                       {"reasoning", choice.reasoning},
                       {"tool_calls", choice.tool_calls},
                       {"finish_reason", choice.finish_reason.empty() ? Json() : Json(choice.finish_reason)}});
  result["usage"] = nullptr;
  if (const auto& usage = outcome.usage)
    result["usage"] = {{"prompt_tokens", usage->prompt_tokens},
                       {"cached_tokens", usage->cached_tokens},
                       {"completion_tokens", usage->completion_tokens}};
  const ClientTimes& times = outcome.times;
  result["client"] = {{"head_ms", rounded(times.head_ms)},
                      {"ttft_ms", times.ttft_ms ? Json(rounded(*times.ttft_ms)) : Json()},
                      {"itl_ms", gaps_json(times.gaps_ms)},
                      {"total_ms", rounded(times.total_ms)}};
  result["timeline"] = outcome.timeline_json.empty() ? Json() : parsed_or_text(outcome.timeline_json);
  if (!outcome.streamed) result["body"] = parsed_or_text(outcome.body);
  return result.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace moectl
