// Text made from a format string: printf-style (the `%` operator and the format filter) and Python's str.format. Both
// read a Spec and share what follows from it. Numbers print as untrusted text, as everywhere.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "core/jinja/functions.h"

namespace moectl::jinja {
namespace {

constexpr int kMaxWidth = 100'000, kMaxPrecision = 300;

struct Spec {
  Str fill{" ", false};    // one character
  char align = 0;          // < > ^, or = for fill between sign and digits; 0: as the type wants it
  char sign = '-';         // what a positive number gets: - nothing, + or a space
  bool alternate = false;  // 0x, 0o, 0b
  char grouping = 0;       // , or _ between thousands
  int width = 0;
  int precision = -1;
  char type = 0;

  bool is_integer_type() const { return type == 'd' || type == 'x' || type == 'X' || type == 'o' || type == 'b'; }
};

Str pad(Context& ctx, const Str& head, const Str& body, const Spec& spec, char align) {
  int64_t missing = spec.width - static_cast<int64_t>(count_chars(head.text()) + count_chars(body.text()));
  missing = std::max<int64_t>(missing, 0);
  Str out;
  if (align == '=') {
    out = head;
    out.append(pad_text(ctx, body, missing, 0, spec.fill).str());
    return out;
  }
  out = head;
  out.append(body);
  int64_t left = align == '<' ? 0 : align == '>' ? missing : missing / 2;
  return pad_text(ctx, out, left, missing - left, spec.fill).str();
}

Str format_text(Context& ctx, Str text, const Spec& spec) {
  if ((spec.type != 0 && spec.type != 's') || spec.sign != '-' || spec.alternate || spec.grouping || spec.align == '=')
    fail("this format does not suit a string");
  if (spec.precision >= 0) {
    ctx.bytes(text.size());
    size_t end = 0;
    for (int i = 0; i < spec.precision && end < text.size(); ++i) end += char_bytes(text.text(), end);
    text = text.slice(0, end);
  }
  return pad(ctx, Str(), text, spec, spec.align ? spec.align : '<');
}

void group_thousands(std::string& digits, char separator) {
  size_t end = digits.find_first_not_of("0123456789");
  for (size_t i = std::min(end, digits.size()); i > 3; i -= 3) digits.insert(i - 3, 1, separator);
}

std::string integer_digits(uint64_t n, const Spec& spec) {
  if (spec.precision >= 0) fail("a precision is not supported for integers");
  switch (spec.type) {
    case 'x':
      return fmt::format("{:x}", n);
    case 'X':
      return fmt::format("{:X}", n);
    case 'o':
      return fmt::format("{:o}", n);
    case 'b':
      return fmt::format("{:b}", n);
    default:
      return fmt::format("{}", n);
  }
}

std::string real_digits(double d, const Spec& spec) {
  int precision = spec.precision < 0 ? 6 : spec.precision;
  switch (spec.type) {
    case 0:
      if (spec.precision >= 0) fail("a precision needs a type, such as f");
      return format_real(d);
    case 'e':
      return fmt::format("{:.{}e}", d, precision);
    case 'E':
      return fmt::format("{:.{}E}", d, precision);
    case 'f':
      return fmt::format("{:.{}f}", d, precision);
    case 'F':
      return fmt::format("{:.{}F}", d, precision);
    case 'g':
      return fmt::format("{:.{}g}", d, precision);
    case 'G':
      return fmt::format("{:.{}G}", d, precision);
    case '%':
      return fmt::format("{:.{}f}%", d * 100, precision);
    default:
      fail(fmt::format("the format type '{}' is not supported for a float", spec.type));
  }
}

Str format_number(Context& ctx, const Value& v, const Spec& spec) {
  bool integer = v.is_integer() && (spec.type == 0 || spec.is_integer_type());
  bool negative = integer ? v.integer() < 0 : std::signbit(v.real());
  std::string digits;
  if (integer) {
    auto n = static_cast<uint64_t>(v.integer());
    digits = integer_digits(negative ? 0 - n : n, spec);
  } else {
    if (spec.alternate) fail("the format flag # is not supported for floats");
    digits = real_digits(std::fabs(v.real()), spec);
  }
  if (spec.grouping) {
    if (spec.align == '=' || (spec.type && spec.is_integer_type() && spec.type != 'd'))
      fail("grouping together with zeros or another base is not supported");
    group_thousands(digits, spec.grouping);
  }
  std::string head = negative ? "-" : spec.sign == '-' ? "" : std::string(1, spec.sign);
  if (spec.alternate && integer && spec.type && spec.type != 'd') head += std::string("0") + spec.type;
  return pad(ctx, Str(head, false), Str(digits, false), spec, spec.align ? spec.align : '>');
}

// Reads a number at `i`, at most `max`.
int read_number(const std::string& text, size_t& i, int max) {
  int n = 0;
  for (; i < text.size() && text[i] >= '0' && text[i] <= '9'; ++i) n = std::min(n * 10 + (text[i] - '0'), max);
  return n;
}

int read_precision(const std::string& text, size_t& i) {
  if (i >= text.size() || text[i] != '.') return -1;
  ++i;
  return read_number(text, i, kMaxPrecision);
}

// ------------------------------------------------------------------------------------------------ printf
Str printf_value(Context& ctx, const Value& v, Spec spec) {
  char kind = spec.type;
  bool left = spec.align == '<';
  if (kind == 's' || kind == 'r') {
    Spec plain;
    plain.width = spec.width;
    plain.precision = spec.precision;
    plain.align = left ? '<' : '>';
    return format_text(ctx, kind == 's' ? to_str(ctx, v) : to_repr(ctx, v), plain);
  }
  if (kind == 'c') {
    Str c = v.is_string() ? v.str() : Str(encode_utf8(static_cast<char32_t>(integer_argument(v, "%c"))), false);
    if (count_chars(c.text()) != 1) fail("the conversion %c needs one character");
    spec.type = 's';
    return printf_value(ctx, Value(std::move(c)), spec);
  }
  if (!v.is_number()) fail(fmt::format("the conversion %{} needs a number, not '{}'", kind, type_name(v)));
  if (kind == 'i' || kind == 'u') spec.type = 'd';
  if (!spec.is_integer_type()) return format_number(ctx, v, spec);
  if (v.is_integer()) return format_number(ctx, v, spec);
  if (spec.type != 'd' || !std::isfinite(v.real()) || std::fabs(v.real()) >= 9e18)
    fail(fmt::format("the conversion %{} needs an integer of 64 bits", kind));
  return format_number(ctx, Value(static_cast<int64_t>(v.real())), spec);
}

// Values of a printf format: one after another, or by name from a mapping.
class PrintfValues {
 public:
  explicit PrintfValues(const Value& values) : values_(values) {
    is_tuple_ = values.is_list() && values.list().kind == Sequence::kTuple;
  }
  const Value& next() {
    size_t size = is_tuple_ ? values_.list().items.size() : 1;
    if (used_ >= size) fail("not enough arguments for the format string");
    return is_tuple_ ? values_.list().items[used_++] : (++used_, values_);
  }
  const Value& named(Context& ctx, const std::string& name) {
    if (!values_.is_dict()) fail("a format with names needs a mapping");
    const Value* value = find(ctx, values_.dict(), name);
    if (!value) fail(fmt::format("the format's mapping has no key '{}'", name.substr(0, 60)));
    return *value;
  }
  void check_all_used() const {
    bool must = is_tuple_ || !(values_.is_dict() || values_.is_list());  // as Python: a container may be ignored
    if (must && used_ < (is_tuple_ ? values_.list().items.size() : 1))
      fail("not all arguments were used by the format string");
  }

