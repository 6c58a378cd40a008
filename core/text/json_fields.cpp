#include "core/text/json_fields.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/base/error.h"
#include "core/base/json_depth.h"

namespace moectl {

using nlohmann::json;

namespace {

constexpr int kMaxJsonDepth = 64;

}  // namespace

void JsonFields::fail(const std::string& field, const std::string& what) const {
  throw Error(Code::kBadData, fmt::format("{}: {}: {}", file_, field, what));
}

json JsonFields::parse(uintmax_t max_bytes) const {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(file_, error);
  if (error) throw Error(Code::kBadData, fmt::format("{}: cannot be read ({})", file_, error.message()));
  if (size > max_bytes) {
    throw Error(Code::kBadData, fmt::format("{}: {} bytes, expected at most {}", file_, size, max_bytes));
  }
  std::ifstream stream(file_, std::ios::binary);
  std::string text(size, '\0');
  if (!stream.read(text.data(), static_cast<std::streamsize>(size))) {
    throw Error(Code::kBadData, fmt::format("{}: reading its {} bytes failed", file_, size));
  }
  check_json_depth(text, kMaxJsonDepth, file_);
  try {
    return json::parse(text);
  } catch (const json::exception& e) {
    throw Error(Code::kBadData, fmt::format("{}: is not valid JSON: {}", file_, e.what()));
  }
}

const json& JsonFields::member(const json& object, const char* key, const std::string& path) const {
  const auto found = object.find(key);
  if (found == object.end()) fail(path, fmt::format("\"{}\" is missing", key));
  return *found;
}

const json& JsonFields::expect_object(const json& value, const std::string& path) const {
  if (!value.is_object()) fail(path, fmt::format("is a JSON {}, expected an object", value.type_name()));
  return value;
}

const json& JsonFields::array_member(const json& object, const char* key, const std::string& path) const {
  const json& value = member(object, key, path);
  if (!value.is_array()) fail(path + "." + key, fmt::format("is a JSON {}, expected an array", value.type_name()));
  return value;
}

const std::string& JsonFields::string_member(const json& object, const char* key, const std::string& path) const {
  const json& value = member(object, key, path);
  if (!value.is_string()) fail(path + "." + key, fmt::format("is a JSON {}, expected a string", value.type_name()));
  return value.get_ref<const std::string&>();
}

bool JsonFields::bool_member(const json& object, const char* key, const std::string& path) const {
  const json& value = member(object, key, path);
  if (!value.is_boolean())
    fail(path + "." + key, fmt::format("is a JSON {}, expected true or false", value.type_name()));
  return value.get<bool>();
}

bool JsonFields::bool_or(const json& object, const char* key, bool otherwise, const std::string& path) const {
  return object.contains(key) && !object[key].is_null() ? bool_member(object, key, path) : otherwise;
}

int32_t JsonFields::id(const json& value, int64_t end, const std::string& path) const {
  if (!value.is_number_integer()) fail(path, fmt::format("is {}, expected an integer", value.dump().substr(0, 50)));
  if (value.is_number_unsigned() ? value.get<uint64_t>() >= static_cast<uint64_t>(end) : value.get<int64_t>() < 0) {
    fail(path, fmt::format("is {}, expected an integer from 0 to {}", value.dump(), end - 1));
  }
  return value.get<int32_t>();
}

int32_t JsonFields::int_or(const json& object, const char* key, int32_t otherwise, int64_t end,
                           const std::string& path) const {
  return object.contains(key) && !object[key].is_null() ? id(object[key], end, path + "." + key) : otherwise;
}

void JsonFields::expect_keys(const json& object, std::initializer_list<const char*> known,
                             const std::string& path) const {
  for (const auto& [key, value] : object.items()) {
    if (std::none_of(known.begin(), known.end(), [&](std::string_view k) { return k == key; })) {
      fail(path, fmt::format("{} is not understood; it may change what the tokenizer does", quoted(key)));
    }
  }
}

}  // namespace moectl
