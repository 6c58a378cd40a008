#include "core/api/tool_parser.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/api/marker_text.h"

namespace moectl::api {
namespace {

constexpr size_t kMaxNameBytes = 256;       // of a function or parameter
constexpr size_t kMaxValueBytes = 1 << 20;  // of an argument that is no string; longer ones go out as strings
constexpr size_t kMaxRawBytes = 128 << 10;  // of a call whose name is not known yet

// Letters of any language, digits, and the punctuation that names have. Prose that mentions a marker has none of this
// form behind it.
bool is_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes && std::none_of(name.begin(), name.end(), [](unsigned char c) {
    return c <= 0x20 || c == 0x7f || std::string_view("<>{}[]()\"'`,;|").find(char(c)) != std::string_view::npos;
  });
}

// "functions.f:0" -> "f"
std::string_view name_in_id(std::string_view id) {
  if (id.starts_with("functions.")) id.remove_prefix(std::string_view("functions.").size());
  const size_t colon = id.rfind(':');
  const bool counted = colon != std::string_view::npos && colon + 1 < id.size() &&
                       id.find_first_not_of("0123456789", colon + 1) == std::string_view::npos;
  return counted ? id.substr(0, colon) : id;
}

}  // namespace

void append_tool_call(std::vector<ToolCallDelta>& calls, ToolCallDelta&& more) {
  if (more.name.empty() && !calls.empty() && calls.back().index == more.index)
    calls.back().arguments += more.arguments;
  else
    calls.push_back(std::move(more));
}

ToolCallParser::ToolCallParser(const ToolFormat& format, ToolsJson tools) : format_(format), tools_(std::move(tools)) {}

ToolCallParser::Delta ToolCallParser::push(std::string_view text) {
  held_ += text;
  while (!held_.empty() && step(false)) {
  }
  return std::exchange(delta_, {});
}

ToolCallParser::Delta ToolCallParser::finish() {
  while (!held_.empty() && step(true)) {
  }
  // Half a marker inside a call belongs to nothing, nor what is left of a further call; without a call everything is
  // content.
  if (state_ == State::kContent || num_calls_ == 0) {
    add_content(std::exchange(raw_, {}) + std::exchange(held_, {}));
    if (!after_call_) delta_.content += std::exchange(blanks_, {});
  }
  return std::exchange(delta_, {});
}

bool ToolCallParser::step(bool final) {
  switch (state_) {
    case State::kContent:
      return read_content(final);
    case State::kSection:
      return read_section(final);
    case State::kKind:
      return read_kind();
    case State::kName:
      return read_name();
    case State::kJson:
      return read_json();
    case State::kArgsOpen:
      return read_args_open();
    case State::kArgs:
      return read_args();
    case State::kParams:
      return read_params(final);
    case State::kKey:
      return read_key();
    case State::kValueOpen:
      return read_value_open();
    case State::kValue:
      return read_value();
    case State::kAfterArgs:
      return read_after_args(final);
  }
  return false;
}

// The first bytes of held_, removed from it.
std::string ToolCallParser::take(size_t num_bytes) {
  std::string taken = held_.substr(0, num_bytes);
  held_.erase(0, num_bytes);
  return taken;
}

// No call comes of what was read since its marker. What is held is read again.
bool ToolCallParser::give_up() {
  add_content(std::exchange(raw_, {}));
  json_.reset();
  state_ = State::kContent;
  return true;
}

void ToolCallParser::add_content(std::string_view text) {
  if (after_call_ && blanks_.empty()) text.remove_prefix(count_leading_blanks(text));
  if (text.empty()) return;
  blanks_ += text;
  const size_t sure = without_trailing_blanks(blanks_);
  if (sure > 0) after_call_ = false;
  delta_.content += blanks_.substr(0, sure);
  blanks_.erase(0, sure);
}

bool ToolCallParser::read_content(bool final) {
  const std::string_view starts[] = {format_.section_begin, format_.call_begin};
  const FoundMarker found = find_marker(held_, starts);
  if (!found) {
    add_content(take(held_.size() - (final ? 0 : partial_marker(held_, starts))));
    return false;
  }
  add_content(take(found.at));
  raw_ = take(found.marker.size());
  if (found.marker == format_.section_begin)
    state_ = State::kSection;
  else
    begin_body();
  return true;
}