 private:
  const Value& values_;
  bool is_tuple_;
  size_t used_ = 0;
};

}  // namespace

Value printf_text(Context& ctx, const Str& format, const Value& values) {
  static constexpr std::string_view kTypes = "srciduxXoeEfFgG";
  const std::string& text = format.text();
  if (format.is_markup()) fail("a format that safe or escape returned is not supported");
  ctx.bytes(text.size());
  PrintfValues source(values);
  Str out;
  for (size_t pos = 0; pos < text.size();) {
    size_t percent = std::min(text.find('%', pos), text.size());
    out.append(format, pos, percent);
    if (percent == text.size()) break;
    size_t i = percent + 1;
    std::string name;
    bool has_name = i < text.size() && text[i] == '(';
    if (has_name) {
      size_t end = text.find(')', i);
      if (end == std::string::npos) fail("a name in a format string has no ')'");
      name = text.substr(i + 1, end - i - 1);
      i = end + 1;
    }
    Spec spec;
    bool zeros = false;
    for (; i < text.size() && std::string_view("-+ #0").find(text[i]) != std::string_view::npos; ++i) {
      if (text[i] == '-') spec.align = '<';
      if (text[i] == '0') zeros = true;
      if (text[i] == '#') spec.alternate = true;
      if (text[i] == '+' || (text[i] == ' ' && spec.sign == '-')) spec.sign = text[i];
    }
    if (zeros && !spec.align) {
      spec.align = '=';
      spec.fill = Str("0", false);
    }
    spec.width = read_number(text, i, kMaxWidth);
    spec.precision = read_precision(text, i);
    if (i >= text.size()) fail("a format string ends inside a % conversion");
    spec.type = text[i++];
    pos = i;
    if (spec.type == '%') {
      out.append("%", format.trusted_at(percent));
      continue;
    }
    if (kTypes.find(spec.type) == std::string_view::npos)
      fail(fmt::format("the conversion %{} is not supported", spec.type));
    out.append(printf_value(ctx, has_name ? source.named(ctx, name) : source.next(), spec));
    ctx.check_size(out.size());
  }
  source.check_all_used();
  return Value(std::move(out));
}

// ------------------------------------------------------------------------------------------------ str.format
namespace {

// [[fill]align][sign][#][0][width][grouping][.precision][type]
Spec parse_spec(const Str& source) {
  const std::string& text = source.text();
  auto is_align = [&](size_t at) {
    return at < text.size() && std::string_view("<>^=").find(text[at]) != std::string_view::npos;
  };
  Spec spec;
  size_t i = 0;
  size_t first = text.empty() ? 0 : char_bytes(text, 0);
  if (is_align(first)) {
    spec.fill = source.slice(0, first);
    spec.align = text[first];
    i = first + 1;
  } else if (is_align(0)) {
    spec.align = text[i++];
  }
  auto accept = [&](std::string_view chars) {
    return i < text.size() && chars.find(text[i]) != std::string_view::npos ? text[i++] : '\0';
  };
  if (char sign = accept("-+ ")) spec.sign = sign;
  spec.alternate = accept("#") != 0;
  if (accept("0") && !spec.align) {
    spec.align = '=';
    spec.fill = Str("0", false);
  }
  spec.width = read_number(text, i, kMaxWidth);
  spec.grouping = accept(",_");
  spec.precision = read_precision(text, i);
  spec.type = accept("sdxXobeEfFgG%");
  if (i < text.size()) fail("this format specification is not supported");
  return spec;
}

Str format_value(Context& ctx, const Value& v, const Str& source) {
  if (source.empty()) return to_str(ctx, v);
  if (!v.is_string() && !v.is_number()) fail(fmt::format("'{}' takes no format specification", type_name(v)));
  Spec spec = parse_spec(source);
  if (v.is_string()) return format_text(ctx, v.str(), spec);
  if (spec.type == 's' || (v.is(Value::Type::kReal) && spec.is_integer_type()))
    fail(fmt::format("the format type '{}' does not suit '{}'", spec.type, type_name(v)));
  return format_number(ctx, v, spec);
}

class Formatter {
 public:
  Formatter(Context& ctx, const Args& args) : ctx_(ctx), args_(args) {}

