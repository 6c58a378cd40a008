#include "core/serving/model_text.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/api/cost.h"
#include "core/api/harmony.h"
#include "core/api/json.h"
#include "core/api/loggable.h"
#include "core/base/error.h"
#include "core/base/json_depth.h"
#include "core/model/config.h"

namespace moectl {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  // templates print keys in their order
namespace fs = std::filesystem;

constexpr size_t kMaxFileBytes = 16u << 20;

std::optional<std::string> read_file(const fs::path& path) {
  std::error_code ec;
  const auto size = fs::file_size(path, ec);
  if (ec) return std::nullopt;
  if (size > kMaxFileBytes)
    throw Error(Code::kBadData, fmt::format("{}: {} bytes; at most {} are read", path.string(), size, kMaxFileBytes));
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) throw Error(Code::kBadData, fmt::format("{}: cannot be read", path.string()));
  return text.str();
}

Json read_tokenizer_config(const fs::path& path) {
  const auto text = read_file(path);
  if (!text) return Json::object();
  check_json_depth(*text, 64, path.string());
  Json json = Json::parse(*text, nullptr, false);
  if (!json.is_object()) throw Error(Code::kBadData, fmt::format("{}: a JSON object is expected", path.string()));
  return json;
}

// A special token is a string, or an object that holds it as "content".
std::string special_token(const Json& config, const char* name) {
  const auto it = config.find(name);
  if (it == config.end()) return "";
  if (it->is_string()) return it->get<std::string>();
  if (it->is_object() && it->contains("content") && (*it)["content"].is_string())
    return (*it)["content"].get<std::string>();
  return "";
}

// As transformers: in place of the tokenizer's own post-processor, the classes of Llama (DeepSeek's and Mixtral's, too)
// and GPT-NeoX go by the flags of tokenizer_config.json; all other classes pass over such flags.
SpecialTokens tokens_around_prompts(const Tokenizer& tokenizer, const Json& config) {
  const Json name = config.value("tokenizer_class", Json());
  const std::string tokenizer_class = name.is_string() ? name.get<std::string>() : "";
  const bool has_flags = config.contains("add_bos_token") || config.contains("add_eos_token");
  const bool heeds_flags = tokenizer_class.empty() || tokenizer_class.starts_with("LlamaTokenizer");
  if (!tokenizer_class.starts_with("GPTNeoXTokenizer") && !(has_flags && heeds_flags))
    return tokenizer.special_tokens();
  const auto asked_for = [&](const char* flag, const char* name) {
    std::vector<int32_t> ids;
    const auto id = config.value(flag, Json()) == true ? tokenizer.token_id(special_token(config, name)) : std::nullopt;
    if (id) ids.push_back(*id);
    return ids;
  };
  return {asked_for("add_bos_token", "bos_token"), asked_for("add_eos_token", "eos_token")};
}

std::optional<std::string> template_source(const fs::path& dir, const Json& config) {
  if (auto file = read_file(dir / "chat_template.jinja")) return file;
  const auto it = config.find("chat_template");
  if (it == config.end() || it->is_null()) return std::nullopt;
  if (it->is_string()) return it->get<std::string>();
  if (it->is_array())
    for (const Json& entry : *it)
      if (entry.is_object() && entry.value("name", Json()) == "default" && entry.value("template", Json()).is_string())
        return entry["template"].get<std::string>();
  throw Error(
      Code::kBadData,
      fmt::format("{}: `chat_template` must be a string or a list of {{name, template}} with one named \"default\"",
                  (dir / "tokenizer_config.json").string()));
}

OrderedJson past_call(const api::PastToolCall& call, bool arguments_as_text) {
  // Checked when the request was read.
  OrderedJson arguments = arguments_as_text ? OrderedJson(call.arguments) : api::parse_ordered_json(call.arguments);
  OrderedJson function = {{"name", call.name}, {"arguments", std::move(arguments)}};
  return {{"id", call.id}, {"type", "function"}, {"function", std::move(function)}};
}

// A message as templates read it.
OrderedJson template_message(const api::ChatMessage& message, const ToolTemplate& shape, bool harmony) {
  OrderedJson entry = {{"role", message.role}, {"content", message.content}};
  if (message.name) entry["name"] = *message.name;
  if (message.reasoning_content) {
    entry["reasoning_content"] = *message.reasoning_content;
    // Harmony templates read another name, and take it beside a call only when there is no content.
    if (harmony && (message.content.empty() || message.tool_calls.empty()))
      entry["thinking"] = *message.reasoning_content;
  }
  if (message.tool_call_id) entry["tool_call_id"] = *message.tool_call_id;
  if (message.tool_calls.empty()) return entry;
  if (message.content.empty() && shape.content_is_none) entry["content"] = nullptr;
  entry["tool_calls"] = OrderedJson::array();
  for (const api::PastToolCall& call : message.tool_calls)
    entry["tool_calls"].push_back(past_call(call, shape.arguments_as_text));
  return entry;
}

OrderedJson to_json(const api::Scalar& value) {
  return std::visit([](const auto& v) { return OrderedJson(v); }, value);
}

}  // namespace

namespace {

// A checkpoint that is not supported is the more important news than a tokenizer that it lacks.
std::shared_ptr<const Tokenizer> load_tokenizer(const fs::path& dir) {
  try {
    return Tokenizer::load(dir);
  } catch (const Error& e) {
    try {
      read_config(dir);
    } catch (const Error& config) {
      throw Error(Code::kBadData, config.what());
    }
    if (e.code() != Code::kNotFound) throw;
    throw Error(Code::kBadData,
                fmt::format("{}; to serve token ids without text, use --skip-tokenizer-init", e.what()));
  }
}

}  // namespace