bool ToolCallParser::read_section(bool final) {
  const bool committed = raw_.empty();
  const std::string blanks = take(count_leading_blanks(held_));
  if (!committed) raw_ += blanks;
  if (raw_.size() > kMaxRawBytes) return give_up();
  if (held_.empty()) return false;
  for (const std::string_view marker : {format_.call_begin, format_.section_end}) {
    if (held_.starts_with(marker)) {
      const std::string text = take(marker.size());
      if (!committed || marker == format_.call_begin) raw_ += text;
      if (marker == format_.call_begin)
        begin_body();
      else if (committed)
        state_ = State::kContent;
      else
        give_up();  // a section without calls
      return true;
    }
    if (!final && marker.starts_with(held_)) return false;
  }
  return give_up();
}

void ToolCallParser::begin_body() {
  if (format_.style == CallStyle::kJson) {
    json_.emplace();
    state_ = State::kJson;
  } else {
    state_ = format_.kind_end.empty() ? State::kName : State::kKind;
  }
}

bool ToolCallParser::read_kind() {
  const size_t at = held_.find(format_.kind_end);
  if (std::min(at, held_.size()) > kMaxNameBytes) return give_up();
  if (at == std::string::npos) return false;
  raw_ += take(at + format_.kind_end.size());
  state_ = State::kName;
  return true;
}

bool ToolCallParser::read_name() {
  const size_t blanks = count_leading_blanks(held_);
  const std::string_view text = std::string_view(held_).substr(blanks);
  if (blanks > kMaxHeldBlanks) return give_up();
  if (text.empty()) return false;
  const bool json_ends_it = format_.call_end.empty();
  if (json_ends_it && text[0] == '[') {  // a list of JSON calls behind the same marker
    json_.emplace();
    state_ = State::kJson;
    return true;
  }
  const std::string_view ends[] = {format_.name_end, format_.name_stop, format_.call_end};
  const FoundMarker found = find_marker(text, ends);
  const std::string_view name =
      trim_blanks(text.substr(0, found ? found.at : text.size() - partial_marker(text, ends)));
  const bool tagged = format_.style == CallStyle::kTagged;
  if (!found && (name.empty() || is_name(name))) return false;
  if (!is_name(name) || (found.marker == format_.call_end && !tagged)) return give_up();
  begin_call(name);
  take(blanks + found.at + (found.marker == format_.name_end ? found.marker.size() : 0));
  state_ = tagged ? State::kParams : format_.args_open.empty() ? State::kArgs : State::kArgsOpen;
  if (json_ends_it) {
    json_.emplace(JsonCallReader::arguments_only());
    state_ = State::kJson;
  }
  return true;
}

void ToolCallParser::begin_call(std::string_view written) {
  raw_.clear();
  blanks_.clear();
  after_call_ = true;
  has_arguments_ = false;
  const bool has_id = format_.id == CallId::kFromModel;
  name_ = has_id ? name_in_id(written) : written;
  delta_.calls.push_back({.index = num_calls_++, .id = has_id ? std::string(written) : "", .name = name_});
}

void ToolCallParser::add_arguments(std::string_view text) {
  if (text.empty()) return;
  has_arguments_ = true;
  append_tool_call(delta_.calls, {.index = num_calls_ - 1, .arguments = std::string(text)});
}

// `marker` ended the call and is still held.
void ToolCallParser::end_call(std::string_view marker) {
  if (format_.style == CallStyle::kTagged)
    add_arguments(has_arguments_ ? "}" : "{}");
  else if (format_.style == CallStyle::kNamed && !has_arguments_)
    add_arguments("{}");
  if (marker == format_.call_end) take(marker.size());
  state_ = format_.section_begin.empty() ? State::kContent : State::kSection;
}

bool ToolCallParser::read_json() {
  const bool has_begun = raw_.empty();
  std::vector<JsonCallReader::Event> events;
  const size_t room = has_begun ? held_.size() : kMaxRawBytes - std::min(kMaxRawBytes, raw_.size());
  const std::string text = take(json_->feed(std::string_view(held_).substr(0, room), events));
  if (!has_begun) raw_ += text;
  for (const JsonCallReader::Event& event : events) {
    using Kind = JsonCallReader::Event::Kind;
    if (event.kind == Kind::kName) begin_call(event.text);
    if (event.kind == Kind::kArguments) add_arguments(event.text);
    if (event.kind == Kind::kEnd && !has_arguments_) add_arguments("{}");
  }
  if (!raw_.empty() && (json_->failed() || raw_.size() >= kMaxRawBytes)) return give_up();
  if (!json_->done() && !json_->failed()) return false;
  json_.reset();
  state_ = format_.call_end.empty() ? State::kContent : State::kAfterArgs;
  return true;
}

