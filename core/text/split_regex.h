// SplitRegex: one pattern of a checkpoint's pre-tokenizer. Patterns are written for Oniguruma (the engine of the
// `tokenizers` library); they are translated so that PCRE2 matches exactly the same text, and what cannot be translated
// faithfully is refused. Immutable; any thread. Pattern and text are input from outside: work and memory are bounded.
#pragma once

#include <chrono>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/set_matcher.h"
#include "core/text/text_range.h"

namespace moectl {

class SplitRegex {
 public:
  // PCRE2 for every pattern, or SetMatcher for those that it can do; they find the same.
  enum class Engine { kFastest, kPcre2 };
  // Throws Error{kBadData}, beginning with `where` (file and field), for a pattern that is refused.
  SplitRegex(std::string_view pattern, const std::string& where, Engine engine = Engine::kFastest);
  ~SplitRegex();
  SplitRegex(SplitRegex&&) noexcept;

  // Where a search stands. One for each text, from its first batch to its last.
  struct Cursor {
    SetMatcher::Cursor sets;
    bool with_pcre2 = false, done = false;
    size_t pos = 0;                                        // with PCRE2, like what follows
    size_t last_end = std::numeric_limits<size_t>::max();  // of the last match
    std::optional<bool> newer_unicode;
    std::optional<std::chrono::steady_clock::time_point> deadline;
  };
  // Appends the next matches in `text` (valid UTF-8), left to right and not overlapping, about `max_matches` of them,
  // until cursor.done; an empty match directly after another match does not count. Throws Error{kInvalidArgument} when
  // the matcher's limits are reached.
  void find_some(std::string_view text, size_t max_matches, Cursor& cursor, std::vector<TextRange>& matches) const;
  // The same for all of them.
  void find_all(std::string_view text, std::vector<TextRange>& matches) const;

 private:
  struct Code;
  void find_some_with_pcre2(std::string_view text, size_t max_matches, Cursor& cursor,
                            std::vector<TextRange>& matches) const;

  std::string where_;
  std::unique_ptr<Code> code_, newer_code_;
  std::unique_ptr<SetMatcher> matcher_;  // null: the pattern needs PCRE2
};

}  // namespace moectl
