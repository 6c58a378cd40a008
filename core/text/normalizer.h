// Normalizers of tokenizer.json: what becomes of a text before it is cut. Pure; any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace moectl {

// Which marks compose and move: those of Unicode 9, as in the `tokenizers` library, or all that utf8proc knows, as in
// Python's unicodedata (checkpoints whose tokenizer is Python code).
enum class NfcMarks { kUnicode9, kAll };

// Canonical composition of valid UTF-8. O(n log n), also for endless runs of combining marks.
std::string nfc(std::string_view text, NfcMarks marks = NfcMarks::kUnicode9);

struct NormalizerStep {
  enum class Kind { kNfc, kPrepend, kReplace };
  Kind kind;
  NfcMarks marks = NfcMarks::kUnicode9;  // kNfc
  std::string pattern;                   // kReplace: this exact text, not empty
  std::string content;                   // kPrepend, kReplace
};

class Normalizer {
 public:
  explicit Normalizer(std::vector<NormalizerStep> steps = {}) : steps_(std::move(steps)) {}
  bool empty() const { return steps_.empty(); }
  // `at_start`: text begins here; kPrepend does nothing otherwise, nor to an empty text.
  std::string apply(std::string_view text, bool at_start = true) const;

 private:
  std::vector<NormalizerStep> steps_;
};

}  // namespace moectl
