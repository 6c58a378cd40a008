#include "core/api/json.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/base/json_depth.h"

namespace moectl::api {
namespace {

using Json = nlohmann::json;

// Builds the value as nlohmann's own reader does, and refuses what that one lets pass: duplicate keys (the last would
// win silently, and another reader of the same bytes may take the first) and too many values.
class StrictReader final : public nlohmann::json_sax<Json> {
 public:
  Json take() { return std::move(root_); }
  const std::string& problem() const { return problem_; }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    auto [slot, inserted] = open_.back()->get_ref<Json::object_t&>().try_emplace(std::move(name));
    if (!inserted) problem_ = "the key \"" + slot->first.substr(0, 64) + "\" occurs twice in one object";
    slot_ = &slot->second;
    return inserted;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    problem_ = e.what();
    if (const size_t end = problem_.find("] "); end != std::string::npos)
      problem_.erase(0, end + 2);  // [json.exception...]
    return false;
  }

 private:
  Json* place(Json value) {
    if (++num_values_ > kMaxJsonValues) {
      problem_ = fmt::format("it holds more than {} values", kMaxJsonValues);
      return nullptr;
    }
    if (open_.empty()) return &(root_ = std::move(value));
    if (open_.back()->is_array()) {
      auto& items = open_.back()->get_ref<Json::array_t&>();
      items.push_back(std::move(value));
      return &items.back();
    }
    return &(*slot_ = std::move(value));
  }
  bool add(Json value) { return place(std::move(value)) != nullptr; }
  bool open(Json value) {
    Json* placed = place(std::move(value));
    if (placed) open_.push_back(placed);
    return placed != nullptr;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  Json root_;
  std::vector<Json*> open_;  // arrays and objects not yet closed; a child is only ever added to the last one
  Json* slot_ = nullptr;     // where the value of the last key goes
  size_t num_values_ = 0;
  std::string problem_;
};

}  // namespace

nlohmann::json parse_json(std::string_view text) {
  try {
    check_json_depth(text, kMaxJsonDepth, "the request body");
  } catch (const Error& e) {
    throw Error(Code::kInvalidArgument, e.what());
  }
  if (text.empty()) throw Error(Code::kInvalidArgument, "the request body is empty; a JSON object is expected");
  StrictReader reader;
  if (!Json::sax_parse(text.begin(), text.end(), &reader))
    throw Error(Code::kInvalidArgument, "the request body is not valid JSON: " + reader.problem());
  return reader.take();
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
