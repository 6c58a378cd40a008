#include "core/jinja/lexer.h"

#include <fmt/core.h>

#include <charconv>
#include <string_view>

#include "core/base/error.h"
#include "core/jinja/str.h"

namespace moectl::jinja {

void bad_template(int line, const std::string& reason) {
  throw Error(Code::kBadData, fmt::format("chat template, line {}: {}", line, reason));
}

namespace {

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool is_decimal(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_char(char c) {
  return is_name_start(c) || is_decimal(c);
}

// "\r\n" and "\r" become "\n"; one trailing newline goes.
std::string normalize_newlines(const std::string& source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(normalize_newlines(source)) {}

  std::vector<Token> run() {
    while (pos_ < source_.size()) {
      size_t tag = find_tag();
      std::string_view data = view().substr(pos_, tag - pos_);
      if (tag == source_.size()) {
        add_text(data);
        move_to(tag);
        break;
      }
      char kind = source_[tag + 1];
      char sign =
          tag + 2 < source_.size() && (source_[tag + 2] == '-' || source_[tag + 2] == '+') ? source_[tag + 2] : 0;
      add_text(strip_before(data, sign, kind == '{'));
      move_to(tag);
      if (size_t raw = match_raw("raw", false)) {
        move_to(raw);
        lex_raw();
        continue;
      }
      move_to(tag + (sign ? 3 : 2));
      if (kind == '#') {
        skip_comment();
      } else {
        add(kind == '{' ? Token::Kind::kVariableBegin : Token::Kind::kBlockBegin);
        lex_tag(kind == '{');
      }
    }
    add(Token::Kind::kEnd);
    return std::move(tokens_);
  }

 private:
  std::string_view view() const { return source_; }
  bool at(std::string_view text) const { return view().substr(pos_, text.size()) == text; }

  void move_to(size_t pos) {
    for (; pos_ < pos; ++pos_) line_ += source_[pos_] == '\n';
  }

  Token& add(Token::Kind kind, std::string text = {}) {
    tokens_.push_back({kind, line_, std::move(text)});
    return tokens_.back();
  }
  void add_text(std::string_view text) {
    if (!text.empty()) add(Token::Kind::kText, std::string(text));
  }

  size_t find_tag() const {
    for (size_t i = source_.find('{', pos_); i != std::string::npos; i = source_.find('{', i + 1))
      if (i + 1 < source_.size() && (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#')) return i;
    return source_.size();
  }

  size_t skip_space(size_t pos) const {
    while (pos < source_.size() && is_space(char_at(source_, pos))) pos += char_bytes(source_, pos);
    return pos;
  }

  // Text before a tag: `-` strips all whitespace; otherwise lstrip_blocks strips the tag's indentation.
  std::string_view strip_before(std::string_view data, char sign, bool variable) const {
    if (sign == '-') return data.substr(0, strip(Str(std::string(data), true), nullptr, false, true).size());
    if (sign == '+' || variable) return data;
    size_t line_start = data.rfind('\n') == std::string_view::npos ? 0 : data.rfind('\n') + 1;
    if (line_start == 0 && !at_line_start_) return data;
    for (size_t i = line_start; i < data.size(); i += char_bytes(data, i))
      if (!is_space(char_at(data, i))) return data;
    return data.substr(0, line_start);
  }

  // End of a tag that stands at pos_ ("%}", "-%}", "+%}" with the whitespace it takes); 0 when none does.
  size_t match_end(size_t pos, std::string_view close, bool trims_newline) const {
    if (pos >= source_.size()) return 0;
    char sign = source_[pos] == '-' || (source_[pos] == '+' && trims_newline) ? source_[pos] : 0;
    if (view().substr(pos + (sign ? 1 : 0), 2) != close) return 0;
    size_t end = pos + (sign ? 3 : 2);
    if (sign == '-') return skip_space(end);
    if (!sign && trims_newline && end < source_.size() && source_[end] == '\n') ++end;
    return end;
  }

  // End of a {% raw %} or {% endraw %} tag at pos_; 0 when there is none.
  size_t match_raw(std::string_view word, bool closing) const {
    if (!at("{%")) return 0;
    size_t pos = pos_ + 2;
    if (pos < source_.size() && (source_[pos] == '-' || source_[pos] == '+')) ++pos;
    pos = skip_space(pos);
    if (view().substr(pos, word.size()) != word) return 0;
    pos = skip_space(pos + word.size());
    if (closing) return match_end(pos, "%}", true);
    if (view().substr(pos, 2) == "%}") return pos + 2;
    return view().substr(pos, 3) == "-%}" ? skip_space(pos + 3) : 0;
  }

  void lex_raw() {
    int start_line = line_;
    bool line_start = ends_line();
    size_t begin = pos_;
    for (size_t i = source_.find("{%", pos_); i != std::string::npos; i = source_.find("{%", i + 1)) {
      move_to(i);
      size_t end = match_raw("endraw", true);
      if (!end) continue;
      char sign = i + 2 < source_.size() && (source_[i + 2] == '-' || source_[i + 2] == '+') ? source_[i + 2] : 0;
      at_line_start_ = line_start;
      add_text(strip_before(view().substr(begin, i - begin), sign, false));
      move_to(end);
      at_line_start_ = ends_line();
      return;
    }
    bad_template(start_line, "missing end of raw block; expected {% endraw %}");
  }

  bool ends_line() const { return pos_ > 0 && source_[pos_ - 1] == '\n'; }

  void skip_comment() {
    size_t close = source_.find("#}", pos_);
    if (close == std::string::npos) bad_template(line_, "missing end of comment tag; expected #}");
    bool sign = close > pos_ && (source_[close - 1] == '-' || source_[close - 1] == '+');
    move_to(match_end(close - (sign ? 1 : 0), "#}", true));
    at_line_start_ = ends_line();
  }

  void lex_tag(bool variable) {
    std::string open;  // brackets that wait for their end
    while (true) {
      if (open.empty()) {
        if (size_t end = match_end(pos_, variable ? "}}" : "%}", !variable)) {
          add(variable ? Token::Kind::kVariableEnd : Token::Kind::kBlockEnd);
          move_to(end);
          at_line_start_ = ends_line();
          return;
        }
      }
      if (pos_ >= source_.size()) bad_template(line_, variable ? "missing }}" : "missing %}");
      char c = source_[pos_];
      if (is_space(char_at(source_, pos_))) {
        move_to(skip_space(pos_));
      } else if (is_name_start(c)) {
        size_t end = pos_;
        while (end < source_.size() && is_name_char(source_[end])) ++end;
        add(Token::Kind::kName, source_.substr(pos_, end - pos_));
        move_to(end);
      } else if (is_decimal(c)) {
        lex_number();
      } else if (c == '\'' || c == '"') {
        lex_string();
      } else {
        lex_operator(open);
      }
    }
  }

  void lex_operator(std::string& open) {
    for (std::string_view op : {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
                                "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"}) {
      if (!at(op)) continue;
      char c = op[0];
      if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
      if (c == ')' || c == ']' || c == '}') {
        if (open.empty()) bad_template(line_, fmt::format("unexpected '{}'", c));
        if (open.back() != c) bad_template(line_, fmt::format("unexpected '{}', expected '{}'", c, open.back()));
        open.pop_back();
      }
      add(Token::Kind::kOperator, std::string(op));
      return move_to(pos_ + op.size());
    }
    bad_template(line_, fmt::format("unexpected character U+{:04X}", static_cast<uint32_t>(char_at(source_, pos_))));
  }

  std::string digits(size_t& end, bool (*accepts)(char)) const {
    std::string out;
    while (end < source_.size() && (accepts(source_[end]) || (source_[end] == '_' && end + 1 < source_.size() &&
                                                              !out.empty() && accepts(source_[end + 1]))))
      if (char c = source_[end++]; c != '_') out += c;
    return out;
  }

  void lex_number() {
    size_t end = pos_;
    char prefix = pos_ + 1 < source_.size() ? static_cast<char>(source_[pos_ + 1] | 0x20) : 0;
    if (source_[pos_] == '0' && (prefix == 'x' || prefix == 'o' || prefix == 'b')) {
      end += 2;
      std::string text = digits(end, [](char c) { return is_decimal(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f'); });
      return add_integer(text, prefix == 'x' ? 16 : prefix == 'o' ? 8 : 2, end);
    }
    std::string text = digits(end, is_decimal);
    bool real = false;
    if (pos_ == 0 || source_[pos_ - 1] != '.') {  // `a.0.1` indexes twice
      auto digit_at = [&](size_t i) { return i < source_.size() && is_decimal(source_[i]); };
      if (end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
        real = true;
        text += '.' + digits(++end, is_decimal);
      }
      if (end < source_.size() && (source_[end] | 0x20) == 'e') {
        size_t exponent = end + 1;
        bool sign = exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-');
        if (digit_at(exponent + sign)) {
          real = true;
          text += sign && source_[exponent] == '-' ? "e-" : "e";
          exponent += sign;
          text += digits(exponent, is_decimal);
          end = exponent;
        }
      }
    }
    if (!real) return add_integer(text, 10, end);
    double value = 0;
    auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc{}) bad_template(line_, fmt::format("number {} is out of range", text));
    add(Token::Kind::kReal).real = value;
    move_to(end);
  }

  void add_integer(const std::string& text, int base, size_t end) {
    int64_t value = 0;
    auto result = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (text.empty() || result.ec != std::errc{} || result.ptr != text.data() + text.size() ||
        (base == 10 && text.size() > 1 && text[0] == '0' && value != 0))
      bad_template(line_,
                   fmt::format("'{}' is not an integer of 64 bits", view().substr(pos_, end - pos_).substr(0, 40)));
    add(Token::Kind::kInteger).integer = value;
    move_to(end);
  }

  void lex_string() {
    char quote = source_[pos_];
    int start_line = line_;
    std::string value;
    size_t i = pos_ + 1;
    while (i < source_.size() && source_[i] != quote) {
      if (source_[i] != '\\') {
        value += source_[i++];
      } else {
        ++i;
        append_escape(i, value);
      }
    }
    if (i >= source_.size()) bad_template(start_line, "a string has no end");
    add(Token::Kind::kString, std::move(value));
    move_to(i + 1);
  }

  // The escape whose letter stands at `i`, as Python's unicode-escape reads it; moves `i` behind it.
  void append_escape(size_t& i, std::string& value) const {
    if (i >= source_.size()) return;
    char c = source_[i++];
    static constexpr std::string_view kLetters = "abfnrtv\\'\"\n", kMeaning = "\a\b\f\n\r\t\v\\'\"";
    if (size_t k = kLetters.find(c); k != std::string_view::npos) {
      if (c != '\n') value += kMeaning[k];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      append_code(i, c == 'x' ? 2 : c == 'u' ? 4 : 8, value);
    } else if (c >= '0' && c <= '7') {
      uint32_t code = static_cast<uint32_t>(c - '0');
      for (int n = 1; n < 3 && i < source_.size() && source_[i] >= '0' && source_[i] <= '7'; ++n)
        code = code * 8 + static_cast<uint32_t>(source_[i++] - '0');
      value += encode_utf8(code);
    } else if (c == 'N') {
      bad_template(line_, "character names (\\N{...}) are not supported; use \\u");
    } else {
      value += '\\';
      value += c;
    }
  }

  void append_code(size_t& i, size_t num_digits, std::string& value) const {
    uint32_t code = 0;
    const char* begin = source_.data() + i;
    const char* end = source_.data() + std::min(source_.size(), i + num_digits);
    auto result = std::from_chars(begin, end, code, 16);
    std::string text = encode_utf8(code);
    if (result.ec != std::errc{} || result.ptr != begin + num_digits || text.empty())
      bad_template(line_, "a \\x, \\u or \\U escape does not name a character");
    value += text;
    i += num_digits;
  }

  std::string source_;
  size_t pos_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string source) {
  return Lexer(std::move(source)).run();
}

}  // namespace moectl::jinja
