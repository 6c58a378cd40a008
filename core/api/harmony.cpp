#include "core/api/harmony.h"

#include <utility>

#include "core/api/marker_text.h"

namespace moectl::api {
namespace {

constexpr std::string_view kStart = "<|start|>", kChannel = "<|channel|>", kMessage = "<|message|>", kEnd = "<|end|>",
                           kReturn = "<|return|>", kCall = "<|call|>", kConstrain = "<|constrain|>";
constexpr std::string_view kRecipient = "to=", kFunctions = "functions.";
constexpr size_t kMaxHeaderBytes = 1024;

}  // namespace

const std::vector<std::string_view>& HarmonyParser::markers() {
  static const std::vector<std::string_view> markers = {kStart, kChannel, kMessage, kEnd, kReturn, kCall, kConstrain};
  return markers;
}

HarmonyParser::Delta HarmonyParser::push(std::string_view text) {
  Delta delta;
  if (state_ == State::kHeader) {
    header_ += text;
    if (header_.size() > kMaxHeaderBytes) {  // no header: the model left the format
      delta.content = std::exchange(header_, {});
      field_ = Field::kContent;
      state_ = State::kBody;
    }
  } else if (field_ == Field::kReasoning) {
    delta.reasoning = text;
  } else if (field_ == Field::kContent) {
    delta.content = text;
  } else if (!text.empty()) {
    has_arguments_ = true;
    delta.calls.push_back({.index = num_calls_ - 1, .arguments = std::string(text)});
  }
  return delta;
}

HarmonyParser::Delta HarmonyParser::mark(std::string_view marker) {
  Delta delta;
  marked_ = true;
  if (state_ == State::kHeader && marker == kMessage) {
    open_message(delta);
    return delta;
  }
  if (state_ == State::kBody && marker != kConstrain && marker != kMessage) {
    if (field_ == Field::kCall && !has_arguments_ && marker != kStart && marker != kChannel)
      delta.calls.push_back({.index = num_calls_ - 1, .arguments = "{}"});
    state_ = State::kHeader;
    header_.clear();
    channel_at_ = std::string::npos;
  }
  if (marker == kStart) {
    header_.clear();
    channel_at_ = std::string::npos;
  }
  header_ += ' ';
  if (marker == kChannel) channel_at_ = header_.size();
  return delta;
}

void HarmonyParser::open_message(Delta& delta) {
  std::string_view channel, recipient;
  for (size_t at = 0; at < header_.size();) {
    at = std::min(header_.find_first_not_of(kBlanks, at), header_.size());
    const size_t end = std::min(header_.find_first_of(kBlanks, at), header_.size());
    const std::string_view word = std::string_view(header_).substr(at, end - at);
    if (word.starts_with(kRecipient))
      recipient = word.substr(kRecipient.size());
    else if (channel.empty() && at >= channel_at_)
      channel = word;
    at = end;
  }
  state_ = State::kBody;
  if (recipient.starts_with(kFunctions) && tools_) {
    field_ = Field::kCall;
    has_arguments_ = false;
    const std::string_view name = recipient.substr(kFunctions.size());
    delta.calls.push_back({.index = num_calls_++, .name = std::string(name)});
  } else if (reasoning_ && (channel == "analysis" || (!recipient.empty() && !recipient.starts_with(kFunctions)))) {
    field_ = Field::kReasoning;  // what goes to tools of the model's own is no answer
    if (std::exchange(has_reasoning_, true)) delta.reasoning = "\n";
  } else {
    field_ = Field::kContent;
    if (std::exchange(has_content_, true)) delta.content = "\n";
  }
  header_.clear();
  channel_at_ = std::string::npos;
}

HarmonyParser::Delta HarmonyParser::finish() {
  Delta delta;
  // An answer without a marker is no harmony: its text is the answer. A header that was cut belongs to nothing.
  if (state_ == State::kHeader && !marked_) delta.content = std::exchange(header_, {});
  return delta;
}

}  // namespace moectl::api
