// translate_pattern: Oniguruma's dialect (the one of tokenizer.json) -> PCRE2's. A single pass over the pattern, no
// recursion. Where the two engines read a construct differently it is spelled out, where that is not possible it is
// refused: a tokenizer that splits almost right would be worse than none.
#include "core/text/pattern_dialect.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <optional>

#include "core/base/error.h"
#include "core/text/newer_unicode.h"
#include "core/text/utf8.h"

namespace moectl {
namespace {

// \s of Oniguruma is White_Space; PCRE2's also takes U+180E.
constexpr std::string_view kWhiteSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNotWhiteSpace =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027})"
    R"(\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";

// Properties whose members the two engines agree on, given kNewerUnicode. (Mn and Mc: one character moved between
// them.)
constexpr std::array<std::string_view, 30> kProperties = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "N",  "Nd", "Nl", "No",
                                                          "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm",
                                                          "Sc", "Sk", "So", "M",  "Me", "Z",  "Zs", "Zl", "Zp", "Han"};

constexpr size_t kMaxPatternBytes = 16 << 10;
constexpr int kMaxRepeat = 1000;

struct Translator {
  std::string_view in;
  bool newer_unicode;
  const std::string& where;
  size_t pos = 0;
  std::string out;

  // A member of a class, or an escape outside of one.
  struct Item {
    std::string text;      // PCRE2's spelling, to stand inside brackets
    bool is_set = false;   // several characters: \s, \p{L}
    bool negated = false;  // `text` lists what is excluded
  };

  [[noreturn]] void refuse(std::string_view what) const {
    throw Error(Code::kBadData, fmt::format("{}: pattern {} is not supported: {} at byte {}", where, in.substr(0, 200),
                                            what, std::min(pos, in.size())));
  }
  bool at_end() const { return pos >= in.size(); }
  char peek(size_t ahead = 0) const { return pos + ahead < in.size() ? in[pos + ahead] : '\0'; }
  bool starts_with(std::string_view text) const { return in.substr(pos).starts_with(text); }

  static std::string code_point(uint32_t c) { return fmt::format("\\x{{{:x}}}", c); }

  std::string property_members(std::string_view name) const {
    const bool han = name == "Han";
    std::string text = han ? "\\p{sc:Han}" : fmt::format("\\p{{{}}}", name);
    if (!newer_unicode) return text;
    for (const NewerUnicode& range : kNewerUnicode) {
      if (han ? range.han : std::string_view(range.category).starts_with(name)) {
        text += code_point(range.first) + "-" + code_point(range.last);
      }
    }
    return text;
  }

  Item read_property(bool negated) {
    if (peek() != '{') refuse("a property without braces");
    const size_t close = in.find('}', pos);
    if (close == std::string_view::npos) refuse("a property without a closing brace");
    std::string_view name = in.substr(pos + 1, close - pos - 1);
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    if (std::find(kProperties.begin(), kProperties.end(), name) == kProperties.end()) {
      refuse(fmt::format("the property \\p{{{}}}", name));
    }
    pos = close + 1;
    return {property_members(name), true, negated};
  }

