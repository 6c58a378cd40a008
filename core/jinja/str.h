// Str: a byte string that remembers, for every byte, whether it came from the template or from the request. All text
// inside the Jinja interpreter is Str, so slices, joins and filters keep the origin. Also: UTF-8 and Unicode as Python
// sees them. Plain values, any thread. It must not know about templates or budgets.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moectl::jinja {

class Str {
 public:
  struct Run {
    size_t end;  // one past the last byte; runs are adjacent, ascending, and differ in `trusted`
    bool trusted;
  };

  Str() = default;
  Str(std::string text, bool trusted);

  const std::string& text() const { return text_; }
  size_t size() const { return text_.size(); }
  bool empty() const { return text_.empty(); }
  const std::vector<Run>& runs() const { return runs_; }
  bool trusted_at(size_t pos) const;

  void append(std::string_view text, bool trusted);
  void append(const Str& other) { append(other, 0, other.size()); }
  void append(const Str& other, size_t begin, size_t end);
  Str slice(size_t begin, size_t end) const;

  // What the filters `safe` and `escape` return is markup: text that is added to it gets escaped. Text that is made of
  // markup is plain again unless marked.
  bool is_markup() const { return is_markup_; }
  Str marked(bool is_markup = true) && {
    is_markup_ = is_markup;
    return std::move(*this);
  }

 private:
  std::string text_;
  std::vector<Run> runs_;
  bool is_markup_ = false;
};

// Byte length of the character at `pos`; 1 for a byte that is not valid UTF-8, so every loop advances.
size_t char_bytes(std::string_view text, size_t pos);
char32_t char_at(std::string_view text, size_t pos);
size_t count_chars(std::string_view text);
std::string encode_utf8(char32_t c);  // empty for surrogates and values that are no code point

// First or last place of `needle`, in linear time whatever the input; npos when there is none.
size_t find_bytes(std::string_view haystack, std::string_view needle, size_t from = 0);
size_t find_last_bytes(std::string_view haystack, std::string_view needle);

// Python's str methods on one character.
bool is_space(char32_t c);
bool is_alpha(char32_t c);
bool is_digit(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_printable(char32_t c);

// Python's str.strip: whitespace, or the characters of `chars` when it is not null.
Str strip(const Str& s, const std::string* chars, bool left, bool right);

// Case mapping; a changed character keeps the origin of the one it replaces. Full mappings of Unicode's SpecialCasing
// are known for the sharp s, the Latin ligatures, dotted I and final sigma; the other characters use the simple
// mapping.
Str to_upper(const Str& s);
Str to_lower(const Str& s);
Str to_capitalized(const Str& s);  // first character upper, the rest lower
Str swap_case(const Str& s);
Str title_words(const Str& s);  // Python's str.title

}  // namespace moectl::jinja
