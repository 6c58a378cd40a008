#include "core/api/json.h"

#include <simdjson.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/json_depth.h"

namespace moectl::api {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& problem) {
  throw Error(Code::kInvalidArgument, "the request body is not valid JSON: " + problem);
}

std::string too_many_values() {
  return fmt::format("it holds more than {} values", kMaxJsonValues);
}

// Duplicate keys are refused: the last would win silently, and another reader of the same bytes may take the first.
// Sorted, because ordered objects would compare every key with every other, and an object may have a million.
template <class Member>
void check_keys(const std::vector<Member>& members) {
  constexpr size_t kFew = 8;
  std::optional<std::string_view> twice;
  if (members.size() <= kFew) {
    for (size_t i = 1; i < members.size(); ++i)
      for (size_t j = 0; j < i; ++j)
        if (members[i].first == members[j].first) twice = members[i].first;
  } else {
    std::vector<std::string_view> keys;
    keys.reserve(members.size());
    for (const Member& member : members) keys.push_back(member.first);
    std::sort(keys.begin(), keys.end());
    if (const auto found = std::adjacent_find(keys.begin(), keys.end()); found != keys.end()) twice = *found;
  }
  if (twice) refuse(fmt::format("the key \"{}\" occurs twice in one object", twice->substr(0, 64)));
}

// An object of these members. They are collected first, because an ordered object copies its values whenever it grows.
template <class J>
J make_object(std::vector<std::pair<std::string, J>>&& members) {
  check_keys(members);
  J object = J::object();
  auto& entries = object.template get_ref<typename J::object_t&>();
  if constexpr (std::is_same_v<J, OrderedJson>) {
    entries.reserve(members.size());
    for (auto& [key, value] : members) entries.emplace_back(std::move(key), std::move(value));
  } else {
    for (auto& [key, value] : members) entries.emplace(std::move(key), std::move(value));
  }
  return object;
}

// ------------------------------------------------------------------------------------------------ simdjson

// The value of a document that simdjson has parsed and validated. Recursive: simdjson bounds the depth.
template <class J>
J build(const simdjson::dom::element& element, size_t& num_values) {
  using simdjson::dom::element_type;
  if (++num_values > kMaxJsonValues) refuse(too_many_values());
  switch (element.type()) {
    case element_type::OBJECT: {
      const simdjson::dom::object object = element.get_object().value_unsafe();
      std::vector<std::pair<std::string, J>> members;
      members.reserve(object.size());
      for (const auto& [key, value] : object) members.emplace_back(std::string(key), build<J>(value, num_values));
      return make_object<J>(std::move(members));
    }
    case element_type::ARRAY: {
      const simdjson::dom::array array = element.get_array().value_unsafe();
      J list = J::array();
      auto& items = list.template get_ref<typename J::array_t&>();
      items.reserve(array.size());
      for (const simdjson::dom::element item : array) items.push_back(build<J>(item, num_values));
      return list;
    }
    case element_type::STRING:
      return std::string(element.get_string().value_unsafe());
    case element_type::INT64: {
      // As nlohmann's reader has it: what is not negative is unsigned.
      const int64_t number = element.get_int64().value_unsafe();
      if (number >= 0) return uint64_t(number);
      return number;
    }
    case element_type::UINT64:
      return element.get_uint64().value_unsafe();
    case element_type::DOUBLE:
      return element.get_double().value_unsafe();
    case element_type::BOOL:
      return element.get_bool().value_unsafe();
    case element_type::NULL_VALUE:
      break;
  }
  return nullptr;
}

// Whether the text may hold more values than are accepted: simdjson takes memory for all of them before it is known. No
// value is missed; commas and braces in strings count, too.
bool may_hold_too_many_values(std::string_view text) {
  if (text.size() <= kMaxJsonValues) return false;
  constexpr size_t kLanes = 32;  // one fixed block at a time, so that -O2 makes vector code of it
  size_t count = 1;
  const auto starts_value = [](char c) { return uint8_t(c == ',') + uint8_t((c | 0x20) == '{'); };  // '[' | 0x20 is '{'
  while (text.size() >= kLanes * 64) {
    uint8_t lanes[kLanes] = {};
    for (size_t i = 0; i < 64; ++i)
      for (size_t j = 0; j < kLanes; ++j) lanes[j] = uint8_t(lanes[j] + starts_value(text[i * kLanes + j]));
    for (const uint8_t lane : lanes) count += lane;
    text.remove_prefix(kLanes * 64);
  }
  for (const char c : text) count += size_t(starts_value(c));
  return count > kMaxJsonValues;
}

// ------------------------------------------------------------------------------------------------ nlohmann

// Builds the value as nlohmann's own reader does, and refuses what that one lets pass: duplicate keys and too many
// values.
template <class J>
class StrictReader final : public nlohmann::json_sax<J> {
 public:
  using typename nlohmann::json_sax<J>::number_integer_t;
  using typename nlohmann::json_sax<J>::number_unsigned_t;
  using typename nlohmann::json_sax<J>::number_float_t;
  using typename nlohmann::json_sax<J>::string_t;
  using typename nlohmann::json_sax<J>::binary_t;

