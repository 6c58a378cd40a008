#include "core/serving/model_formats.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/api/harmony.h"
#include "core/base/error.h"

namespace moectl {
namespace {

using Json = nlohmann::ordered_json;

bool has_all(const std::vector<std::string_view>& markers, const Tokenizer& tokenizer) {
  return std::all_of(markers.begin(), markers.end(),
                     [&](std::string_view marker) { return tokenizer.token_id(marker).has_value(); });
}

std::vector<std::string_view> needed_tokens(const api::ReasoningFormat& format) {
  if (format.is_harmony()) return api::HarmonyParser::markers();
  if (format.spelled) return {};
  return {format.open, format.close};
}
std::vector<std::string_view> needed_tokens(const api::ToolFormat& format) {
  return format.style == api::CallStyle::kHarmony ? api::HarmonyParser::markers() : std::vector<std::string_view>();
}

// The row that was asked for by name. Throws when it cannot be used.
template <class Format>
const Format& named(const char* flag, const std::string& name, const Format* format, const std::string& known,
                    const Tokenizer& tokenizer) {
  if (!format)
    throw Error(Code::kBadConfig,
                fmt::format("{}: there is no parser \"{}\"; known: auto, none, {}", flag, name, known));
  for (const std::string_view marker : needed_tokens(*format))
    if (!tokenizer.token_id(marker))
      throw Error(Code::kBadConfig,
                  fmt::format("{} {}: the tokenizer has no token {}; use auto or none", flag, name, marker));
  return *format;
}

// A question, a call, its result. `call` and `tool` have names of their own, to tell where they show.
Json probe_chat(bool arguments_as_text, bool content_is_none) {
  Json arguments = {{"probe_key", "probe_value"}};
  if (arguments_as_text) arguments = arguments.dump();
  const Json function = {{"name", "probe_call"}, {"arguments", std::move(arguments)}};
  const Json call = {{"id", "call00000"}, {"type", "function"}, {"function", function}};
  Json asked = {{"role", "user"}, {"content", "question"}};
  Json called = {{"role", "assistant"}, {"content", ""}, {"tool_calls", Json::array({call})}};
  if (content_is_none) called["content"] = nullptr;
  Json result = {{"role", "tool"}, {"tool_call_id", "call00000"}, {"name", "probe_call"}, {"content", "result"}};
  return Json::array({std::move(asked), std::move(called), std::move(result)});
}

Json probe_variables(Json messages) {
  const Json property = {{"type", "string"}, {"description", "d"}};
  const Json parameters = {
      {"type", "object"}, {"properties", {{"probe_key", property}}}, {"required", Json::array({"probe_key"})}};
  const Json function = {{"name", "probe_tool"}, {"description", "d"}, {"parameters", parameters}};
  const Json tool = {{"type", "function"}, {"function", function}};
  return {{"messages", std::move(messages)},
          {"tools", Json::array({tool})},
          {"documents", nullptr},
          {"add_generation_prompt", true}};
}

std::string render_or_nothing(const RenderChat& render, const Json& variables) {
  try {
    return render(variables);
  } catch (const Error&) {
    return "";
  }
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

const api::ReasoningFormat* choose_reasoning(const std::string& name, const std::string& chat_template,
                                             const Tokenizer& tokenizer) {
  if (name == "none") return nullptr;
  if (name != "auto")
    return &named("--reasoning-parser", name, api::find_reasoning_format(name), api::reasoning_format_names(),
                  tokenizer);
  for (const api::ReasoningFormat& format : api::reasoning_formats())
    if (api::fits_template(format.hints, chat_template) && has_all(needed_tokens(format), tokenizer)) return &format;
  return nullptr;
}

const api::ToolFormat* choose_tools(const std::string& name, const std::string& chat_template,
                                    const Tokenizer& tokenizer) {
  if (name == "none") return nullptr;
  if (name != "auto")
    return &named("--tool-call-parser", name, api::find_tool_format(name), api::tool_format_names(), tokenizer);
  const api::ToolFormat* format = api::detect_tool_format(chat_template);
  return format && has_all(needed_tokens(*format), tokenizer) ? format : nullptr;
}

ReasoningTokens reasoning_tokens(const api::ReasoningFormat& format, const Tokenizer& tokenizer) {
  return {.open = tokenizer.token_id(format.open).value_or(-1),
          .close = tokenizer.token_id(format.close).value_or(-1),
          .ends_at = tokenizer.token_id(format.ends_at).value_or(-1)};
}

std::vector<int32_t> marker_tokens(const std::vector<std::string_view>& markers, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  for (const std::string_view marker : markers)
    if (const auto id = tokenizer.token_id(marker)) ids.push_back(*id);
  return ids;
}

ToolTemplate probe_tool_template(const RenderChat& render) {
  ToolTemplate result;
  const Json question = Json::array({{{"role", "user"}, {"content", "question"}}});
  result.takes_tools = contains(render_or_nothing(render, probe_variables(question)), "probe_tool");
  for (const bool as_text : {false, true})
    for (const bool none : {false, true}) {
      const std::string prompt = render_or_nothing(render, probe_variables(probe_chat(as_text, none)));
      // An object that was printed without tojson shows Python's quotes.
      const bool shown = contains(prompt, "probe_call") && contains(prompt, "probe_value");
      if (!shown || contains(prompt, "'probe_key'")) continue;
      result.arguments_as_text = as_text;
      result.content_is_none = none;
      return result;
    }
  return result;
}

}  // namespace moectl