  // What `{field!conversion:spec}` stands for; `field` is the text between the braces.
  Str replace(const Str& field) {
    const std::string& text = field.text();
    size_t colon = std::min(text.find(':'), text.size());
    size_t bang = std::min(text.find('!'), colon);
    Value v = look_up(text.substr(0, bang));
    if (bang < colon) {
      std::string conversion = text.substr(bang + 1, colon - bang - 1);
      if (conversion != "r" && conversion != "s") fail("only the conversions !r and !s are supported");
      v = Value(conversion == "r" ? to_repr(ctx_, v) : to_str(ctx_, v));
    }
    return format_value(ctx_, v, colon < text.size() ? field.slice(colon + 1, text.size()) : Str());
  }

 private:
  // `0`, `name`, nothing for the next argument; then any number of `.attribute` and `[key]`.
  Value look_up(const std::string& path) {
    size_t end = std::min(path.find_first_of(".["), path.size());
    Value v = argument(path.substr(0, end));
    while (end < path.size()) {
      ctx_.step();
      bool item = path[end] == '[';
      size_t stop = item ? path.find(']', end) : std::min(path.find_first_of(".[", end + 1), path.size());
      if (stop == std::string::npos) fail("a format field has no ']'");
      std::string name = path.substr(end + 1, stop - end - 1);
      if (name.empty()) fail("a format field has an empty attribute");
      if (item && is_index(name)) {
        v = get_item(ctx_, v, Value(int64_t{std::stoi(name)}));
      } else {
        v = item ? get_item(ctx_, v, Value(Str(name, false))) : get_attribute(ctx_, v, name);
      }
      end = stop + (item ? 1 : 0);
      if (end < path.size() && path[end] != '.' && path[end] != '[') fail("a format field is malformed");
    }
    return v;
  }

