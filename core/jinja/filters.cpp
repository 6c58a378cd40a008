// Filters on text, numbers and single values. Those that walk sequences are in jinja_sequence_filters.cpp.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "core/jinja/functions.h"

namespace moectl::jinja {
namespace {

Value filter_default(Context&, const Value& self, Args& args) {
  Bound a = bind(args, "default", {"default_value", "boolean"});
  bool replace = self.is_undefined() || (a[1] && truthy(*a[1]) && !truthy(self));
  if (!replace) return self;
  return a[0] ? *a[0] : Value(Str());
}

// ------------------------------------------------------------------------------------------------ text
Value filter_trim(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "trim", {"chars"});
  Str s = to_str(ctx, self);
  const std::string* chars = a[0] && !a[0]->is_none() ? &string_argument(*a[0], "trim: chars").text() : nullptr;
  ctx.bytes(s.size() * (1 + (chars ? chars->size() : 0)));
  return Value(strip(s, chars, true, true).marked(s.is_markup()));
}

template <Str (*Map)(const Str&), bool kKeepsMarkup = true>
Value filter_case(Context& ctx, const Value& self, Args& args) {
  bind(args, "a case filter", {});
  Str s = to_str(ctx, self);
  ctx.bytes(s.size() * 8);
  bool is_markup = kKeepsMarkup && s.is_markup();
  s = Map(s);
  ctx.check_size(s.size());
  return Value(std::move(s).marked(is_markup));
}

// Jinja's own title: words begin after whitespace and -({[<, unlike Python's str.title.
Str title(const Str& s) {
  Str out;
  const std::string& text = s.text();
  bool starts = true;
  for (size_t pos = 0; pos < text.size();) {
    size_t end = pos + char_bytes(text, pos);
    auto separates = [&](size_t at) {
      return is_space(char_at(text, at)) || std::string_view("-({[<").find(text[at]) != std::string_view::npos;
    };
    if (!starts && !separates(pos))
      while (end < text.size() && !separates(end)) end += char_bytes(text, end);
    Str piece = s.slice(pos, end);
    bool separator = separates(pos);
    out.append(separator ? piece : starts ? to_upper(piece) : to_lower(piece));
    starts = separator;
    pos = end;
  }
  return out;
}

Value filter_string(Context& ctx, const Value& self, Args& args) {
  bind(args, "string", {});
  return Value(to_str(ctx, self));
}

Value filter_safe(Context& ctx, const Value& self, Args& args) {
  bind(args, "safe", {});
  return Value(to_str(ctx, self).marked());
}

Value filter_escape(Context& ctx, const Value& self, Args& args) {
  bind(args, "escape", {});
  if (self.is_string() && self.str().is_markup()) return self;
  return Value(escape_text(ctx, to_str(ctx, self)));
}

Value filter_forceescape(Context& ctx, const Value& self, Args& args) {
  bind(args, "forceescape", {});
  return Value(escape_text(ctx, to_str(ctx, self)));
}

Value filter_replace(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "replace", {"old", "new", "count"});
  if (!a[0] || !a[1]) fail("replace needs the old and the new text");
  int64_t count = a[2] && !a[2]->is_none() ? integer_argument(*a[2], "replace: count") : -1;
  return replace_text(ctx, to_str(ctx, self), to_str(ctx, *a[0]), to_str(ctx, *a[1]), count);
}

Value filter_indent(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "indent", {"width", "first", "blank"});
  Str indentation;
  if (a[0] && a[0]->is_string()) {
    indentation = a[0]->str();
  } else {
    indentation = repeat_text(ctx, Str(" ", false), a[0] ? integer_argument(*a[0], "indent: width") : 4).str();
  }
  bool first = a[1] && truthy(*a[1]), blank = a[2] && truthy(*a[2]);
  Str text = string_argument(self, "indent: the value");
  bool is_markup = text.is_markup();
  text.append("\n", false);  // as jinja2 does, so that the last line counts even when it is empty
  Str out = first ? indentation : Str();
  bool at_start = true;
  for (const Str& line : split_lines(ctx, text)) {
    ctx.bytes(line.size() + indentation.size());
    ctx.check_size(out.size() + line.size() + indentation.size() + 1);
    if (!at_start) {
      out.append("\n", false);
      if (blank || !line.empty()) out.append(indentation);
    }
    at_start = false;
    out.append(line);
  }
  return Value(std::move(out).marked(is_markup));
}

