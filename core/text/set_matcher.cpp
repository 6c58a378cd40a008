#include "core/text/set_matcher.h"

#include "core/text/utf8.h"

namespace moectl {

inline uint32_t SetMatcher::sets_of(std::string_view text, size_t& pos) const {
  const auto first = static_cast<unsigned char>(text[pos]);
  if (first < 0x80) {
    ++pos;
    return ascii_[first];
  }
  const char32_t c = next_code_point(text, pos);
  return page_sets_[size_t{pages_[c >> 8]} << 8 | (c & 0xff)];
}

bool SetMatcher::find_all(std::string_view text, std::vector<TextRange>& matches) const {
  const size_t first_match = matches.size();
  int64_t steps = 4096 + 64 * static_cast<int64_t>(text.size());
  for (size_t pos = 0; pos < text.size();) {
    size_t next = pos;
    const auto byte = static_cast<unsigned char>(text[pos]);
    const uint32_t sets = sets_of(text, next);
    uint32_t candidates = 0;  // alternatives that may match here, one bit each
    if (byte < 0x80) {
      candidates = ascii_starts_[byte];
    } else {
      for (size_t i = 0; i < alternatives_.size(); ++i) candidates |= uint32_t{(first_sets_[i] & sets) != 0} << i;
    }
    size_t end = 0;
    for (; candidates != 0; candidates &= candidates - 1) {
      const Alternative& items = alternatives_[__builtin_ctz(candidates)];
      if (match(items.data(), items.data() + items.size(), text, pos, end, steps)) break;
    }
    if (steps < 0) {
      matches.resize(first_match);
      return false;
    }
    if (candidates != 0) {
      matches.push_back({pos, end});
      pos = end;
    } else {
      pos = next;
    }
  }
  return true;
}

// Whether the items up to `last` match at `pos`, in the order in which a backtracking engine tries; `end` is where.
bool SetMatcher::match(const Item* item, const Item* last, std::string_view text, size_t pos, size_t& end,
                       int64_t& steps) const {
  if (item == last) {
    end = pos;
    return true;
  }
  switch (item->kind) {
    case Item::Kind::kRun:
      return match_run(item, last, text, pos, end, steps);
    case Item::Kind::kAhead:
    case Item::Kind::kNotAhead: {
      size_t next = pos;
      const bool found = pos < text.size() && (sets_of(text, next) & item->set) != 0;
      return found == (item->kind == Item::Kind::kAhead) && match(item + 1, last, text, pos, end, steps);
    }
    case Item::Kind::kWords:
      for (const std::vector<uint32_t>& word : item->words) {
        size_t at = pos, i = 0;
        while (i < word.size() && at < text.size() && (sets_of(text, at) & word[i]) != 0) ++i;
        if (i == word.size() && match(item + 1, last, text, at, end, steps)) return true;
      }
      return item->min == 0 && match(item + 1, last, text, pos, end, steps);
  }
  return false;
}

// As many characters as there are, then one fewer at a time.
bool SetMatcher::match_run(const Item* item, const Item* last, std::string_view text, size_t pos, size_t& end,
                           int64_t& steps) const {
  const uint32_t set = item->set;
  uint32_t count = 0;
  size_t at = pos;
  for (size_t next = pos; count < item->max && next < text.size() && (sets_of(text, next) & set) != 0; at = next)
    ++count;
  steps -= count;
  if (count < item->min) return false;
  if (item + 1 == last) {
    end = at;
    return true;
  }
  while (true) {
    if (match(item + 1, last, text, at, end, steps)) return true;
    if (item->keeps_all || count == item->min || --steps < 0) return false;
    --count;
    do --at;
    while ((static_cast<unsigned char>(text[at]) & 0xc0) == 0x80);
  }
}

}  // namespace moectl
