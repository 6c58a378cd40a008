// TokenText: how the bytes of tokens become text. The one place for it: whole decoding and streams use the same object.
// One thread. It knows neither ids nor stop strings.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace moectl {

// What a decoder section says; byte-level decoders need none of it.
struct DecodeRules {
  std::string pattern, content;  // in every token, `pattern` stands for `content`; empty: nothing is replaced
  // The tokens <0x00> to <0xFF> are bytes. A run of them is text when it is UTF-8 as a whole; otherwise each gives one
  // U+FFFD, those of good characters too. So a run becomes text when it ends.
  bool byte_fallback = false;
  size_t strip_left = 0;  // so many spaces at the start of the text vanish
};

class TokenText {
 public:
  explicit TokenText(const DecodeRules& rules) : byte_fallback_(rules.byte_fallback), to_strip_(rules.strip_left) {}

  // Appends to `text` what is certain after a token of these bytes. is_byte: one of <0x00> to <0xFF>.
  void push(std::string_view bytes, bool is_byte, std::string& text);
  // Appends what was held back; what will never be a character becomes U+FFFD.
  void finish(std::string& text);

 private:
  void end_run(std::string& text);
  void strip(std::string& text, size_t first);

  bool byte_fallback_;
  size_t to_strip_;
  std::string held_;  // byte fallback: the run so far; otherwise the first bytes of a character, at most 3
};

}  // namespace moectl
