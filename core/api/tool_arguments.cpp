#include "core/api/tool_arguments.h"

#include <fmt/core.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "core/api/json.h"
#include "core/api/marker_text.h"
#include "core/base/error.h"
#include "core/base/json_depth.h"

namespace moectl::api {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxSchemaDepth = 8;  // of anyOf in anyOf ...

struct TypeName {
  std::string_view name;
  TypeSet type;
};
// "list[str]" and "int32" count by their beginning.
constexpr TypeName kTypeNames[] = {
    {"string", kStringType}, {"str", kStringType},     {"text", kStringType},  {"varchar", kStringType},
    {"char", kStringType},   {"enum", kStringType},    {"int", kIntegerType},  {"uint", kIntegerType},
    {"long", kIntegerType},  {"short", kIntegerType},  {"num", kNumberType},   {"float", kNumberType},
    {"double", kNumberType}, {"decimal", kNumberType}, {"bool", kBooleanType}, {"null", kNullType},
    {"none", kNullType},     {"object", kObjectType},  {"dict", kObjectType},  {"map", kObjectType},
    {"array", kArrayType},   {"list", kArrayType},     {"tuple", kArrayType},  {"arr", kArrayType},
};

TypeSet type_of_name(std::string name) {
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  for (const TypeName& entry : kTypeNames)
    if (name.starts_with(entry.name)) return entry.type;
  return kAnyType;
}

TypeSet type_of_value(const Json& value) {
  if (value.is_string()) return kStringType;
  if (value.is_boolean()) return kBooleanType;
  if (value.is_number_integer()) return kIntegerType;
  if (value.is_number()) return kNumberType;
  if (value.is_object()) return kObjectType;
  if (value.is_array()) return kArrayType;
  return kNullType;
}

const Json* member(const Json& object, const char* name) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(name);
  return it == object.end() ? nullptr : &*it;
}

TypeSet schema_types(const Json& schema, int depth) {
  TypeSet types = kAnyType;
  if (depth > kMaxSchemaDepth) return types;
  if (const Json* type = member(schema, "type")) {
    if (type->is_string()) types |= type_of_name(type->get<std::string>());
    if (type->is_array())
      for (const Json& entry : *type)
        if (entry.is_string()) types |= type_of_name(entry.get<std::string>());
  } else if (const Json* values = member(schema, "enum"); values && values->is_array()) {
    for (const Json& value : *values) types |= type_of_value(value);
  } else if (const Json* value = member(schema, "const")) {
    types |= type_of_value(*value);
  }
  for (const char* choice : {"anyOf", "oneOf", "allOf"})
    if (const Json* options = member(schema, choice); options && options->is_array())
      for (const Json& option : *options) types |= schema_types(option, depth + 1);
  return types;
}

std::string quoted(std::string_view text) {
  return '"' + escape_json(text) + '"';
}

std::string lower_case(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  return lower;
}

bool is_integer(std::string_view text) {
  const std::string_view digits = text.starts_with('-') ? text.substr(1) : text;
  return !digits.empty() && (digits.size() == 1 || digits[0] != '0') &&
         std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
}

bool is_number(std::string_view text) {
  return !text.empty() && (text[0] == '-' || (text[0] >= '0' && text[0] <= '9')) && is_json(text);
}

}  // namespace

bool is_json(std::string_view text) {
  try {
    check_json_depth(text, kMaxJsonDepth, "arguments");
  } catch (const Error&) {
    return false;
  }
  // nlohmann's reader takes a NUL for the end and ignores what follows.
  return text.find('\0') == std::string_view::npos && Json::accept(text.begin(), text.end());
}

TypeSet parameter_types(const Json& tools, std::string_view function, std::string_view parameter) {
  if (!tools.is_array()) return kAnyType;
  for (const Json& tool : tools) {
    const Json* definition = member(tool, "function");
    const Json* name = definition ? member(*definition, "name") : nullptr;
    if (!name || !name->is_string() || name->get_ref<const std::string&>() != function) continue;
    const Json* parameters = member(*definition, "parameters");
    const Json* properties = parameters ? member(*parameters, "properties") : nullptr;
    const Json* schema = properties ? member(*properties, std::string(parameter).c_str()) : nullptr;
    return schema ? schema_types(*schema, 0) : kAnyType;
  }
  return kAnyType;
}

std::string typed_value(std::string_view text, TypeSet types, bool untyped_is_json) {
  const std::string_view value = trim_blanks(text);
  if (types == kAnyType) return untyped_is_json && is_json(value) ? std::string(value) : quoted(text);
  const std::string lower = value.size() <= 5 ? lower_case(value) : "";
  // "null" is null where the schema allows it, and where it allows no string that it could be.
  if (((types & kNullType) || !(types & kStringType)) && (lower == "null" || lower == "none")) return "null";
  if ((types & (kIntegerType | kNumberType)) && is_integer(value)) return std::string(value);
  if ((types & kNumberType) && is_number(value)) return std::string(value);
  if ((types & kBooleanType) && (lower == "true" || lower == "false")) return lower;
  if ((types & kObjectType) && value.starts_with('{') && is_json(value)) return std::string(value);
  if ((types & kArrayType) && value.starts_with('[') && is_json(value)) return std::string(value);
  return quoted(text);
}

std::string escape_json(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20)
          out += fmt::format("\\u{:04x}", c);
        else
          out += c;
    }
  }
  return out;
}

}  // namespace moectl::api
