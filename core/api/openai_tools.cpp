#include "core/api/openai_tools.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/api/json.h"
#include "core/api/tool_arguments.h"
#include "core/base/error.h"

namespace moectl::api {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& param, const std::string& message) {
  throw Error(Code::kInvalidArgument, message, param);
}

// Ordered objects find their members one after the other, so large ones are refused before they are built.
void check_sizes(const Json& value, const std::string& path) {
  if (!value.is_structured()) return;
  if (value.size() > kMaxToolMembers)
    refuse(path, fmt::format("`{}` has an object or array of {} members; at most {} are accepted", path, value.size(),
                             kMaxToolMembers));
  for (const Json& entry : value) check_sizes(entry, path);
}

void check_arguments(const std::string& arguments, const Fields& function) {
  Json parsed;
  try {
    parsed = parse_json(arguments);
  } catch (const Error&) {
  }
  if (!parsed.is_object()) function.fail("arguments", "a string that holds a JSON object");
  check_sizes(parsed, function.path("arguments"));
}

std::string read_name(const Fields& function) {
  const auto name = function.string("name", kMaxToolNameBytes);
  if (!name || name->empty()) function.fail("name", "the function's name");
  const bool valid = std::all_of(name->begin(), name->end(), [](unsigned char c) {
    return std::isalnum(c) || std::string_view("_-.:/").find(char(c)) != std::string_view::npos;
  });
  if (!valid) function.fail("name", "letters, digits, and _ - . : /");
  return *name;
}

std::string read_function_name(const Fields& tool) {
  const auto type = tool.string("type");
  if (type.value_or("") != "function") tool.fail("type", "\"function\"");
  const Json* function = tool.find("function");
  if (!function) tool.fail("function", "an object with the function's name");
  const Fields fields(*function, tool.path("function"));
  std::string name = read_name(fields);
  fields.string("description");
  if (const Json* parameters = fields.find("parameters"); parameters && !parameters->is_object())
    fields.fail("parameters", "a JSON schema, an object");
  fields.boolean("strict");
  return name;
}

ToolChoice read_choice(const Fields& fields, const std::set<std::string>& names) {
  const Json* choice = fields.find("tool_choice");
  if (!choice) return ToolChoice::kAuto;
  constexpr const char* kExpected = "\"none\", \"auto\", \"required\" or {\"type\": \"function\", ...}";
  if (!choice->is_string() && !choice->is_object()) fields.fail("tool_choice", kExpected);
  if (*choice == "none") return ToolChoice::kNone;
  if (*choice == "auto") return ToolChoice::kAuto;
  if (choice->is_string() && *choice != "required") fields.fail("tool_choice", kExpected);
  if (names.empty()) refuse("tool_choice", "`tool_choice` asks for a call, but there are no `tools`");
  if (choice->is_object()) {
    const std::string name = read_function_name(Fields(*choice, "tool_choice"));
    if (!names.contains(name))
      refuse("tool_choice", fmt::format("`tool_choice` names the function \"{}\", which is not in `tools`", name));
  }
  refuse("tool_choice",
         "`tool_choice` can only be \"none\" or \"auto\": forcing a call needs constrained decoding, which is not "
         "supported by this server");
}

}  // namespace

ToolRequest read_tools(const Fields& fields, std::string_view body) {
  ToolRequest request;
  std::set<std::string> names;
  const Json* tools = fields.find("tools");
  if (tools && !tools->is_array()) fields.fail("tools", "an array of tools");
  if (tools && !tools->empty()) {
    if (tools->size() > kMaxTools) fields.fail("tools", fmt::format("at most {} tools", kMaxTools));
    for (size_t i = 0; i < tools->size(); ++i) {
      const std::string path = fmt::format("tools[{}]", i);
      check_sizes((*tools)[i], path);
      const std::string name = read_function_name(Fields((*tools)[i], path));
      if (!names.insert(name).second)
        refuse(path + ".function.name", fmt::format("`tools` has the function \"{}\" twice", name));
    }
    request.tools = std::make_shared<const OrderedJson>(parse_ordered_member(body, "tools"));
  }
  request.choice = read_choice(fields, names);
  request.parallel = fields.boolean("parallel_tool_calls").value_or(true);
  return request;
}

std::vector<PastToolCall> read_past_tool_calls(const Fields& message) {
  const Json* list = message.find("tool_calls");
  if (!list) return {};
  if (!list->is_array()) message.fail("tool_calls", "an array of tool calls");
  if (list->size() > kMaxCallsPerMessage)
    message.fail("tool_calls", fmt::format("at most {} calls", kMaxCallsPerMessage));
  std::vector<PastToolCall> calls;
  for (size_t i = 0; i < list->size(); ++i) {
    const Fields fields((*list)[i], fmt::format("{}[{}]", message.path("tool_calls"), i));
    const auto id = fields.string("id", kMaxCallIdBytes);
    if (!id) fields.fail("id", "a string");
    if (fields.string("type").value_or("function") != "function") fields.fail("type", "\"function\"");
    const Json* function = fields.find("function");
    if (!function) fields.fail("function", "an object with `name` and `arguments`");
    const Fields nested(*function, fields.path("function"));
    const auto name = nested.string("name", kMaxToolNameBytes);
    if (!name || name->empty()) nested.fail("name", "the function's name");
    PastToolCall call{.id = *id, .name = *name, .arguments = nested.string("arguments").value_or("")};
    if (!nested.find("arguments")) nested.fail("arguments", "a string that holds a JSON object");
    if (call.arguments.empty()) call.arguments = "{}";
    check_arguments(call.arguments, nested);
    calls.push_back(std::move(call));
  }
  return calls;
}

}  // namespace moectl::api
