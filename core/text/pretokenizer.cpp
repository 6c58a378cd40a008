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

void replace_spaces(const Metaspace& metaspace, bool is_first, PreTokenizer::Pieces& pieces) {
  const std::string_view in = pieces.text, mark = metaspace.replacement;
  std::string text;
  text.reserve(in.size() + in.size() / 2 + mark.size());
  const bool prepend =
      metaspace.prepend == Metaspace::Prepend::kAlways || (metaspace.prepend == Metaspace::Prepend::kFirst && is_first);
  if (prepend && !in.starts_with(' ') && !in.starts_with(mark)) text += mark;
  for (size_t done = 0; done < in.size();) {
    const size_t space = std::min(in.find(' ', done), in.size());
    text.append(in.substr(done, space - done));
    if (space < in.size()) text += mark;
    done = space + 1;
  }
  pieces.storage = std::move(text);
  pieces.text = pieces.storage;
  pieces.ranges = {{0, pieces.text.size()}};
}

}  // namespace

PreTokenizer::PreTokenizer(PreTokenizerSteps steps) : steps_(std::move(steps)) {
  CHECK(steps_.num_splits_after_prefix <= steps_.splits.size(), "{} of {} splits", steps_.num_splits_after_prefix,
        steps_.splits.size());
}

void PreTokenizer::split(std::string_view text, bool is_first, Pieces& pieces) const {
  pieces.text = text;
  pieces.ranges.clear();
  if (text.empty()) return;
  pieces.ranges.push_back({0, text.size()});
  if (steps_.metaspace) replace_spaces(*steps_.metaspace, is_first, pieces);
  const size_t num_splits = steps_.splits.size();
  for (size_t i = 0; i <= num_splits; ++i) {
    if (steps_.add_prefix_space && i + steps_.num_splits_after_prefix == num_splits) prefix_spaces(pieces);
    if (i < num_splits) apply(steps_.splits[i], pieces);
  }
}

void PreTokenizer::apply(const SplitStep& step, Pieces& pieces) const {
  std::vector<TextRange> result, matches;
  result.reserve(pieces.ranges.size() + pieces.text.size() / 8);
  const auto add = [&](size_t begin, size_t end) {
    if (begin < end) result.push_back({begin, end});
  };
  for (const TextRange& range : pieces.ranges) {
    const std::string_view piece = pieces.text.substr(range.begin, range.end - range.begin);
    matches.clear();
    step.regex ? step.regex->find_all(piece, matches) : find_literal(piece, step.literal, matches);
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
