#include "core/text/token_text.h"

#include "core/text/utf8.h"

namespace moectl {

void TokenText::push(std::string_view bytes, bool is_byte, std::string& text) {
  const size_t first = text.size();
  if (!byte_fallback_) {
    held_ += bytes;
    const size_t whole = held_.size() - incomplete_utf8_suffix(held_);
    append_utf8_lossy(text, std::string_view(held_).substr(0, whole));
    held_.erase(0, whole);
  } else if (is_byte) {
    held_ += bytes;
  } else {
    end_run(text);
    text += bytes;
  }
  strip(text, first);
}

void TokenText::finish(std::string& text) {
  const size_t first = text.size();
  if (byte_fallback_) {
    end_run(text);
  } else {
    append_utf8_lossy(text, held_);
    held_.clear();
  }
  strip(text, first);
}

void TokenText::end_run(std::string& text) {
  if (is_valid_utf8(held_)) {
    text += held_;
  } else {
    for (size_t i = 0; i < held_.size(); ++i) text += "\xef\xbf\xbd";
  }
  held_.clear();
}

// Takes the spaces that the rules take from what was appended since `first`.
void TokenText::strip(std::string& text, size_t first) {
  if (to_strip_ == 0 || first == text.size()) return;
  size_t spaces = 0;
  while (spaces < to_strip_ && first + spaces < text.size() && text[first + spaces] == ' ') ++spaces;
  to_strip_ = first + spaces < text.size() ? 0 : to_strip_ - spaces;
  text.erase(first, spaces);
}

}  // namespace moectl
