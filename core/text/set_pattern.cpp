// SetPatternParser: a translated pattern -> the items and the table of a SetMatcher.
#include "core/text/set_pattern.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "core/text/newer_unicode.h"
#include "core/text/set_matcher.h"

namespace moectl {
namespace {

constexpr char32_t kEnd = 0x110000;
// kMaxRanges bounds the time that the table takes; published patterns have up to some 150.
constexpr size_t kMaxSets = 32, kMaxAlternatives = 32, kMaxItems = 64, kMaxWords = 64, kMaxRanges = 512;

// Script=Han of Unicode 14; newer_unicode.h has the later ones.
constexpr std::pair<char32_t, char32_t> kHan[] = {
    {0x2e80, 0x2e99},   {0x2e9b, 0x2ef3},   {0x2f00, 0x2fd5},   {0x3005, 0x3005},   {0x3007, 0x3007},
    {0x3021, 0x3029},   {0x3038, 0x303b},   {0x3400, 0x4dbf},   {0x4e00, 0x9fff},   {0xf900, 0xfa6d},
    {0xfa70, 0xfad9},   {0x16fe2, 0x16fe3}, {0x16ff0, 0x16ff1}, {0x20000, 0x2a6df}, {0x2a700, 0x2b738},
    {0x2b740, 0x2b81d}, {0x2b820, 0x2cea1}, {0x2ceb0, 0x2ebe0}, {0x2f800, 0x2fa1d}, {0x30000, 0x3134a}};

constexpr std::string_view kCategories[] = {"Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd",
                                            "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm",
                                            "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co"};
constexpr uint32_t kHanBit = 1u << 31;

// A property as one bit for each general category that belongs to it, and one for Han; 0 when it is not known.
uint32_t members_of(std::string_view property) {
  if (property == "Han") return kHanBit;
  uint32_t members = 0;
  for (size_t i = 0; i < std::size(kCategories); ++i) {
    if (!property.empty() && kCategories[i].starts_with(property)) members |= 1u << i;
  }
  return members;
}

// By code point: the bit of its category, and kHanBit.
const std::vector<uint32_t>& code_points() {
  static const std::vector<uint32_t> table = [] {
    std::vector<uint32_t> all(kEnd);
    for (char32_t c = 0; c < kEnd; ++c) all[c] = 1u << utf8proc_category(static_cast<utf8proc_int32_t>(c));
    for (const auto& [first, last] : kHan) {
      for (char32_t c = first; c <= last; ++c) all[c] |= kHanBit;
    }
    for (const NewerUnicode& range : kNewerUnicode) {
      const uint32_t bits = members_of(range.category) | (range.han ? kHanBit : 0);
      for (char32_t c = range.first; c <= range.last; ++c) all[c] = bits;
    }
    return all;
  }();
  return table;
}

}  // namespace

bool has_property(char32_t c, std::string_view property) {
  return (code_points()[c] & members_of(property)) != 0;
}

class SetPatternParser {
 public:
  explicit SetPatternParser(std::string_view pattern) : in_(pattern) {}

  // Null when the pattern is of another kind.
  std::unique_ptr<SetMatcher> parse() {
    do {
      SetMatcher::Alternative items;
      while (!at_end() && peek() != '|') {
        if (!parse_item(items) || items.size() > kMaxItems) return nullptr;
      }
      alternatives_.push_back(std::move(items));
    } while (skip("|"));
    size_t num_ranges = 0;
    for (const auto& [key, entry] : sets_) num_ranges += entry.first.ranges.size();
    if (!at_end() || alternatives_.size() > kMaxAlternatives || sets_.size() > kMaxSets || num_ranges > kMaxRanges) {
      return nullptr;
    }
    return build();
  }

 private:
  using Item = SetMatcher::Item;

  // A set: the ranges and properties of a class, less the sets in `without`.
  struct Set {
    std::vector<std::pair<char32_t, char32_t>> ranges;
    uint32_t properties = 0;  // members_of
    bool negated = false;
    std::string only, without;  // keys of sets: intersections

    std::string key() const {
      std::string key(negated ? "^" : "");
      for (const auto& [first, last] : ranges) key += std::to_string(first) + "-" + std::to_string(last) + ",";
      key += "p" + std::to_string(properties);
      return key + (only.empty() ? "" : "&(" + only + ")") + (without.empty() ? "" : "-(" + without + ")");
    }
  };

  bool at_end() const { return pos_ >= in_.size(); }
  char peek() const { return at_end() ? '\0' : in_[pos_]; }
  bool skip(std::string_view text) {
    const bool found = in_.substr(pos_).starts_with(text);
    if (found) pos_ += text.size();
    return found;
  }

