#include "core/jinja/str.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstring>

namespace moectl::jinja {

Str::Str(std::string text, bool trusted) : text_(std::move(text)) {
  if (!text_.empty()) runs_.push_back({text_.size(), trusted});
}

bool Str::trusted_at(size_t pos) const {
  auto run = std::upper_bound(runs_.begin(), runs_.end(), pos, [](size_t p, const Run& r) { return p < r.end; });
  return run != runs_.end() && run->trusted;
}

void Str::append(std::string_view text, bool trusted) {
  if (text.empty()) return;
  text_.append(text);
  if (!runs_.empty() && runs_.back().trusted == trusted) {
    runs_.back().end = text_.size();
  } else {
    runs_.push_back({text_.size(), trusted});
  }
}

void Str::append(const Str& other, size_t begin, size_t end) {
  end = std::min(end, other.size());
  auto run =
      std::upper_bound(other.runs_.begin(), other.runs_.end(), begin, [](size_t p, const Run& r) { return p < r.end; });
  for (; begin < end; ++run) {
    size_t stop = std::min(end, run->end);
    append(std::string_view(other.text_).substr(begin, stop - begin), run->trusted);
    begin = stop;
  }
}

Str Str::slice(size_t begin, size_t end) const {
  Str out;
  out.append(*this, begin, end);
  return out;
}

// ------------------------------------------------------------------------------------------------ UTF-8
namespace {

utf8proc_ssize_t decode(std::string_view text, size_t pos, utf8proc_int32_t* c) {
  return utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + pos,
                          static_cast<utf8proc_ssize_t>(std::min<size_t>(4, text.size() - pos)), c);
}

}  // namespace

size_t char_bytes(std::string_view text, size_t pos) {
  if (static_cast<unsigned char>(text[pos]) < 0x80) return 1;
  utf8proc_int32_t c;
  utf8proc_ssize_t n = decode(text, pos, &c);
  return n > 0 ? static_cast<size_t>(n) : 1;
}

char32_t char_at(std::string_view text, size_t pos) {
  if (static_cast<unsigned char>(text[pos]) < 0x80) return static_cast<unsigned char>(text[pos]);
  utf8proc_int32_t c;
  return decode(text, pos, &c) > 0 ? static_cast<char32_t>(c) : 0xFFFD;
}

size_t count_chars(std::string_view text) {
  size_t n = 0;
  for (size_t pos = 0; pos < text.size(); pos += char_bytes(text, pos)) ++n;
  return n;
}

std::string encode_utf8(char32_t c) {
  utf8proc_uint8_t buffer[4];
  if (!utf8proc_codepoint_valid(static_cast<utf8proc_int32_t>(c))) return {};
  auto n = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), buffer);
  return std::string(reinterpret_cast<char*>(buffer), static_cast<size_t>(n));
}

size_t find_bytes(std::string_view haystack, std::string_view needle, size_t from) {
  if (from > haystack.size()) return std::string_view::npos;
  if (needle.empty()) return from;
  const void* at = memmem(haystack.data() + from, haystack.size() - from, needle.data(), needle.size());
  return at ? static_cast<size_t>(static_cast<const char*>(at) - haystack.data()) : std::string_view::npos;
}

size_t find_last_bytes(std::string_view haystack, std::string_view needle) {
  std::string backward(haystack.rbegin(), haystack.rend()), backward_needle(needle.rbegin(), needle.rend());
  size_t at = find_bytes(backward, backward_needle);
  return at == std::string_view::npos ? at : haystack.size() - at - needle.size();
}

