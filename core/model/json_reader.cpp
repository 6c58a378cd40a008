// JSON of a checkpoint, read token by token. nlohmann's tokenizer makes the tokens; the values are built here, because
// nlohmann's own reader with a callback searches all members of the parent at the end of each inner object, which is
// quadratic in the number of tensors of a header.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/error.h"
#include "core/base/json_depth.h"
#include "core/model/json_fields.h"

namespace moectl {

using nlohmann::json;

namespace {

[[noreturn]] void bad(std::string message) {
  throw Error(Code::kBadData, std::move(message));
}

[[noreturn]] void name_twice(const std::string& origin, const std::string& name) {
  bad(fmt::format("{}: the name {} stands twice in one object; write it once", origin, brief_json(name)));
}

// One value from its tokens.
class ValueBuilder {
 public:
  ValueBuilder(const std::string& origin, size_t max_values) : origin_(origin), max_values_(max_values) {}

  void add(json value) {
    if (++num_values_ > max_values_)
      bad(fmt::format("{}: holds more than {} values, which no checkpoint needs", origin_, max_values_));
    const bool is_container = value.is_structured();
    json* placed = &root_;
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (open_.back()->is_array()) {
      auto& items = open_.back()->get_ref<json::array_t&>();
      items.push_back(std::move(value));
      placed = &items.back();
    } else {
      *slot_ = std::move(value);
      placed = slot_;
    }
    if (is_container) open_.push_back(placed);
  }
  void key(std::string& name) {
    auto [slot, added] = open_.back()->get_ref<json::object_t&>().try_emplace(std::move(name));
    if (!added) name_twice(origin_, slot->first);
    slot_ = &slot->second;
  }
  void close() { open_.pop_back(); }
  bool is_open() const { return !open_.empty(); }  // a list or an object is not complete

  json take() {
    num_values_ = 0;
    return std::move(root_);
  }

 private:
  const std::string& origin_;
  const size_t max_values_;
  json root_;
  std::vector<json*> open_;  // lists and objects, the outermost first; a value is only ever added to the last one
  json* slot_ = nullptr;     // where the value of the last name goes
  size_t num_values_ = 0;
};

// Builds the whole text as one value, or, with `take`, the members of the outermost object one after the other.
class Reader final : public nlohmann::json_sax<json> {
 public:
  Reader(const std::string& origin, size_t max_values) : origin_(origin), builder_(origin, max_values) {}
  Reader(const std::string& origin, const std::string& expected, size_t max_values, const TakeMember& take)
      : origin_(origin), expected_(expected), take_(&take), builder_(origin, max_values) {}
  json take() { return builder_.take(); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_array(size_t) override { return add(json::array()); }
  bool end_array() override { return close(); }
  bool end_object() override { return close(); }
  bool start_object(size_t) override {
    if (!take_ || in_root_) return add(json::object());
    return in_root_ = true;
  }
  bool key(string_t& name) override {
    if (!take_ || builder_.is_open()) {
      builder_.key(name);
    } else {
      auto [member, added] = names_.insert(std::move(name));
      if (!added) name_twice(origin_, *member);
      member_ = &*member;
    }
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    bad(fmt::format("{}: is not valid JSON: {}", origin_, e.what()));
  }

 private:
  bool add(json value) {
    if (take_ && !in_root_)
      bad(fmt::format("{} is {}; expected {}", origin_, value.is_array() ? "a list" : brief_json(value), expected_));
    builder_.add(std::move(value));
    return hand_over();
  }
  bool close() {
    if (!builder_.is_open()) return true;  // the outermost object itself
    builder_.close();
    return hand_over();
  }
  bool hand_over() {
    if (take_ && !builder_.is_open()) (*take_)(*member_, builder_.take());
    return true;
  }

  const std::string& origin_;
  const std::string expected_;
  const TakeMember* const take_ = nullptr;
  ValueBuilder builder_;
  bool in_root_ = false;
  std::set<std::string> names_;          // of the outermost object
  const std::string* member_ = nullptr;  // the one that is being built
};

}  // namespace

json parse_untrusted_json(std::string_view text, const std::string& origin) {
  check_json_depth(text, kMaxJsonDepth, origin);
  Reader reader(origin, SIZE_MAX);
  json::sax_parse(text, &reader);
  return reader.take();
}

void for_each_untrusted_member(std::string_view text, const std::string& origin, const std::string& expected,
                               size_t max_values, const TakeMember& take) {
  check_json_depth(text, kMaxJsonDepth, origin);
  Reader reader(origin, expected, max_values, take);
  json::sax_parse(text, &reader);
}

}  // namespace moectl
