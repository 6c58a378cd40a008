// PreTokenizer: cuts text into the pieces within which BPE merges. Immutable after construction; any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/split_regex.h"

namespace moectl {

// What becomes of the text that a Split's pattern matched (names as in tokenizer.json).
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  std::optional<SplitRegex> regex;  // or
  std::string literal;              // this exact text, not empty
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // matches and the text between them change places
};

// The pattern of ByteLevel{use_regex: true} (GPT-2).
extern const std::string_view kByteLevelPattern;

class PreTokenizer {
 public:
  // `splits` apply in order, each to every piece of the one before. add_prefix_space: before the last
  // `num_after_prefix` of them every piece that does not begin with a space gets one.
  PreTokenizer(std::vector<SplitStep> splits, bool add_prefix_space, size_t num_after_prefix);

  // Pieces of `text` (valid UTF-8), none empty. They lie in the returned `text`.
  struct Pieces {
    std::string_view text;
    std::vector<TextRange> ranges;
    std::string storage;  // holds `text` when spaces were added
  };
  void split(std::string_view text, Pieces& pieces) const;

 private:
  void apply(const SplitStep& step, bool newer_unicode, Pieces& pieces) const;

  std::vector<SplitStep> splits_;
  bool add_prefix_space_;
  size_t num_after_prefix_;
};

}  // namespace moectl
