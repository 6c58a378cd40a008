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

// SentencePiece's spaces: ' ' becomes `replacement`, and a text gets one in front of it.
struct Metaspace {
  enum class Prepend { kFirst, kAlways, kNever };  // kFirst: not after an added token
  std::string replacement;
  Prepend prepend = Prepend::kAlways;
};

struct PreTokenizerSteps {
  std::optional<Metaspace> metaspace;  // before the splits
  std::vector<SplitStep> splits;       // apply in order, each to every piece of the one before
  // ByteLevel's: before the last `num_splits_after_prefix` splits every piece that does not begin with a space gets
  // one.
  bool add_prefix_space = false;
  size_t num_splits_after_prefix = 0;
};

class PreTokenizer {
 public:
  explicit PreTokenizer(PreTokenizerSteps steps);

  // Pieces of `text` (valid UTF-8), none empty. They lie in the returned `text`.
  struct Pieces {
    std::string_view text;
    std::vector<TextRange> ranges;
    std::string storage;  // holds `text` when it was changed
  };
  // `is_first`: nothing stands before `text`, no added token either.
  void split(std::string_view text, bool is_first, Pieces& pieces) const;

 private:
  void apply(const SplitStep& step, Pieces& pieces) const;

  PreTokenizerSteps steps_;
};

}  // namespace moectl
