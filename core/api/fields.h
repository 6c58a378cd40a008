// Fields: typed, checked access to the members of one JSON object of a request. A member that is null counts as absent,
// as the OpenAI libraries send it. Every refusal names the field, what was expected and what came. Pure, any thread.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "core/base/sampling_ranges.h"

namespace moectl::api {

class Fields {
 public:
  // `path` is where the object stands ("messages[2]"); empty for the body. Throws when `object` is no object.
  Fields(const nlohmann::json& object, std::string path);

  const nlohmann::json* find(std::string_view name) const;  // nullptr: absent or null
  const nlohmann::json& object() const { return object_; }
  std::optional<bool> boolean(std::string_view name) const;
  std::optional<int64_t> integer(std::string_view name, int64_t min, int64_t max) const;
  std::optional<double> number(std::string_view name, const NumberRange& range) const;
  std::optional<std::string> string(std::string_view name, size_t max_bytes = std::numeric_limits<size_t>::max()) const;
  std::string path(std::string_view name) const;
  // "`name` must be <expected>, not <what came>".
  [[noreturn]] void fail(std::string_view name, std::string_view expected) const;

 private:
  const nlohmann::json& object_;
  std::string path_;
};

// The same for a value that is not a member (an array's entry): `path` says where it stands.
[[noreturn]] void fail_value(const std::string& path, std::string_view expected, const nlohmann::json& got);
double number_value(const nlohmann::json& value, const std::string& path, const NumberRange& range);
int64_t integer_value(const nlohmann::json& value, const std::string& path, int64_t min, int64_t max);
std::string string_value(const nlohmann::json& value, const std::string& path, size_t max_bytes);

}  // namespace moectl::api