  std::optional<char32_t> parse_character() {  // \x{61}
    if (!skip("\\x{")) return std::nullopt;
    uint32_t value = 0;
    const char* begin = in_.data() + pos_;
    const auto [end, error] = std::from_chars(begin, in_.data() + in_.size(), value, 16);
    if (error != std::errc() || value >= kEnd) return std::nullopt;
    pos_ += static_cast<size_t>(end - begin);
    return skip("}") ? std::optional<char32_t>(value) : std::nullopt;
  }

  // Under (?i: ASCII letters stand for both cases, and for the two letters elsewhere that fold to them.
  static bool add_range(Set& set, char32_t first, char32_t last, bool ignore_case) {
    set.ranges.emplace_back(first, last);
    if (!ignore_case) return true;
    if (first != last || first >= 0x80) return false;
    const char32_t lower = first | 0x20;
    if (lower < 'a' || lower > 'z') return true;
    set.ranges = {{lower, lower}, {lower - 0x20, lower - 0x20}};
    if (lower == 's') set.ranges.emplace_back(0x17f, 0x17f);
    if (lower == 'k') set.ranges.emplace_back(0x212a, 0x212a);
    return true;
  }

  std::optional<Set> parse_set(bool ignore_case) {
    Set set;
    if (skip("[")) {
      set.negated = skip("^");
      while (!skip("]")) {
        if (skip("\\p{")) {
          const size_t close = in_.find('}', pos_);
          if (close == std::string_view::npos || ignore_case) return std::nullopt;
          std::string_view name = in_.substr(pos_, close - pos_);
          if (name.starts_with("sc:")) name.remove_prefix(3);
          if (members_of(name) == 0) return std::nullopt;
          set.properties |= members_of(name);
          pos_ = close + 1;
          continue;
        }
        const auto first = parse_character();
        const auto last = first && skip("-") ? parse_character() : first;
        if (!first || !last) return std::nullopt;
        Set member;
        if (!add_range(member, *first, *last, ignore_case)) return std::nullopt;
        set.ranges.insert(set.ranges.end(), member.ranges.begin(), member.ranges.end());
      }
      return set;
    }
    const auto c = parse_character();
    if (!c || !add_range(set, *c, *c, ignore_case)) return std::nullopt;
    return set;
  }

  // Bit of a set; 0 when there are too many.
  uint32_t bit_of(const Set& set) {
    const auto [found, is_new] = sets_.emplace(set.key(), std::pair(set, sets_.size()));
    return found->second.second < kMaxSets ? uint32_t{1} << found->second.second : 0;
  }

  bool parse_item(SetMatcher::Alternative& items) {
    if (skip("(?!") || skip("(?=")) {
      const bool negative = in_[pos_ - 1] == '!';
      const auto set = parse_set(false);
      if (!set || !skip(")")) return false;
      items.push_back({.kind = negative ? Item::Kind::kNotAhead : Item::Kind::kAhead, .set = bit_of(*set)});
      return true;
    }
    const bool not_in = skip("(?:(?!");
    if (not_in || skip("(?:(?=")) {  // an intersection
      const auto other = parse_set(false);
      if (!other || !skip(")")) return false;
      auto set = parse_set(false);
      if (!set || !skip(")")) return false;
      (void)bit_of(*other);
      (not_in ? set->without : set->only) = other->key();
      return add_run(items, *set);
    }
    if (skip("(?i:")) return parse_words(items, true);
    if (skip("(?:")) return parse_words(items, false);
    const auto set = parse_set(false);
    return set && add_run(items, *set);
  }

  bool add_run(SetMatcher::Alternative& items, const Set& set) {
    Item item{.set = bit_of(set)};
    if (item.set == 0 || !parse_quantifier(item)) return false;
    items.push_back(std::move(item));
    return true;
  }

  bool parse_words(SetMatcher::Alternative& items, bool ignore_case) {
    Item item{.kind = Item::Kind::kWords};
    do {
      std::vector<uint32_t> word;
      while (!at_end() && peek() != '|' && peek() != ')') {
        const auto set = parse_set(ignore_case);
        if (!set) return false;
        word.push_back(bit_of(*set));
        if (word.back() == 0 || word.size() > kMaxItems) return false;
      }
      if (word.empty() || item.words.size() == kMaxWords) return false;
      item.words.push_back(std::move(word));
    } while (skip("|"));
    if (!skip(")")) return false;
    if (!parse_quantifier(item) || item.max != 1 || item.keeps_all) return false;
    items.push_back(std::move(item));
    return true;
  }

  bool parse_quantifier(Item& item) {
    constexpr uint32_t kMany = UINT32_MAX;
    if (skip("*")) {
      item.min = 0, item.max = kMany;
    } else if (skip("+")) {
      item.max = kMany;
    } else if (skip("?")) {
      item.min = 0;
    } else if (skip("{")) {
      const auto number = [&](uint32_t& value) {
        const char* begin = in_.data() + pos_;
        const auto [end, error] = std::from_chars(begin, in_.data() + in_.size(), value);
        pos_ += static_cast<size_t>(end - begin);
        return error == std::errc();
      };
      if (!number(item.min)) return false;
      item.max = item.min;
      if (skip(",")) {
        item.max = kMany;
        if (peek() != '}' && !number(item.max)) return false;
      }
      if (!skip("}") || item.max == 0) return false;
      return peek() != '?' && peek() != '+';
    } else {
      return true;
    }
    if (peek() == '?') return false;  // lazy
    item.keeps_all = skip("+");
    return true;
  }