Value filter_center(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "center", {"width"});
  Value text(to_str(ctx, self));
  Args inner{{a[0] ? *a[0] : Value(int64_t{80})}, {}};
  return find_method(text, "center").callable().native(ctx, text, inner);
}

Value filter_truncate(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "truncate", {"length", "killwords", "end", "leeway"});
  Str tail = a[2] ? string_argument(*a[2], "truncate: end") : Str("...", false);
  int64_t length = a[0] ? integer_argument(*a[0], "truncate: length") : 255;
  int64_t leeway = a[3] && !a[3]->is_none() ? integer_argument(*a[3], "truncate: leeway") : 5;
  auto tail_chars = static_cast<int64_t>(count_chars(tail.text()));
  if (length < tail_chars || leeway < 0) fail("truncate: length must hold `end`, leeway must not be negative");
  if (static_cast<int64_t>(moectl::jinja::length(ctx, self)) - leeway <= length) return self;
  const Str& s = string_argument(self, "truncate: the value");
  if (s.is_markup()) fail("truncate: text that safe or escape returned is not supported");
  ctx.bytes(s.size());
  size_t end = 0;
  for (int64_t i = tail_chars; i < length; ++i) end += char_bytes(s.text(), end);
  if (!a[1] || !truthy(*a[1])) end = std::min(s.text().substr(0, end).rfind(' '), end);
  Str out = s.slice(0, end);
  out.append(tail);
  return Value(std::move(out));
}

Value filter_wordcount(Context& ctx, const Value& self, Args& args) {
  bind(args, "wordcount", {});
  Str s = to_str(ctx, self);
  ctx.bytes(4 * s.size());
  int64_t count = 0;
  bool in_word = false;
  for (size_t pos = 0; pos < s.size(); pos += char_bytes(s.text(), pos)) {
    char32_t c = char_at(s.text(), pos);
    bool of_word = is_alpha(c) || is_digit(c) || c == '_';
    count += of_word && !in_word;
    in_word = of_word;
  }
  return Value(count);
}

Value filter_format(Context& ctx, const Value& self, Args& args) {
  if (args.named.empty())
    return printf_text(ctx, to_str(ctx, self), make_list(ctx, std::move(args.positional), Sequence::kTuple));
  if (!args.positional.empty()) fail("format takes positional or named arguments, not both");
  std::vector<std::pair<Value, Value>> entries;
  for (auto& [name, value] : args.named) entries.emplace_back(Value(Str(name, false)), std::move(value));
  return printf_text(ctx, to_str(ctx, self), make_dict(ctx, std::move(entries)));
}

// ------------------------------------------------------------------------------------------------ numbers
// The number in `text` as Python's float() reads it; false when there is none.
bool parse_real(const std::string& text, double* out) {
  std::string s = strip(Str(text, false), nullptr, true, true).text();
  if (s.size() > 400) return false;
  for (size_t i = s.find('_'); i != std::string::npos; i = s.find('_', i)) {
    auto digit = [&](size_t k) { return k < s.size() && s[k] >= '0' && s[k] <= '9'; };
    if (i == 0 || !digit(i - 1) || !digit(i + 1)) return false;
    s.erase(i, 1);
  }
  size_t start = !s.empty() && s[0] == '+' ? 1 : 0;
  if (start == 1 && s.size() > 1 && s[1] == '-') return false;
  auto result = std::from_chars(s.data() + start, s.data() + s.size(), *out);
  if (result.ptr != s.data() + s.size() || s.size() == start || s.find('(') != std::string::npos) return false;
  if (result.ec == std::errc::result_out_of_range) *out = s.find("e-") != std::string::npos ? 0.0 : HUGE_VAL;
  return result.ec != std::errc::invalid_argument;
}

bool parse_integer(const std::string& text, int base, int64_t* out) {
  std::string s = strip(Str(text, false), nullptr, true, true).text();
  bool negative = !s.empty() && s[0] == '-';
  if (!s.empty() && (s[0] == '-' || s[0] == '+')) s.erase(0, 1);
  char prefix = s.size() > 2 && s[0] == '0' ? static_cast<char>(s[1] | 0x20) : 0;
  if ((base == 16 && prefix == 'x') || (base == 8 && prefix == 'o') || (base == 2 && prefix == 'b')) s.erase(0, 2);
  if (s.empty() || s[0] == '-' || s[0] == '_' || s.back() == '_' || s.find("__") != std::string::npos) return false;
  std::erase(s, '_');
  if (negative) s.insert(s.begin(), '-');
  auto result = std::from_chars(s.data(), s.data() + s.size(), *out, base);
  if (result.ptr != s.data() + s.size()) return false;
  if (result.ec == std::errc::result_out_of_range) fail("int: the number does not fit 64 bits");
  return result.ec == std::errc{};
}

