// PreTokenizer: cuts text into the pieces within which BPE merges. Immutable after construction; any thread.
#pragma once

#include <functional>
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

  // Takes a piece, which is not empty and valid during the call only; false ends the split.
  using Visit = std::function<bool(std::string_view piece)>;
  // Calls `visit` for the pieces of `text` (valid UTF-8) in order. `is_first`: nothing stands before `text`, no added
  // token either. Pieces are found in batches, so memory does not grow with their number (but for the behaviors that
  // join pieces).
  void split(std::string_view text, bool is_first, const Visit& visit) const;

 private:
  using Matches = std::vector<std::vector<TextRange>>;  // [split] buffers
  bool split_from(size_t split_idx, std::string_view piece, Matches& matches, const Visit& visit) const;

  PreTokenizerSteps steps_;
};

}  // namespace moectl
