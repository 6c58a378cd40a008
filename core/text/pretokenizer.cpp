#include "core/text/pretokenizer.h"

#include <algorithm>

#include "core/base/check.h"

namespace moectl {

const std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

constexpr size_t kBatch = 512;  // matches of a pattern that are looked for at a time

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

std::string replace_spaces(const Metaspace& metaspace, bool is_first, std::string_view in) {
  const std::string_view mark = metaspace.replacement;
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
  return text;
}

}  // namespace

PreTokenizer::PreTokenizer(PreTokenizerSteps steps) : steps_(std::move(steps)) {
  CHECK(steps_.num_splits_after_prefix <= steps_.splits.size(), "{} of {} splits", steps_.num_splits_after_prefix,
        steps_.splits.size());
}

void PreTokenizer::split(std::string_view text, bool is_first, const Visit& visit) const {
  if (text.empty()) return;
  Matches matches(steps_.splits.size());
  if (!steps_.metaspace) {
    split_from(0, text, matches, visit);
  } else {
    const std::string spelled = replace_spaces(*steps_.metaspace, is_first, text);
    split_from(0, spelled, matches, visit);
  }
}

// What the splits from `split_idx` on make of a piece. False: `visit` ended it.
bool PreTokenizer::split_from(size_t split_idx, std::string_view piece, Matches& all_matches,
                              const Visit& visit) const {
  std::string prefixed;
  if (steps_.add_prefix_space && split_idx + steps_.num_splits_after_prefix == steps_.splits.size() &&
      piece.front() != ' ') {
    prefixed.reserve(piece.size() + 1);
    prefixed += ' ';
    prefixed += piece;
    piece = prefixed;
  }
  if (split_idx == steps_.splits.size()) return visit(piece);
  const SplitStep& step = steps_.splits[split_idx];
  std::vector<TextRange>& matches = all_matches[split_idx];
  const auto pass_on = [&](size_t begin, size_t end) {
    return begin == end || split_from(split_idx + 1, piece.substr(begin, end - begin), all_matches, visit);
  };
  if (!step.regex || step.behavior != SplitBehavior::kIsolated) {
    matches.clear();
    step.regex ? step.regex->find_all(piece, matches) : find_literal(piece, step.literal, matches);
    const auto parts = join(stretches_of(piece.size(), matches, step.invert), step.behavior);
    return std::all_of(parts.begin(), parts.end(), [&](const TextRange& p) { return pass_on(p.begin, p.end); });
  }
  SplitRegex::Cursor cursor;
  size_t done = 0;
  while (!cursor.done) {
    matches.clear();
    step.regex->find_some(piece, kBatch, cursor, matches);
    for (const TextRange& match : matches) {
      if (!pass_on(done, match.begin) || !pass_on(match.begin, match.end)) return false;
      done = match.end;
    }
  }
  return pass_on(done, piece.size());
}

}  // namespace moectl