  J take() { return std::move(root_); }
  const std::string& problem() const { return problem_; }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(); }
  bool start_array(size_t) override { return open(); }
  bool end_object() override {
    Open closed = std::move(open_.back());
    open_.pop_back();
    return place(make_object<J>(std::move(closed.members)));
  }
  bool end_array() override {
    Open closed = std::move(open_.back());
    open_.pop_back();
    J list = J::array();
    list.template get_ref<typename J::array_t&>() = std::move(closed.items);
    return place(std::move(list));
  }
  bool key(string_t& name) override {
    open_.back().key = std::move(name);
    open_.back().is_object = true;
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    problem_ = e.what();
    if (const size_t end = problem_.find("] "); end != std::string::npos)
      problem_.erase(0, end + 2);  // [json.exception...]
    return false;
  }

 private:
  struct Open {  // an array or object that is not closed yet
    bool is_object = false;
    std::vector<std::pair<std::string, J>> members;
    typename J::array_t items;
    std::string key;  // of the member that comes next
  };
  bool count() {
    if (++num_values_ <= kMaxJsonValues) return true;
    problem_ = too_many_values();
    return false;
  }
  bool place(J value) {
    if (open_.empty())
      root_ = std::move(value);
    else if (open_.back().is_object)
      open_.back().members.emplace_back(std::move(open_.back().key), std::move(value));
    else
      open_.back().items.push_back(std::move(value));
    return true;
  }
  bool add(J value) { return count() && place(std::move(value)); }
  bool open() {
    open_.emplace_back();
    return count();
  }

  J root_;
  std::vector<Open> open_;
  size_t num_values_ = 0;
  std::string problem_;
};

// Reads what simdjson refuses, says what is wrong with it and where, and takes what only it takes: integers beyond 64
// bits (as floating-point numbers) and a byte order mark.
template <class J>
J parse_slowly(std::string_view text) {
  try {
    check_json_depth(text, kMaxJsonDepth, "the request body");
  } catch (const Error& e) {
    throw Error(Code::kInvalidArgument, e.what());
  }
  StrictReader<J> reader;
  if (!J::sax_parse(text.begin(), text.end(), &reader)) refuse(reader.problem());
  return reader.take();
}

// What `pick` takes from the parsed document, or nullopt when simdjson does not read it.
template <class J, class Pick>
std::optional<J> parse_fast(std::string_view text, Pick pick) {
  if (may_hold_too_many_values(text)) return std::nullopt;
  simdjson::dom::parser parser;
  simdjson::dom::element root;
  if (parser.allocate(text.size(), kMaxJsonDepth) || parser.parse(text.data(), text.size()).get(root))
    return std::nullopt;
  return pick(root);
}

void check_text(std::string_view text) {
  if (text.empty()) throw Error(Code::kInvalidArgument, "the request body is empty; a JSON object is expected");
  // nlohmann's reader takes it for the end and ignores what follows.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos)
    refuse(fmt::format("it contains a NUL byte at offset {}", nul));
}

template <class J>
J parse_whole(std::string_view text) {
  check_text(text);
  const auto all = [](const simdjson::dom::element& root) {
    size_t num_values = 0;
    return build<J>(root, num_values);
  };
  if (std::optional<J> value = parse_fast<J>(text, all)) return std::move(*value);
  return parse_slowly<J>(text);
}

}  // namespace

nlohmann::json parse_json(std::string_view text) {
  return parse_whole<Json>(text);
}

nlohmann::ordered_json parse_ordered_json(std::string_view text) {
  return parse_whole<OrderedJson>(text);
}

nlohmann::ordered_json parse_ordered_member(std::string_view text, std::string_view name) {
  check_text(text);
  const auto member = [name](const simdjson::dom::element& root) -> OrderedJson {
    simdjson::dom::element value;
    size_t num_values = 0;
    if (root.at_key(name).get(value)) return nullptr;
    return build<OrderedJson>(value, num_values);
  };
  if (std::optional<OrderedJson> value = parse_fast<OrderedJson>(text, member)) return std::move(*value);
  OrderedJson root = parse_slowly<OrderedJson>(text);
  const auto found = root.is_object() ? root.find(name) : root.end();
  return found == root.end() ? OrderedJson(nullptr) : std::move(*found);
}

std::string to_text(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string describe(const nlohmann::json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return value.get<bool>() ? "true" : "false";
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
    case Json::value_t::number_float:
      return "the number " + value.dump().substr(0, 32);
    case Json::value_t::string: {
      const auto& text = value.get_ref<const std::string&>();
      if (text.size() > 32) return fmt::format("a string of {} bytes", text.size());
      return value.dump(-1, ' ', false, Json::error_handler_t::replace);
    }
    case Json::value_t::array:
      return fmt::format("an array of {}", value.size());
    case Json::value_t::object:
      return "an object";
    default:
      return "something else";
  }
}

}  // namespace moectl::api
