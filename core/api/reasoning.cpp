#include "core/api/reasoning.h"

#include "core/api/marker_text.h"

namespace moectl::api {

ReasoningSplitter::ReasoningSplitter(const ReasoningFormat* format, bool opened, bool tools)
    : format_(format),
      tools_(tools),
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
  if (state_ == State::kStart && !start(final)) return delta;
  if (state_ == State::kReasoning) read_reasoning(final, delta);
  // A closed answer may be followed by more: at most two turns.
  while (state_ == State::kBeforeContent && read_before_content(final)) read_content(final, delta);
  if (state_ == State::kContent) read_content(final, delta);
  return delta;
}

// False: what is held may still become a marker.
bool ReasoningSplitter::start(bool final) {
  const size_t blanks = count_leading_blanks(held_);
  const std::string_view rest = std::string_view(held_).substr(blanks);
  const std::string_view answer_open = format_->answer_open;
  if (blanks > kMaxHeldBlanks) {
    state_ = State::kContent;
  } else if (rest.starts_with(format_->open)) {
    held_.erase(0, blanks + format_->open.size());
    state_ = State::kReasoning;
  } else if (!answer_open.empty() && rest.starts_with(answer_open)) {
    state_ = State::kBeforeContent;
  } else if (!final && (format_->open.starts_with(rest) || (!answer_open.empty() && answer_open.starts_with(rest)))) {
    return false;
  } else {
    state_ = State::kContent;
  }
  return true;
}

void ReasoningSplitter::read_reasoning(bool final, Delta& delta) {
  if (skip_blanks_) held_.erase(0, count_leading_blanks(held_));
  if (!held_.empty()) skip_blanks_ = false;
  const std::string_view markers[] = {format_->close, tools_ ? format_->ends_at : std::string_view()};
  if (const FoundMarker found = find_marker(held_, markers)) {
    delta.reasoning = held_.substr(0, without_trailing_blanks(std::string_view(held_).substr(0, found.at)));
    held_.erase(0, found.at + (found.marker == format_->close ? found.marker.size() : 0));
    state_ = State::kBeforeContent;
    return;
  }
  // Blanks before a marker are dropped with it, so they wait for what follows.
  size_t sure = held_.size() - (final ? 0 : partial_marker(held_, markers));
  if (!final) sure = without_trailing_blanks(std::string_view(held_).substr(0, sure));
  delta.reasoning = held_.substr(0, sure);
  held_.erase(0, sure);
}

// True: the content begins here.
bool ReasoningSplitter::read_before_content(bool final) {
  held_.erase(0, count_leading_blanks(held_));
  if (held_.empty()) return false;
  const std::string_view open = may_open_answer_ ? format_->answer_open : std::string_view();
  if (!open.empty() && held_.starts_with(open)) {
    held_.erase(0, open.size());
    may_open_answer_ = false;
    in_answer_ = true;
    return read_before_content(final);  // once: it opens no more
  }
  if (!open.empty() && !final && open.starts_with(held_)) return false;
  state_ = State::kContent;
  return true;
}

void ReasoningSplitter::read_content(bool final, Delta& delta) {
  if (!in_answer_) {
    delta.content += held_;
    held_.clear();
    return;
  }
  const std::string_view close = format_->answer_close;
  const size_t at = held_.find(close);
  if (at != std::string::npos) {
    delta.content += held_.substr(0, without_trailing_blanks(std::string_view(held_).substr(0, at)));
    held_.erase(0, at + close.size());
    in_answer_ = false;
    state_ = State::kBeforeContent;
    return;
  }
  size_t sure = held_.size() - (final ? 0 : partial_marker(held_, close));
  if (!final) sure = without_trailing_blanks(std::string_view(held_).substr(0, sure));
  delta.content += held_.substr(0, sure);
  held_.erase(0, sure);
}

}  // namespace moectl::api
