#include "core/api/fields.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "core/api/json.h"
#include "core/base/error.h"

namespace moectl::api {

void fail_value(const std::string& path, std::string_view expected, const nlohmann::json& got) {
  throw Error(Code::kInvalidArgument, fmt::format("`{}` must be {}, not {}", path, expected, describe(got)), path);
}

double number_value(const nlohmann::json& value, const std::string& path, const NumberRange& range) {
  if (value.is_number())
    if (const auto number = value.get<double>(); range.holds(number)) return number;
  fail_value(path, range.text(), value);
}

int64_t integer_value(const nlohmann::json& value, const std::string& path, int64_t min, int64_t max) {
  const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= uint64_t(std::numeric_limits<int64_t>::max())
                                               : value.is_number_integer();
  if (fits)
    if (const auto number = value.get<int64_t>(); number >= min && number <= max) return number;
  fail_value(path, fmt::format("an integer from {} to {}", min, max), value);
}

std::string string_value(const nlohmann::json& value, const std::string& path, size_t max_bytes) {
  if (!value.is_string()) fail_value(path, "a string", value);
  const auto& text = value.get_ref<const std::string&>();
  if (text.size() > max_bytes) fail_value(path, fmt::format("a string of at most {} bytes", max_bytes), value);
  return text;
}

Fields::Fields(const nlohmann::json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (object.is_object()) return;
  if (path_.empty())
    throw Error(Code::kInvalidArgument, "the request body must be a JSON object, not " + describe(object));
  fail_value(path_, "an object", object);
}

const nlohmann::json* Fields::find(std::string_view name) const {
  const auto it = object_.find(std::string(name));
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

std::string Fields::path(std::string_view name) const {
  return path_.empty() ? std::string(name) : path_ + "." + std::string(name);
}

void Fields::fail(std::string_view name, std::string_view expected) const {
  const nlohmann::json* value = find(name);
  if (!value)
    throw Error(Code::kInvalidArgument, fmt::format("`{}` is required: {}", path(name), expected), path(name));
  fail_value(path(name), expected, *value);
}

std::optional<bool> Fields::boolean(std::string_view name) const {
  const nlohmann::json* value = find(name);
  if (!value) return std::nullopt;
  if (!value->is_boolean()) fail(name, "true or false");
  return value->get<bool>();
}

std::optional<int64_t> Fields::integer(std::string_view name, int64_t min, int64_t max) const {
  const nlohmann::json* value = find(name);
  if (!value) return std::nullopt;
  return integer_value(*value, path(name), min, max);
}

std::optional<double> Fields::number(std::string_view name, const NumberRange& range) const {
  const nlohmann::json* value = find(name);
  if (!value) return std::nullopt;
  return number_value(*value, path(name), range);
}

std::optional<std::string> Fields::string(std::string_view name, size_t max_bytes) const {
  const nlohmann::json* value = find(name);
  if (!value) return std::nullopt;
  return string_value(*value, path(name), max_bytes);
}

}  // namespace moectl::api