  uint32_t read_hex(size_t min_digits, size_t max_digits) {
    uint32_t value = 0;
    size_t digits = 0;
    for (; digits < max_digits && std::isxdigit(static_cast<unsigned char>(peek())); ++digits, ++pos) {
      const char c = peek();
      value = value * 16 + (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    if (digits < min_digits || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) refuse("a bad character code");
    return value;
  }

  // After the backslash.
  Item read_escape() {
    if (at_end()) refuse("a backslash at the end");
    if (static_cast<unsigned char>(peek()) >= 0x80) return read_literal();
    const char c = in[pos++];
    switch (c) {
      case 's':
        return {std::string(kWhiteSpace), true};
      case 'S':
        return {std::string(kNotWhiteSpace), true};
      case 'd':
        return {property_members("Nd"), true};
      case 'D':
        return {property_members("Nd"), true, true};
      case 'p':
        return read_property(false);
      case 'P':
        return read_property(true);
      case 't':
        return {code_point('\t')};
      case 'n':
        return {code_point('\n')};
      case 'v':
        return {code_point('\v')};
      case 'f':
        return {code_point('\f')};
      case 'r':
        return {code_point('\r')};
      case 'a':
        return {code_point('\a')};
      case 'e':
        return {code_point(0x1b)};
      case 'u':
        return {code_point(read_hex(4, 4))};
      case 'x': {
        if (peek() != '{') {
          const uint32_t value = read_hex(1, 2);
          if (value >= 0x80) refuse("\\x of a single byte that is not ASCII");
          return {code_point(value)};
        }
        ++pos;
        const uint32_t value = read_hex(1, 8);
        if (peek() != '}') refuse("a bad character code");
        ++pos;
        return {code_point(value)};
      }
      default:
        if (std::isalnum(static_cast<unsigned char>(c))) refuse(fmt::format("the escape \\{}", c));
        return {code_point(c)};
    }
  }

  Item read_literal() { return {code_point(next_code_point(in, pos))}; }

  // The members of a class up to `]` or `&&`, in PCRE2's spelling.
  std::string read_members() {
    std::string members;
    std::optional<Item> previous;
    while (peek() != ']' && !starts_with("&&")) {
      if (at_end()) refuse("a class without end");
      if (peek() == '[') refuse("a class inside a class");
      if (peek() == '-' && previous && peek(1) != ']') {  // a range
        ++pos;
        const Item last = read_member();
        if (previous->is_set || last.is_set) refuse("a range that ends in a set");
        members += "-" + last.text;
        previous.reset();
        if (peek() == '-' && peek(1) != ']') refuse("a range after a range");
        continue;
      }
      previous = read_member();
      if (previous->negated) refuse("a negated set inside a class");
      members += previous->text;
    }
    if (members.empty()) refuse("an empty class");
    return members;
  }

  bool skip(std::string_view text) {
    const bool found = starts_with(text);
    if (found) pos += text.size();
    return found;
  }

  void translate_class() {
    ++pos;  // [
    const bool negated = skip("^");
    const std::string members = read_members();
    if (!skip("&&")) {
      if (!skip("]")) refuse("a class without end");
      out += (negated ? "[^" : "[") + members + "]";
      return;
    }
    // An intersection, [members&&[^others]] or [members&&[others]]: PCRE2 has none; it looks ahead instead.
    if (negated || !skip("[")) refuse("an intersection of another form than [A&&[B]] and [A&&[^B]]");
    const char* look_ahead = skip("^") ? "(?:(?![" : "(?:(?=[";
    const std::string others = read_members();
    if (!skip("]]")) refuse("an intersection of another form than [A&&[B]] and [A&&[^B]]");
    out += look_ahead + others + "])[" + members + "])";
  }

  Item read_member() {
    if (at_end()) refuse("a class without end");
    if (peek() == '[') refuse("a class inside a class");
    if (peek() != '\\') return read_literal();
    ++pos;
    return read_escape();
  }

  void translate_group() {
    for (const std::string_view kind : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"}) {
      if (starts_with(kind)) {
        out += kind;
        pos += kind.size();
        return;
      }
    }
    if (peek(1) == '?' || peek(1) == '*') refuse(fmt::format("the group {}", in.substr(pos, 4)));
    out += "(?:";  // nothing here refers to captures
    ++pos;
  }

  int read_count() {
    int value = 0;
    while (std::isdigit(static_cast<unsigned char>(peek()))) {
      value = value * 10 + (in[pos++] - '0');
      if (value > kMaxRepeat) refuse(fmt::format("a repetition of more than {}", kMaxRepeat));
    }
    return value;
  }

  void translate_quantifier() {
    if (peek() != '{') {
      out += in[pos++];
      if (peek() == '?' || peek() == '+') out += in[pos++];  // lazy, possessive
    } else {
      ++pos;
      const bool has_min = peek() != ',';
      const int min = read_count();
      const bool has_comma = peek() == ',';
      if (has_comma) ++pos;
      const bool has_max = has_comma && peek() != '}';
      const int max = has_max ? read_count() : min;
      if (peek() != '}' || (!has_min && !has_max) || (has_max && max < min)) refuse("a brace that is no repetition");
      ++pos;
      out += !has_comma ? fmt::format("{{{}}}", min)
             : has_max  ? fmt::format("{{{},{}}}", min, max)
                        : fmt::format("{{{},}}", min);
      if (peek() == '+' || (peek() == '?' && !has_comma)) refuse("a suffix after a counted repetition");
      if (peek() == '?') out += in[pos++];
    }
    if (!at_end() && std::string_view("*+?{").find(peek()) != std::string_view::npos) refuse("a repeated repetition");
  }

  std::string run() {
    if (in.empty()) refuse("an empty pattern");
    if (in.size() > kMaxPatternBytes) {
      throw Error(Code::kBadData,
                  fmt::format("{}: the pattern has {} bytes, expected at most {}", where, in.size(), kMaxPatternBytes));
    }
    if (!is_valid_utf8(in)) throw Error(Code::kBadData, fmt::format("{}: the pattern is not valid UTF-8", where));
    while (!at_end()) translate_next();
    return std::move(out);
  }

  void translate_next() {
    switch (peek()) {
      case '[':
        return translate_class();
      case '(':
        return translate_group();
      case '*':
      case '+':
      case '?':
      case '{':
        return translate_quantifier();
      case ')':
      case '|':
      case '^':  // both are tried at every line, and `.` stops at \n only: compile options say so
      case '$':
      case '.':
        out += in[pos++];
        return;
      case '\\': {
        ++pos;
        if (peek() == 'A' || peek() == 'z') {
          out += '\\';
          out += in[pos++];
          return;
        }
        const Item item = read_escape();
        out += item.is_set ? (item.negated ? "[^" : "[") + item.text + "]" : item.text;
        return;
      }
      default:
        out += read_literal().text;
    }
  }
};

}  // namespace

std::string translate_pattern(std::string_view pattern, bool newer_unicode, const std::string& where) {
  return Translator{pattern, newer_unicode, where}.run();
}

bool has_newer_unicode(std::string_view text) {
  constexpr uint32_t kFirst = kNewerUnicode[0].first;
  for (size_t pos = 0; pos < text.size();) {
    const uint32_t c = next_code_point(text, pos);
    if (c < kFirst || (c >= 0x3200 && c < 0xa700) || (c >= 0xac00 && c < 0x10000)) continue;
    const auto* range = std::upper_bound(std::begin(kNewerUnicode), std::end(kNewerUnicode), c,
                                         [](uint32_t value, const NewerUnicode& r) { return value < r.first; });
    if (range != std::begin(kNewerUnicode) && c <= std::prev(range)->last) return true;
  }
  return false;
}

}  // namespace moectl
