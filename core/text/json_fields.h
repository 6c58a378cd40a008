// JsonFields: typed access to the members of a JSON file from outside. Every error names the file and the field. Holds
// no JSON itself; any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace moectl {

class JsonFields {
 public:
  using json = nlohmann::json;
  explicit JsonFields(const std::filesystem::path& file) : file_(file.string()) {}
  const std::string& file() const { return file_; }

  // Reads and parses the file. Throws Error{kBadData} when it cannot be read, is larger than `max_bytes`, nested too
  // deep, or no JSON.
  json parse(uintmax_t max_bytes) const;

  // Throws Error{kBadData} "file: field: what".
  [[noreturn]] void fail(const std::string& field, const std::string& what) const;
  static std::string quoted(const std::string& text) { return '"' + text.substr(0, 200) + '"'; }

  // `path` names `value` or `object` in errors.
  const json& member(const json& object, const char* key, const std::string& path) const;
  const json& expect_object(const json& value, const std::string& path) const;
  const json& array_member(const json& object, const char* key, const std::string& path) const;
  const std::string& string_member(const json& object, const char* key, const std::string& path) const;
  bool bool_member(const json& object, const char* key, const std::string& path) const;
  bool bool_or(const json& object, const char* key, bool otherwise, const std::string& path) const;
  // An integer from 0 to below `end`.
  int32_t id(const json& value, int64_t end, const std::string& path) const;
  int32_t int_or(const json& object, const char* key, int32_t otherwise, int64_t end, const std::string& path) const;
  // Refuses members that are not listed: what is not understood may change ids.
  void expect_keys(const json& object, std::initializer_list<const char*> known, const std::string& path) const;

 private:
  std::string file_;
};

}  // namespace moectl
