#include "core/text/set_matcher.h"

#include <limits>

namespace moectl {
namespace {

constexpr size_t kNoMatch = std::numeric_limits<size_t>::max();

}  // namespace

// One text and the steps that are left for it.
class SetMatcher::Search {
 public:
  Search(const SetMatcher& matcher, std::string_view text, int64_t steps)
      : matcher_(matcher),
        text_(reinterpret_cast<const unsigned char*>(text.data())),
        size_(text.size()),
        steps_(steps) {}

  int64_t steps() const { return steps_; }
  bool out_of_steps() const { return steps_ < 0; }

  // Sets of the character at `pos`; moves `pos` behind it.
  uint32_t sets_at(size_t& pos) const {
    const unsigned char first = text_[pos];
    if (first < 0x80) {
      ++pos;
      return matcher_.ascii_[first];
    }
    char32_t c = 0;
    if (first < 0xe0) {
      c = (first & 0x1fu) << 6 | (text_[pos + 1] & 0x3fu);
      pos += 2;
    } else if (first < 0xf0) {
      c = (first & 0xfu) << 12 | (text_[pos + 1] & 0x3fu) << 6 | (text_[pos + 2] & 0x3fu);
      pos += 3;
    } else {
      c = (first & 0x7u) << 18 | (text_[pos + 1] & 0x3fu) << 12 | (text_[pos + 2] & 0x3fu) << 6 |
          (text_[pos + 3] & 0x3fu);
      pos += 4;
    }
    return matcher_.page_sets_[size_t{matcher_.pages_[c >> 8]} << 8 | (c & 0xff)];
  }

  // Where the items up to `last` end when they match at `pos`, tried in the order of a backtracking engine.
  size_t match(const Item* item, const Item* last, size_t pos) {
    if (item == last) return pos;
    switch (item->kind) {
      case Item::Kind::kRun:
        return match_run(item, last, pos);
      case Item::Kind::kAhead:
      case Item::Kind::kNotAhead: {
        size_t next = pos;
        const bool found = pos < size_ && (sets_at(next) & item->set) != 0;
        return found == (item->kind == Item::Kind::kAhead) ? match(item + 1, last, pos) : kNoMatch;
      }
      case Item::Kind::kWords:
        for (const std::vector<uint32_t>& word : item->words) {
          size_t at = pos, i = 0;
          while (i < word.size() && at < size_ && (sets_at(at) & word[i]) != 0) ++i;
          const size_t end = i == word.size() ? match(item + 1, last, at) : kNoMatch;
          if (end != kNoMatch) return end;
        }
        return item->min == 0 ? match(item + 1, last, pos) : kNoMatch;
    }
    return kNoMatch;
  }

 private:
  // As many characters as there are, then one fewer at a time.
  size_t match_run(const Item* item, const Item* last, size_t pos) {
    const uint32_t set = item->set, max = item->max;
    uint32_t count = 0;
    size_t at = pos;
    for (size_t next = pos; count < max && next < size_ && (sets_at(next) & set) != 0; at = next) ++count;
    if (count < item->min) return kNoMatch;
    steps_ -= count;
    if (item + 1 == last) return at;
    while (true) {
      const size_t end = match(item + 1, last, at);
      if (end != kNoMatch) return end;
      if (item->keeps_all || count == item->min || --steps_ < 0) return kNoMatch;
      --count;
      do --at;
      while ((text_[at] & 0xc0) == 0x80);
    }
  }

  const SetMatcher& matcher_;
  const unsigned char* text_;
  size_t size_;
  int64_t steps_;
};

bool SetMatcher::find_some(std::string_view text, size_t max_matches, Cursor& cursor,
                           std::vector<TextRange>& matches) const {
  const size_t full = matches.size() + max_matches;
  Search search(*this, text, cursor.steps.value_or(4096 + 64 * static_cast<int64_t>(text.size())));
  size_t& pos = cursor.pos;
  while (pos < text.size() && matches.size() < full) {
    size_t next = pos;
    const uint32_t sets = search.sets_at(next);
    const auto byte = static_cast<unsigned char>(text[pos]);
    uint32_t candidates = 0;  // alternatives that may match here, one bit each
    if (byte < 0x80) {
      candidates = ascii_starts_[byte];
    } else {
      for (size_t i = 0; i < first_sets_.size(); ++i) candidates |= uint32_t{(first_sets_[i] & sets) != 0} << i;
    }
    size_t end = kNoMatch;
    for (; candidates != 0 && end == kNoMatch; candidates &= candidates - 1) {
      const Alternative& items = alternatives_[__builtin_ctz(candidates)];
      end = search.match(items.data(), items.data() + items.size(), pos);
    }
    if (search.out_of_steps()) return false;
    if (end != kNoMatch) matches.push_back({pos, end});
    pos = end != kNoMatch ? end : next;
  }
  cursor.steps = search.steps();
  return true;
}

}  // namespace moectl