int64_t truncate(double d) {
  if (std::isnan(d)) fail("int: nan is no integer");
  d = std::trunc(d);
  if (d < -9223372036854775808.0 || d >= 9223372036854775808.0) fail("int: the number does not fit 64 bits");
  return static_cast<int64_t>(d);
}

void refuse_undefined(const Value& v) {
  if (v.is_undefined()) fail(v.undefined_reason() ? *v.undefined_reason() : "an undefined value is no number");
}

Value filter_int(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "int", {"default", "base"});
  refuse_undefined(self);
  Value missing = a[0] ? *a[0] : Value(int64_t{0});
  int64_t base = a[1] ? integer_argument(*a[1], "int: base") : 10;
  if (base < 2 || base > 36) fail("int: base must be between 2 and 36");
  if (self.is_integer()) return Value(self.integer());
  if (self.is_number()) return std::isnan(self.real()) ? missing : Value(truncate(self.real()));
  if (!self.is_string()) return missing;
  ctx.bytes(self.text().size());
  int64_t n;
  if (parse_integer(self.text(), static_cast<int>(base), &n)) return Value(n);
  double d;
  if (!parse_real(self.text(), &d) || !std::isfinite(d)) return missing;
  return Value(truncate(d));
}

Value filter_float(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "float", {"default"});
  refuse_undefined(self);
  if (self.is_number()) return Value(self.real());
  double d = 0;
  if (self.is_string()) {
    ctx.bytes(self.text().size());
    if (parse_real(self.text(), &d)) return Value(d);
  }
  return a[0] ? *a[0] : Value(0.0);
}

Value filter_round(Context&, const Value& self, Args& args) {
  Bound a = bind(args, "round", {"precision", "method"});
  refuse_undefined(self);
  if (!self.is_number()) fail(fmt::format("round: '{}' is no number", type_name(self)));
  int64_t precision = a[0] ? integer_argument(*a[0], "round: precision") : 0;
  std::string method = a[1] ? string_argument(*a[1], "round: method").text() : "common";
  if (method != "common" && method != "ceil" && method != "floor") fail("round: method must be common, ceil or floor");
  if (precision < 0 || precision > 300) fail("round: precision must be between 0 and 300");
  if (method == "common") {
    if (self.is_integer()) return Value(self.integer());
    if (!std::isfinite(self.real())) return self;
    std::string text = fmt::format("{:.{}f}", self.real(), precision);  // rounds the exact value, halves to even
    double d = 0;
    std::from_chars(text.data(), text.data() + text.size(), d);
    return Value(d);
  }
  double scale = std::pow(10.0, static_cast<double>(precision));
  double scaled = self.real() * scale;
  if (!std::isfinite(scaled)) fail("round: the number is too big");
  return Value((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

Value filter_abs(Context&, const Value& self, Args& args) {
  bind(args, "abs", {});
  refuse_undefined(self);
  if (self.is(Value::Type::kReal)) return Value(std::fabs(self.real()));
  int64_t n = integer_argument(self, "abs: the value");
  if (n == INT64_MIN) fail("integer overflow: integers have 64 bits");
  return Value(n < 0 ? -n : n);
}

}  // namespace

Native find_filter(std::string_view name) {
  static const std::unordered_map<std::string_view, Native> kFilters = {
      {"default", filter_default},
      {"d", filter_default},
      {"trim", filter_trim},
      {"upper", filter_case<to_upper>},
      {"lower", filter_case<to_lower>},
      {"capitalize", filter_case<to_capitalized>},
      {"title", filter_case<title, false>},
      {"string", filter_string},
      {"safe", filter_safe},
      {"escape", filter_escape},
      {"e", filter_escape},
      {"forceescape", filter_forceescape},
      {"replace", filter_replace},
      {"indent", filter_indent},
      {"center", filter_center},
      {"format", filter_format},
      {"truncate", filter_truncate},
      {"wordcount", filter_wordcount},
      {"int", filter_int},
      {"float", filter_float},
      {"round", filter_round},
      {"abs", filter_abs},
      {"tojson", filter_tojson},
  };
  auto found = kFilters.find(name);
  return found == kFilters.end() ? find_sequence_filter(name) : found->second;
}

}  // namespace moectl::jinja
