// Reading JSON files of a checkpoint without trusting them: size, depth and duplicate names are checked before a value
// is used, and every field is fetched with its type and range, so that an error can name file, field, value and
// expectation. Any thread; it knows nothing of what the fields mean.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace moectl {

inline constexpr int kMaxJsonDepth = 64;

// The JSON value of `text`. Throws Error{kBadData} naming `origin`: not JSON, nested deeper than kMaxJsonDepth, a name
// twice in one object (parsers disagree on which one counts), a number that no double holds.
nlohmann::json parse_untrusted_json(std::string_view text, const std::string& origin);

// The members of the object `text`, in order, each handed over as soon as it is complete and then dropped: the memory
// in use is that of one member and of the names. Time is linear in the text. Throws Error{kBadData} as above, when
// `text` is no object (`expected` says of what), and when a member holds more than `max_values` values.
using TakeMember = std::function<void(const std::string& name, const nlohmann::json& value)>;
void for_each_untrusted_member(std::string_view text, const std::string& origin, const std::string& expected,
                               size_t max_values, const TakeMember& take);

// The bytes of a file of at most `max_bytes`. Throws Error{kNotFound} when there is none, Error{kBadData} when it is
// not a regular file or too large.
std::string read_untrusted_text(const std::filesystem::path& file, int64_t max_bytes);

// parse_untrusted_json() of a file of at most `max_bytes`. Throws Error{kNotFound} when there is none, Error{kBadData}
// when it is not a regular file or too large.
nlohmann::json read_untrusted_json(const std::filesystem::path& file, int64_t max_bytes);

// Throws Error{kNotFound} unless `dir` is a folder.
void require_checkpoint_dir(const std::filesystem::path& dir);

// A value as a message shows it: one line, at most about 80 characters.
std::string brief_json(const nlohmann::json& value);

// One JSON object, field by field. It refers to the object and must not outlive it. null counts as absent. It remembers
// which fields were asked for, in copies and inner objects too, so that unread() can name those that nobody understood.
class Fields {
 public:
  // Throws Error{kBadData} when `json` is no object. `prefix` stands before field names in messages ("rope_scaling.").
  Fields(const nlohmann::json& json, std::string origin, std::string prefix = {});

  // Fields that are not in the object have these values from now on (null in the object does not count as missing).
  // `defaults` is an object and must outlive the Fields.
  void set_defaults(const nlohmann::json& defaults) { defaults_ = &defaults; }

  const nlohmann::json* find(std::string_view name) const;  // nullptr: absent or null
  bool has(std::string_view name) const { return find(name) != nullptr; }
  bool contains(std::string_view name) const;  // in the object itself; null counts
  bool empty() const;

  // Names of the object, in order, whose values are not null and that nobody asked for.
  std::vector<std::string> unread() const;
  void ignore(std::initializer_list<std::string_view> names) const;  // as if they had been read

  int64_t integer(std::string_view name, int64_t min, int64_t max) const;
  int64_t integer_or(std::string_view name, int64_t fallback, int64_t min, int64_t max) const;
  double number(std::string_view name, double min, double max) const;
  double number_or(std::string_view name, double fallback, double min, double max) const;
  bool boolean_or(std::string_view name, bool fallback) const;
  std::string text(std::string_view name) const;
  std::string text_or(std::string_view name, std::string_view fallback) const;
  std::optional<Fields> object(std::string_view name) const;
  // A number or a list of numbers (eos_token_id); empty when absent.
  std::vector<int32_t> integers(std::string_view name, int64_t min, int64_t max) const;

  // A list of texts (layer_types); empty when absent.
  std::vector<std::string> texts(std::string_view name) const;

  // The first name of several spellings that is present, or names[0]; two that disagree are refused.
  std::string_view either(std::initializer_list<std::string_view> names) const;

  // "FILE: `field` is VALUE; expected EXPECTED"
  [[noreturn]] void fail(std::string_view name, std::string_view expected) const;

  const std::string& origin() const { return origin_; }

 private:
  const nlohmann::json* json_;
  const nlohmann::json* defaults_ = nullptr;
  std::string origin_, prefix_;
  std::shared_ptr<std::set<std::string>> read_;  // prefix and name
};

}  // namespace moectl