  bool contains(const Set& set, char32_t c) const {
    const bool listed = (code_points()[c] & set.properties) != 0 ||
                        std::any_of(set.ranges.begin(), set.ranges.end(),
                                    [&](const auto& range) { return c >= range.first && c <= range.second; });
    if (listed == set.negated) return false;
    if (!set.only.empty() && !contains(sets_.at(set.only).first, c)) return false;
    return set.without.empty() || !contains(sets_.at(set.without).first, c);
  }

  std::unique_ptr<SetMatcher> build() {
    std::unique_ptr<SetMatcher> matcher(new SetMatcher);
    fill_table(*matcher);
    for (SetMatcher::Alternative& items : alternatives_) {
      uint32_t first = 0;
      bool may_be_empty = true;
      for (const Item& item : items) {
        if (item.kind == Item::Kind::kWords) {
          for (const auto& word : item.words) first |= word.front();
        } else if (item.kind == Item::Kind::kRun) {
          first |= item.set;
        } else {
          continue;
        }
        if (item.min == 0) continue;
        may_be_empty = false;
        break;
      }
      if (may_be_empty) return nullptr;
      matcher->first_sets_.push_back(first);
      mark_disjoint_runs(items);
    }
    matcher->alternatives_ = std::move(alternatives_);
    for (size_t c = 0; c < 0x80; ++c) {
      matcher->ascii_[c] = matcher->page_sets_[size_t{matcher->pages_[0]} << 8 | c];
      uint32_t starts = 0;
      for (size_t i = 0; i < matcher->first_sets_.size(); ++i) {
        starts |= uint32_t{(matcher->first_sets_[i] & matcher->ascii_[c]) != 0} << i;
      }
      matcher->ascii_starts_[c] = starts;
    }
    return matcher;
  }

  uint32_t sets_with(char32_t c) const {
    uint32_t bits = 0;
    for (const auto& [key, entry] : sets_) bits |= uint32_t{contains(entry.first, c)} << entry.second;
    return bits;
  }

  // Whether the 256 characters from `begin` on have the same properties, and no range begins or ends among them.
  bool is_uniform(char32_t begin) const {
    const auto inside = [&](char32_t c) { return c > begin && c < begin + 256; };
    for (const auto& [key, entry] : sets_) {
      for (const auto& [first, last] : entry.first.ranges) {
        if (inside(first) || inside(last + 1)) return false;
      }
    }
    const auto page = code_points().begin() + begin;
    return std::all_of(page, page + 256, [&](uint32_t bits) { return bits == *page; });
  }

  void fill_table(SetMatcher& matcher) {
    std::map<std::vector<uint32_t>, uint16_t> known;  // equal pages are stored once
    std::vector<uint32_t> page(256);
    for (char32_t begin = 0; begin < kEnd; begin += 256) {
      page.assign(256, sets_with(begin));
      if (!is_uniform(begin)) {
        for (char32_t i = 1; i < 256; ++i) page[i] = sets_with(begin + i);
      }
      for (const uint32_t sets : page) combinations_.insert(sets);
      const auto [found, is_new] = known.emplace(page, static_cast<uint16_t>(known.size()));
      if (is_new) matcher.page_sets_.insert(matcher.page_sets_.end(), page.begin(), page.end());
      matcher.pages_.push_back(found->second);
    }
  }

  // A run before another of which it has no character gives nothing back in vain.
  void mark_disjoint_runs(SetMatcher::Alternative& items) const {
    for (size_t i = 0; i + 1 < items.size(); ++i) {
      const Item &run = items[i], &next = items[i + 1];
      if (run.kind != Item::Kind::kRun || next.kind != Item::Kind::kRun || next.min == 0) continue;
      const uint32_t both = run.set | next.set;
      items[i].keeps_all |= std::none_of(combinations_.begin(), combinations_.end(),
                                         [&](uint32_t sets) { return (sets & both) == both; });
    }
  }

  std::string_view in_;
  size_t pos_ = 0;
  std::vector<SetMatcher::Alternative> alternatives_;
  std::map<std::string, std::pair<Set, size_t>> sets_;  // by key: the set and its number
  std::set<uint32_t> combinations_;                     // all entries of the table
};

std::unique_ptr<SetMatcher> SetMatcher::compile(std::string_view pattern) {
  return SetPatternParser(pattern).parse();
}

}  // namespace moectl