  static bool is_index(const std::string& name) {
    return !name.empty() && name.size() < 10 && name.find_first_not_of("0123456789") == std::string::npos;
  }

  const Value& argument(const std::string& name) {
    if (name.empty() || is_index(name)) {
      if (numbering_ && numbering_ != (name.empty() ? 'a' : 'm')) fail("a format mixes {} and {0}");
      numbering_ = name.empty() ? 'a' : 'm';
      size_t index = name.empty() ? next_++ : static_cast<size_t>(std::stoi(name));
      if (index >= args_.positional.size()) fail("not enough arguments for the format string");
      return args_.positional[index];
    }
    ctx_.step(1 + static_cast<int64_t>(args_.named.size() / 8));
    for (const auto& [key, value] : args_.named)
      if (key == name) return value;
    fail(fmt::format("format: there is no argument '{}'", name.substr(0, 60)));
  }

  Context& ctx_;
  const Args& args_;
  size_t next_ = 0;
  char numbering_ = 0;
};

}  // namespace

Value str_format(Context& ctx, const Value& self, Args& args) {
  const Str& format = self.str();
  const std::string& text = format.text();
  ctx.bytes(text.size());
  Formatter formatter(ctx, args);
  Str out;
  for (size_t pos = 0; pos < text.size();) {
    size_t brace = std::min(text.find_first_of("{}", pos), text.size());
    out.append(format, pos, brace);
    if (brace == text.size()) break;
    if (brace + 1 < text.size() && text[brace + 1] == text[brace]) {
      out.append(format, brace, brace + 1);
      pos = brace + 2;
      continue;
    }
    size_t end = text.find_first_of("{}", brace + 1);
    if (text[brace] == '}' || end == std::string::npos) fail("a format string has a single brace");
    if (text[end] == '{') fail("braces inside a format field are not supported");
    out.append(formatter.replace(format.slice(brace + 1, end)));
    ctx.check_size(out.size());
    pos = end + 1;
  }
  return Value(std::move(out));
}

}  // namespace moectl::jinja
