#include "core/api/json_call.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "core/api/marker_text.h"

namespace moectl::api {
namespace {

constexpr size_t kMaxNameBytes = 256;
constexpr size_t kMaxEarlyArguments = 64 << 10;  // before the name

bool is_blank(char c) {
  return kBlanks.find(c) != std::string_view::npos;
}

// What may stand in JSON outside of strings: anything else is no JSON, for one the `<` of a marker.
bool may_stand_outside_strings(char c) {
  return is_blank(c) || (c >= '0' && c <= '9') ||
         std::string_view("{}[]:,\"+-.Etruefalsn").find(c) != std::string_view::npos;
}

std::string unescape(const std::string& text) {
  if (text.find('\\') == std::string::npos) return text;
  const auto value = nlohmann::json::parse('"' + text + '"', nullptr, false);
  return value.is_string() ? value.get<std::string>() : "";
}

}  // namespace

JsonCallReader JsonCallReader::arguments_only() {
  JsonCallReader reader;
  reader.arguments_only_ = reader.has_name_ = reader.has_arguments_ = true;
  reader.member_ = Member::kArguments;
  reader.state_ = State::kValue;
  return reader;
}

size_t JsonCallReader::feed(std::string_view text, std::vector<Event>& events) {
  size_t used = 0;
  while (used < text.size() && !done() && !failed() && put(text[used], events)) ++used;
  // Arguments go out in one piece for each piece of text.
  if (has_name_ && !arguments_.empty()) events.push_back({Event::Kind::kArguments, std::exchange(arguments_, {})});
  return used;
}

bool JsonCallReader::fail() {
  state_ = State::kFailed;
  return false;
}

bool JsonCallReader::put(char c, std::vector<Event>& events) {
  if (state_ == State::kKey || (state_ == State::kInValue && member_ == Member::kName)) return continue_text(c, events);
  if (state_ == State::kInValue) return continue_value(c, events);
  if (is_blank(c)) return true;
  switch (state_) {
    case State::kStart:
      if (c == '[') {
        in_list_ = true;
        state_ = State::kObject;
        return true;
      }
      [[fallthrough]];
    case State::kObject:
      if (c != '{') return fail();
      has_name_ = has_arguments_ = false;
      arguments_.clear();
      state_ = State::kKeyOrEnd;
      return true;
    case State::kKeyOrEnd:
      if (c == '"') {
        text_.clear();
        escaped_ = false;
        state_ = State::kKey;
        return true;
      }
      [[fallthrough]];
    case State::kCommaOrEnd:
      if (c == ',' && state_ == State::kCommaOrEnd) {
        state_ = State::kKeyOrEnd;
        return true;
      }
      if (c != '}' || !has_name_) return fail();
      if (!arguments_.empty()) events.push_back({Event::Kind::kArguments, std::exchange(arguments_, {})});
      events.push_back({Event::Kind::kEnd, {}});
      state_ = in_list_ ? State::kNextOrEnd : State::kDone;
      return true;
    case State::kColon:
      if (c != ':') return fail();
      state_ = State::kValue;
      return true;
    case State::kValue:
      return start_value(c);
    case State::kNextOrEnd:
      if (c != ',' && c != ']') return fail();
      state_ = c == ',' ? State::kObject : State::kDone;
      return true;
    default:
      return fail();
  }
}

bool JsonCallReader::start_value(char c) {
  const bool opens = c == '{' || c == '[';
  if (!may_stand_outside_strings(c) || std::string_view("}],:").find(c) != std::string_view::npos) return fail();
  if (member_ == Member::kName && c != '"') return fail();
  depth_ = opens ? 1 : 0;
  in_string_ = c == '"';
  escaped_ = false;
  scalar_ = !opens && !in_string_;
  text_.clear();
  state_ = State::kInValue;
  if (member_ != Member::kName) keep(c);
  return true;
}

bool JsonCallReader::continue_text(char c, std::vector<Event>& events) {
  if (c != '"' || escaped_) {
    if (static_cast<unsigned char>(c) < 0x20 || text_.size() >= kMaxNameBytes) return fail();
    escaped_ = c == '\\' && !escaped_;
    text_ += c;
    return true;
  }
  std::string text = unescape(text_);
  if (state_ == State::kInValue) {
    if (text.empty()) return fail();
    has_name_ = true;
    events.push_back({Event::Kind::kName, std::move(text)});
    state_ = State::kCommaOrEnd;
    return true;
  }
  const bool arguments = text == "arguments" || text == "parameters";
  member_ = text == "name" ? Member::kName : arguments ? Member::kArguments : Member::kOther;
  if ((member_ == Member::kName && has_name_) || (arguments && has_arguments_)) return fail();
  has_arguments_ |= arguments;
  state_ = State::kColon;
  return true;
}

bool JsonCallReader::continue_value(char c, std::vector<Event>& events) {
  if (in_string_) {
    keep(c);
    in_string_ = c != '"' || escaped_;
    escaped_ = c == '\\' && !escaped_;
  } else {
    if (!may_stand_outside_strings(c)) return fail();
    if (scalar_ && (is_blank(c) || c == ',' || c == '}' || c == ']')) {
      end_value();
      return put(c, events);
    }
    keep(c);
    in_string_ = c == '"';
    if (c == '{' || c == '[') ++depth_;
    if (c == '}' || c == ']') --depth_;
  }
  if (failed()) return false;
  if (!in_string_ && !scalar_ && depth_ == 0) end_value();
  return true;
}

void JsonCallReader::keep(char c) {
  if (member_ != Member::kArguments) return;
  arguments_ += c;
  if (!has_name_ && arguments_.size() > kMaxEarlyArguments) fail();
}

}  // namespace moectl::api
