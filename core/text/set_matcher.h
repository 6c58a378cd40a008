// SetMatcher: matches the patterns of published pre-tokenizers without a regular expression engine. They are
// alternatives of runs of character sets ("[^\r\n\p{L}\p{N}]?\p{L}+|..."), so a table from character to sets and a loop
// over items do; it finds exactly what PCRE2 finds, several times faster. Immutable; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "core/text/text_range.h"

namespace moectl {

class SetMatcher {
 public:
  // `pattern`: what translate_pattern(..., newer_unicode = true) wrote. Null when it has more than runs of sets, words,
  // and a look ahead at one character, or may match nothing: such patterns are PCRE2's.
  static std::unique_ptr<SetMatcher> compile(std::string_view pattern);

  // Where a search stands. One for each text, from its first batch to its last.
  struct Cursor {
    size_t pos = 0;
    std::optional<int64_t> steps;  // left for the text; nullopt: not begun
  };
  // Appends the next matches in `text` (valid UTF-8), left to right, up to `max_matches` of them; all are found when
  // cursor.pos has reached the end. False when this takes more steps than any usual text needs (a pattern can be made
  // to go back over long runs again and again): then the matches before cursor.pos were appended, and no others.
  bool find_some(std::string_view text, size_t max_matches, Cursor& cursor, std::vector<TextRange>& matches) const;

  // A run of characters of one set; a look ahead; or one of several words, each a row of sets.
  struct Item {
    enum class Kind { kRun, kAhead, kNotAhead, kWords } kind = Kind::kRun;
    uint32_t set = 0;                          // its bit
    uint32_t min = 1, max = 1;                 // kRun; kWords: min 0 when there may be none
    bool keeps_all = false;                    // kRun: what it took it never gives back
    std::vector<std::vector<uint32_t>> words;  // kWords: bits
  };
  using Alternative = std::vector<Item>;

 private:
  friend class SetPatternParser;
  class Search;
  SetMatcher() = default;

  std::vector<Alternative> alternatives_;
  std::vector<uint32_t> first_sets_;           // by alternative: a match begins with a character of one of them
  std::array<uint32_t, 0x80> ascii_{};         // by character: its sets
  std::array<uint32_t, 0x80> ascii_starts_{};  // by character: alternatives that may begin with it
  std::vector<uint16_t> pages_;                // by code point / 256: index of 256 entries of page_sets_
  std::vector<uint32_t> page_sets_;
};

}  // namespace moectl
