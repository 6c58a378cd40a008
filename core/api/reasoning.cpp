#include "core/api/reasoning.h"

#include <algorithm>

namespace moectl::api {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";

size_t count_leading_blanks(std::string_view text) {
  return std::min(text.find_first_not_of(kBlanks), text.size());
}

// Bytes at the end of `text` that may still become the marker.
size_t partial_marker(std::string_view text, std::string_view marker) {
  for (size_t n = std::min(text.size(), marker.size() - 1); n > 0; --n)
    if (text.substr(text.size() - n) == marker.substr(0, n)) return n;
  return 0;
}

size_t without_trailing_blanks(std::string_view text) {
  return text.find_last_not_of(kBlanks) + 1;
}

}  // namespace

const std::vector<ReasoningFormat>& reasoning_formats() {
  static const std::vector<ReasoningFormat> formats = {{"deepseek_r1", "<think>", "</think>"}};
  return formats;
}

const ReasoningFormat* find_reasoning_format(std::string_view name) {
  std::string key(name);
  std::replace(key.begin(), key.end(), '-', '_');
  for (const ReasoningFormat& format : reasoning_formats())
    if (format.name == key) return &format;
  return nullptr;
}

ReasoningSplitter::ReasoningSplitter(const ReasoningFormat* format, bool opened)
    : format_(format),
      state_(!format  ? State::kContent
             : opened ? State::kReasoning
                      : State::kStart) {}

ReasoningSplitter::Delta ReasoningSplitter::push(std::string_view text) {
  held_ += text;
  return advance(false);
}

ReasoningSplitter::Delta ReasoningSplitter::finish() {
  return advance(true);
}

ReasoningSplitter::Delta ReasoningSplitter::advance(bool final) {
  Delta delta;
  if (state_ == State::kStart) {
    const size_t blanks = count_leading_blanks(held_);
    const std::string_view rest = std::string_view(held_).substr(blanks);
    if (rest.starts_with(format_->open)) {
      held_.erase(0, blanks + format_->open.size());
      state_ = State::kReasoning;
    } else if (!final && std::string_view(format_->open).starts_with(rest)) {
      return delta;  // may still become the marker
    } else {
      state_ = State::kContent;
    }
  }
  if (state_ == State::kReasoning) {
    if (skip_blanks_) held_.erase(0, count_leading_blanks(held_));
    if (!held_.empty()) skip_blanks_ = false;
    const size_t close = held_.find(format_->close);
    if (close != std::string::npos) {
      delta.reasoning = held_.substr(0, without_trailing_blanks(std::string_view(held_).substr(0, close)));
      held_.erase(0, close + format_->close.size());
      state_ = State::kAfterClose;
    } else {
      // Blanks before a marker are dropped with it, so they wait for what follows.
      size_t sure = held_.size() - (final ? 0 : partial_marker(held_, format_->close));
      if (!final) sure = without_trailing_blanks(std::string_view(held_).substr(0, sure));
      delta.reasoning = held_.substr(0, sure);
      held_.erase(0, sure);
    }
  }
  if (state_ == State::kAfterClose) {
    held_.erase(0, count_leading_blanks(held_));
    if (!held_.empty()) state_ = State::kContent;
  }
  if (state_ == State::kContent) {
    delta.content = std::move(held_);
    held_.clear();
  }
  return delta;
}

}  // namespace moectl::api