// ------------------------------------------------------------------------------------------------ characters
bool is_space(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

bool is_alpha(char32_t c) {
  auto k = category(c);
  return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT ||
         k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_LO;
}
bool is_digit(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_ND;
}
bool is_upper(char32_t c) {
  return utf8proc_isupper(static_cast<utf8proc_int32_t>(c)) != 0;
}
bool is_lower(char32_t c) {
  return utf8proc_islower(static_cast<utf8proc_int32_t>(c)) != 0;
}

bool is_printable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

Str strip(const Str& s, const std::string* chars, bool left, bool right) {
  const std::string& text = s.text();
  auto drop = [&](size_t pos, size_t n) {
    if (!chars) return is_space(char_at(text, pos));
    for (size_t i = 0; i < chars->size(); i += char_bytes(*chars, i))
      if (std::string_view(*chars).substr(i, char_bytes(*chars, i)) == std::string_view(text).substr(pos, n))
        return true;
    return false;
  };
  size_t begin = 0;
  while (left && begin < text.size()) {
    size_t n = char_bytes(text, begin);
    if (!drop(begin, n)) break;
    begin += n;
  }
  size_t end = text.size();
  while (right && end > begin) {
    size_t pos = end - 1;  // back to the first byte of the last character
    while (pos > begin && end - pos < 4 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80) --pos;
    if (pos + char_bytes(text, pos) != end) pos = end - 1;  // not valid UTF-8: a character of its own
    if (!drop(pos, end - pos)) break;
    end = pos;
  }
  return s.slice(begin, end);
}

// ------------------------------------------------------------------------------------------------ case
namespace {

enum class Case { kKeep, kUpper, kTitle, kLower };

std::string upper_of(char32_t c, bool title) {
  static const char* const kLigatures[] = {"FF", "FI", "FL", "FFI", "FFL", "ST", "ST"};  // U+FB00..U+FB06
  static const char* const kTitled[] = {"Ff", "Fi", "Fl", "Ffi", "Ffl", "St", "St"};
  if (c == 0xDF) return title ? "Ss" : "SS";
  if (c >= 0xFB00 && c <= 0xFB06) return (title ? kTitled : kLigatures)[c - 0xFB00];
  auto u = static_cast<utf8proc_int32_t>(c);
  return encode_utf8(static_cast<char32_t>(title ? utf8proc_totitle(u) : utf8proc_toupper(u)));
}

bool is_mark(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_MN;
}
bool is_cased(char32_t c) {
  return is_upper(c) || is_lower(c);
}

// Python's rule: a capital sigma is final when a cased letter stands before it and none after it, marks ignored.
bool cased_letter_follows(std::string_view text, size_t pos) {
  while (pos < text.size() && is_mark(char_at(text, pos))) pos += char_bytes(text, pos);
  return pos < text.size() && is_cased(char_at(text, pos));
}

// Maps each character by `choose(character, index)`; the mapped bytes keep the origin of the character.
template <class Choose>
Str map_case(const Str& s, Choose choose) {
  const std::string& text = s.text();
  Str out;
  bool cased_before = false;
  for (size_t pos = 0, n; pos < text.size(); pos += n) {
    n = char_bytes(text, pos);
    char32_t c = char_at(text, pos);
    Case to = choose(c, pos);
    bool after_cased = cased_before;
    if (!is_mark(c)) cased_before = is_cased(c);
    if (to == Case::kKeep || (c == 0xFFFD && n == 1)) {
      out.append(s, pos, pos + n);
      continue;
    }
    std::string mapped;
    if (to != Case::kLower) {
      mapped = upper_of(c, to == Case::kTitle);
    } else if (c == 0x130) {
      mapped = "i\xCC\x87";
    } else if (c == 0x3A3) {
      mapped = after_cased && !cased_letter_follows(text, pos + n) ? "\xCF\x82" : "\xCF\x83";
    } else {
      mapped = encode_utf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
    }
    out.append(mapped, s.trusted_at(pos));
  }
  return out;
}

}  // namespace

Str to_upper(const Str& s) {
  return map_case(s, [](char32_t, size_t) { return Case::kUpper; });
}
Str to_lower(const Str& s) {
  return map_case(s, [](char32_t, size_t) { return Case::kLower; });
}
Str to_capitalized(const Str& s) {
  return map_case(s, [](char32_t, size_t pos) { return pos == 0 ? Case::kTitle : Case::kLower; });
}
Str swap_case(const Str& s) {
  return map_case(s, [](char32_t c, size_t) {
    return is_upper(c) ? Case::kLower : is_lower(c) ? Case::kUpper : Case::kKeep;
  });
}
Str title_words(const Str& s) {
  bool in_word = false;
  return map_case(s, [&in_word](char32_t c, size_t) {
    Case to = in_word ? Case::kLower : Case::kTitle;
    in_word = is_upper(c) || is_lower(c);
    return to;
  });
}

}  // namespace moectl::jinja
