// UTF-8: strict validation, decoding, and the replacement of what is invalid. Pure functions over bytes, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace moectl {

// Offset of the first byte that does not belong to a well-formed character (surrogates, overlong forms and values over
// U+10FFFF are not well-formed); std::string_view::npos when all of `bytes` is valid.
size_t find_invalid_utf8(std::string_view bytes);
inline bool is_valid_utf8(std::string_view bytes) {
  return find_invalid_utf8(bytes) == std::string_view::npos;
}

// The character at `pos` of valid UTF-8; advances `pos` past it. `pos` must be below text.size().
char32_t next_code_point(std::string_view text, size_t& pos);
// The character that ends just before `end` (> 0) of valid UTF-8.
char32_t previous_code_point(std::string_view text, size_t end);
void append_code_point(std::string& out, char32_t code_point);

// Appends `bytes` with every maximal ill-formed part replaced by one U+FFFD, as Rust's from_utf8_lossy and the WHATWG
// decoder do.
void append_utf8_lossy(std::string& out, std::string_view bytes);
// Bytes at the end of `bytes` (0..3) that begin a character which later bytes may complete.
size_t incomplete_utf8_suffix(std::string_view bytes);

// White_Space and \w as Unicode defines them (UTS #18), for the neighbours of added tokens.
bool is_white_space(char32_t code_point);
bool is_word_character(char32_t code_point);

}  // namespace moectl
