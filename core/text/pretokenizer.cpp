#include "core/text/pretokenizer.h"

#include <algorithm>

#include "core/base/check.h"

namespace moectl {

const std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

// A stretch of a piece: matched by the pattern, or between two matches.
struct Stretch {
  size_t begin, end;
  bool is_match;
};

void find_literal(std::string_view text, std::string_view literal, std::vector<TextRange>& matches) {
  for (size_t pos = text.find(literal); pos != std::string_view::npos; pos = text.find(literal, pos + literal.size())) {
    matches.push_back({pos, pos + literal.size()});
  }
}

std::vector<Stretch> stretches_of(size_t size, const std::vector<TextRange>& matches, bool invert) {
  std::vector<Stretch> stretches;
  size_t done = 0;
  for (const TextRange& match : matches) {
    if (done != match.begin) stretches.push_back({done, match.begin, invert});
    stretches.push_back({match.begin, match.end, !invert});
    done = match.end;
  }
  if (done != size) stretches.push_back({done, size, invert});
  return stretches;
}

// Joins stretches as the library's NormalizedString::split does.
std::vector<TextRange> join(std::vector<Stretch> stretches, SplitBehavior behavior) {
  std::vector<TextRange> pieces;
  bool previous_match = false;
  if (behavior == SplitBehavior::kMergedWithNext) std::reverse(stretches.begin(), stretches.end());
  for (const Stretch& s : stretches) {
    bool with_last = false;
    switch (behavior) {
      case SplitBehavior::kIsolated:
        break;
      case SplitBehavior::kRemoved:
        if (s.is_match) continue;
        break;
      case SplitBehavior::kContiguous:
        with_last = s.is_match == previous_match;
        break;
      case SplitBehavior::kMergedWithPrevious:
      case SplitBehavior::kMergedWithNext:
        with_last = s.is_match && !previous_match;
        break;
    }
    previous_match = s.is_match;
    if (with_last && !pieces.empty()) {
      pieces.back() = {std::min(pieces.back().begin, s.begin), std::max(pieces.back().end, s.end)};
    } else {
      pieces.push_back({s.begin, s.end});
    }
  }
  if (behavior == SplitBehavior::kMergedWithNext) std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

void prefix_spaces(PreTokenizer::Pieces& pieces) {
  std::string text;
  text.reserve(pieces.text.size() + pieces.ranges.size());
  for (TextRange& range : pieces.ranges) {
    const std::string_view piece = pieces.text.substr(range.begin, range.end - range.begin);
    range.begin = text.size();
    if (piece.front() != ' ') text += ' ';
    text += piece;
    range.end = text.size();
  }
  pieces.storage = std::move(text);
  pieces.text = pieces.storage;
}

}  // namespace

PreTokenizer::PreTokenizer(std::vector<SplitStep> splits, bool add_prefix_space, size_t num_after_prefix)
    : splits_(std::move(splits)), add_prefix_space_(add_prefix_space), num_after_prefix_(num_after_prefix) {
  CHECK(num_after_prefix_ <= splits_.size(), "{} of {} splits", num_after_prefix_, splits_.size());
}

void PreTokenizer::split(std::string_view text, Pieces& pieces) const {
  pieces.text = text;
  pieces.ranges.clear();
  if (text.empty()) return;
  pieces.ranges.push_back({0, text.size()});
  const bool newer_unicode = has_newer_unicode(text);
  for (size_t i = 0; i <= splits_.size(); ++i) {
    if (add_prefix_space_ && i + num_after_prefix_ == splits_.size()) prefix_spaces(pieces);
    if (i < splits_.size()) apply(splits_[i], newer_unicode, pieces);
  }
}

void PreTokenizer::apply(const SplitStep& step, bool newer_unicode, Pieces& pieces) const {
  std::vector<TextRange> result, matches;
  result.reserve(pieces.ranges.size() + pieces.text.size() / 8);
  const auto add = [&](size_t begin, size_t end) {
    if (begin < end) result.push_back({begin, end});
  };
  for (const TextRange& range : pieces.ranges) {
    const std::string_view piece = pieces.text.substr(range.begin, range.end - range.begin);
    matches.clear();
    step.regex ? step.regex->find_all(piece, newer_unicode, matches) : find_literal(piece, step.literal, matches);
    if (step.behavior == SplitBehavior::kIsolated) {
      size_t done = 0;
      for (const TextRange& match : matches) {
        add(range.begin + done, range.begin + match.begin);
        add(range.begin + match.begin, range.begin + match.end);
        done = match.end;
      }
      add(range.begin + done, range.end);
    } else {
      for (const TextRange& part : join(stretches_of(piece.size(), matches, step.invert), step.behavior)) {
        add(range.begin + part.begin, range.begin + part.end);
      }
    }
  }
  pieces.ranges = std::move(result);
}

}  // namespace moectl