ModelText ModelText::load(const fs::path& dir, bool skip_tokenizer_init, const std::string& reasoning_parser,
                          const std::string& tool_call_parser) {
  ModelText text;
  if (skip_tokenizer_init) return text;
  text.tokenizer = load_tokenizer(dir);
  const Json config = read_tokenizer_config(dir / "tokenizer_config.json");
  for (const char* name : {"bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token"})
    if (std::string token = special_token(config, name); !token.empty()) text.special_tokens.emplace_back(name, token);
  text.prompt_tokens = tokens_around_prompts(*text.tokenizer, config);
  const std::string source = template_source(dir, config).value_or("");
  if (!source.empty()) text.chat_template = ChatTemplate::compile(source);
  text.reasoning = choose_reasoning(reasoning_parser, source, *text.tokenizer);
  if (text.reasoning) {
    text.reasoning_tokens = moectl::reasoning_tokens(*text.reasoning, *text.tokenizer);
    text.reasoning_markers = marker_tokens(api::markers_of(*text.reasoning), *text.tokenizer);
  }
  if (text.chat_template)
    text.tool_template = probe_tool_template([&text](const OrderedJson& variables) { return text.render(variables); });
  text.tool_calls = choose_tools(tool_call_parser, source, *text.tokenizer);
  if (tool_call_parser == "auto" && !text.tool_template.takes_tools) text.tool_calls = nullptr;
  text.harmony_markers = marker_tokens(api::HarmonyParser::markers(), *text.tokenizer);
  if (text.tool_calls) text.tool_markers = marker_tokens(api::markers_of(*text.tool_calls), *text.tokenizer);
  return text;
}

std::vector<TextSegment> ModelText::render_segments(OrderedJson variables) const {
  std::vector<std::string> trusted;
  for (const auto& [name, token] : special_tokens) {
    variables[name] = token;
    trusted.push_back(name);
  }
  return chat_template->render(variables, trusted);
}

std::string ModelText::render(const OrderedJson& variables) const {
  std::string text;
  for (const TextSegment& segment : render_segments(variables)) text += segment.text;
  return text;
}

std::optional<std::vector<int32_t>> ModelText::encode_chat(const api::ChatRequest& request, size_t max_tokens) const {
  if (!tokenizer)
    throw Error(Code::kInvalidArgument,
                "this server runs with --skip-tokenizer-init: send `prompt` as token ids to /v1/completions",
                "messages");
  if (!chat_template)
    throw Error(Code::kInvalidArgument, "this checkpoint has no chat template; use /v1/completions", "messages");
  if (request.tools.parses_calls() && !tool_calls)
    throw Error(Code::kInvalidArgument,
                tool_template.takes_tools
                    ? "this server takes no tool calls out of this checkpoint's answers; the operator can set "
                      "--tool-call-parser"
                    : "tools are not supported by this checkpoint: its chat template has no place for them",
                "tools");
  OrderedJson variables = {{"messages", OrderedJson::array()},
                           {"tools", nullptr},
                           {"documents", nullptr},
                           {"add_generation_prompt", request.add_generation_prompt}};
  const bool harmony = reasoning && reasoning->is_harmony();
  for (const api::ChatMessage& message : request.messages)
    variables["messages"].push_back(template_message(message, tool_template, harmony));
  if (request.tools.tools) variables["tools"] = *request.tools.tools;
  for (const auto& [name, value] : request.template_kwargs) variables[name] = to_json(value);
  try {
    const std::vector<TextSegment> segments = render_segments(std::move(variables));
    size_t num_bytes = 0;
    for (const TextSegment& segment : segments) num_bytes += segment.text.size();
    if (api::exceeds_tokens(num_bytes, max_tokens, tokenizer->max_bytes_per_token())) return std::nullopt;
    return tokenizer->encode_at_most(segments, max_tokens);
  } catch (const Error& e) {
    if (e.code() != Code::kInvalidArgument) throw;
    throw Error(Code::kInvalidArgument, std::string(api::kTemplateReports) + e.what(), "messages");
  }
}

std::optional<std::vector<int32_t>> ModelText::encode_prompt(const std::string& prompt, bool add_special_tokens,
                                                             size_t max_tokens) const {
  if (!tokenizer)
    throw Error(Code::kInvalidArgument, "this server runs with --skip-tokenizer-init: send `prompt` as token ids",
                "prompt");
  if (api::exceeds_tokens(prompt.size(), max_tokens, tokenizer->max_bytes_per_token())) return std::nullopt;
  std::optional<std::vector<int32_t>> ids = tokenizer->encode_at_most(prompt, max_tokens);
  if (!ids || !add_special_tokens) return ids;
  const auto& [before, after] = prompt_tokens;
  const bool has_them = ids->size() >= before.size() && std::equal(before.begin(), before.end(), ids->begin());
  if (!has_them) ids->insert(ids->begin(), before.begin(), before.end());
  ids->insert(ids->end(), after.begin(), after.end());
  return ids;
}

std::string ModelText::token_bytes(int32_t id) const {
  return tokenizer ? std::string(tokenizer->token_bytes(id)) : std::string();
}

}  // namespace moectl