bool ToolCallParser::read_args_open() {
  take(count_leading_blanks(held_));
  if (held_.empty() || (format_.args_open.starts_with(held_) && held_ != format_.args_open)) return false;
  if (held_.starts_with(format_.args_open)) take(format_.args_open.size());
  state_ = State::kArgs;
  return true;
}

bool ToolCallParser::read_args() {
  if (!has_arguments_) take(count_leading_blanks(held_));
  const std::string_view ends[] = {format_.args_close, format_.call_end, format_.call_begin, format_.section_end};
  const FoundMarker found = find_marker(held_, ends);
  const size_t limit = found ? found.at : held_.size() - partial_marker(held_, ends);
  // Blanks at the end are layout, if this is the end.
  const size_t sure = without_trailing_blanks(std::string_view(held_).substr(0, limit));
  add_arguments(take(sure));
  if (!found) return false;
  take(limit - sure);
  if (found.marker == format_.args_close)
    state_ = State::kAfterArgs;
  else
    end_call(found.marker);
  return true;
}

bool ToolCallParser::read_params(bool final) {
  const std::string_view ends[] = {format_.key_open, format_.call_end, format_.section_end, format_.call_begin};
  const FoundMarker found = find_marker(held_, ends);
  if (!found) {  // layout, or what belongs to no argument
    take(held_.size() - (final ? 0 : partial_marker(held_, ends)));
    return false;
  }
  take(found.at);
  if (found.marker != format_.key_open) {
    end_call(found.marker);
    return true;
  }
  take(found.marker.size());
  state_ = State::kKey;
  return true;
}

bool ToolCallParser::read_key() {
  const size_t at = held_.find(format_.key_close);
  if (at == std::string::npos || at > kMaxNameBytes) {
    if (held_.size() <= kMaxNameBytes) return false;
    state_ = State::kParams;  // no name is as long
    return true;
  }
  key_ = trim_blanks(std::string_view(held_).substr(0, at));
  take(at + format_.key_close.size());
  state_ = State::kValueOpen;
  if (format_.value_open.empty()) begin_value();
  return true;
}

bool ToolCallParser::read_value_open() {
  const std::string_view ends[] = {format_.value_open, format_.key_open, format_.call_end};
  const FoundMarker found = find_marker(held_, ends);
  if (!found) {
    take(held_.size() - partial_marker(held_, ends));
    return false;
  }
  take(found.at);
  if (found.marker != format_.value_open) {
    state_ = State::kParams;  // a key without a value
    return true;
  }
  take(found.marker.size());
  begin_value();
  return true;
}

void ToolCallParser::begin_value() {
  static const nlohmann::ordered_json kNone;
  types_ = parameter_types(tools_ ? *tools_ : kNone, name_, key_);
  streams_ = types_ == kStringType || (types_ == kAnyType && !format_.untyped_is_json);
  value_began_ = false;
  value_.clear();
  add_arguments(std::string(has_arguments_ ? ", " : "{") + '"' + escape_json(key_) + "\": " + (streams_ ? "\"" : ""));
  state_ = State::kValue;
}

bool ToolCallParser::read_value() {
  if (format_.trim_line_breaks && !std::exchange(value_began_, true) && held_.starts_with('\n')) take(1);
  const std::string_view ends[] = {format_.value_close, format_.key_open, format_.call_end};
  const FoundMarker found = find_marker(held_, ends);
  size_t sure = found ? found.at : held_.size() - partial_marker(held_, ends);
  const bool line_break = format_.trim_line_breaks && sure > 0 && held_[sure - 1] == '\n';
  std::string piece = take(sure - (line_break ? 1 : 0));
  if (streams_)
    add_arguments(escape_json(piece));
  else
    value_ += piece;
  if (!streams_ && value_.size() > kMaxValueBytes) {
    add_arguments('"' + escape_json(std::exchange(value_, {})));
    streams_ = true;
  }
  if (!found) return false;
  take(line_break ? 1 : 0);
  if (found.marker == format_.value_close) take(found.marker.size());
  end_value();
  return true;
}

void ToolCallParser::end_value() {
  add_arguments(streams_ ? "\"" : typed_value(value_, types_, format_.untyped_is_json));
  value_.clear();
  state_ = State::kParams;
}

bool ToolCallParser::read_after_args(bool final) {
  const std::string_view ends[] = {format_.call_end, format_.section_end, format_.call_begin};
  const FoundMarker found = find_marker(held_, ends);
  if (!found) {
    take(held_.size() - (final ? 0 : partial_marker(held_, ends)));
    return false;
  }
  take(found.at);
  end_call(found.marker);
  return true;
}

}  // namespace moectl::api
