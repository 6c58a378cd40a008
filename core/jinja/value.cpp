#include "core/jinja/value.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/base/error.h"

namespace moectl::jinja {

using Type = Value::Type;

void fail(std::string message) {
  throw Error(Code::kInvalidArgument, std::move(message));
}

void Context::out_of_steps() {
  fail("the template needs too many steps (loop iterations and bytes handled)");
}
void Context::string_too_long(size_t n) {
  fail(fmt::format("a string of {} bytes is over the limit of {} bytes", n, max_bytes_));
}

Value Value::undefined(std::string reason) {
  Value v;
  v.v_ = Undefined{std::make_shared<const std::string>(std::move(reason))};
  return v;
}

bool Value::same_object(const Value& other) const {
  if (type() != other.type()) return false;
  switch (type()) {
    case Type::kUndefined:
      return false;
    case Type::kNone:
      return true;
    case Type::kBool:
      return boolean() == other.boolean();
    case Type::kInt:
      return integer() == other.integer();
    case Type::kReal:
      return real() == other.real();
    case Type::kString:
      return &str() == &other.str();
    case Type::kList:
      return &list() == &other.list();
    case Type::kDict:
      return &dict() == &other.dict();
    case Type::kNamespace:
      return &ns() == &other.ns();
    case Type::kLoop:
      return &loop() == &other.loop();
    case Type::kCallable:
      return &callable() == &other.callable();
  }
  return false;
}

static int depth_of(const Value& v) {
  switch (v.type()) {
    case Type::kList:
      return v.list().depth;
    case Type::kDict:
      return v.dict().depth;
    case Type::kLoop:
      return v.loop().items->depth + 1;
    case Type::kCallable:
      return depth_of(v.callable().self) + 1;
    default:
      return 0;
  }
}

static void check_depth(int depth, int max_depth) {
  if (depth > max_depth) fail(fmt::format("a value nests deeper than {} levels", max_depth));
}

void check_hashable(const Value& key) {
  if (key.is_dict() || (key.is_list() && key.list().kind == Sequence::kList))
    fail(fmt::format("unhashable type: '{}'", type_name(key)));
  if (key.is_list() && key.list().kind == Sequence::kTuple)
    for (const Value& item : key.list().items) check_hashable(item);
}

Value make_string(Context& ctx, std::string text, bool trusted) {
  ctx.new_string(text.size());
  return Value(Str(std::move(text), trusted));
}

Value make_list(Context& ctx, std::vector<Value> items, Sequence kind) {
  ctx.step(1 + static_cast<int64_t>(items.size()));
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, depth_of(item));
  check_depth(depth + 1, ctx.max_depth);
  return Value(ListPtr(std::make_shared<const List>(List{kind, std::move(items), depth + 1})));
}

Value make_dict(Context& ctx, std::vector<std::pair<Value, Value>> entries) {
  ctx.step(1 + static_cast<int64_t>(entries.size()));
  int depth = 0;
  for (const auto& [key, value] : entries) {
    check_hashable(key);
    depth = std::max({depth, depth_of(key), depth_of(value)});
  }
  check_depth(depth + 1, ctx.max_depth);
  return Value(DictPtr(std::make_shared<const Dict>(Dict{std::move(entries), depth + 1})));
}

const char* type_name(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined:
      return "Undefined";
    case Type::kNone:
      return "NoneType";
    case Type::kBool:
      return "bool";
    case Type::kInt:
      return "int";
    case Type::kReal:
      return "float";
    case Type::kString:
      return "str";
    case Type::kList:
      switch (v.list().kind) {
        case Sequence::kList:
          return "list";
        case Sequence::kTuple:
          return "tuple";
        case Sequence::kRange:
          return "range";
        case Sequence::kView:
          return "dict_view";
        case Sequence::kIterator:
          return "generator";
      }
      return "list";
    case Type::kDict:
      return "dict";
    case Type::kNamespace:
      return "Namespace";
    case Type::kLoop:
      return "LoopContext";
    case Type::kCallable:
      return v.callable().macro ? "Macro" : "function";
  }
  return "object";
}

bool truthy(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined:
    case Type::kNone:
      return false;
    case Type::kBool:
      return v.boolean();
    case Type::kInt:
      return v.integer() != 0;
    case Type::kReal:
      return v.real() != 0;
    case Type::kString:
      return !v.str().empty();
    case Type::kList:
      return v.list().kind == Sequence::kIterator || !v.list().items.empty();
    case Type::kDict:
      return !v.dict().entries.empty();
    case Type::kLoop:
      return true;
    default:
      return true;
  }
}

bool equals(Context& ctx, const Value& a, const Value& b) {
  ctx.step();
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.integer() == b.integer();
    return a.real() == b.real();
  }
  if (a.type() != b.type()) return false;
  switch (a.type()) {
    case Type::kUndefined:
      return true;
    case Type::kString:
      if (a.text().size() != b.text().size()) return false;
      ctx.bytes(a.text().size());
      return a.text() == b.text();
    case Type::kList: {
      const List &x = a.list(), &y = b.list();
      if (&x == &y) return true;
      if (x.kind != y.kind || x.kind == Sequence::kIterator || x.items.size() != y.items.size()) return false;
      for (size_t i = 0; i < x.items.size(); ++i)
        if (!equals(ctx, x.items[i], y.items[i])) return false;
      return true;
    }
    case Type::kDict: {
      const Dict &x = a.dict(), &y = b.dict();
      if (&x == &y) return true;
      if (x.entries.size() != y.entries.size()) return false;
      for (const auto& [key, value] : x.entries) {
        const Value* other = find(ctx, y, key);
        if (!other || !equals(ctx, value, *other)) return false;
      }
      return true;
    }
    default:
      return a.same_object(b);
  }
}

int compare(Context& ctx, const Value& a, const Value& b) {
  ctx.step();
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.integer() < b.integer() ? -1 : a.integer() > b.integer();
    double x = a.real(), y = b.real();
    if (std::isnan(x) || std::isnan(y)) return 2;
    return x < y ? -1 : x > y;
  }
  if (a.is_string() && b.is_string()) {
    ctx.bytes(std::min(a.text().size(), b.text().size()));
    int order = a.text().compare(b.text());  // UTF-8 orders as code points do
    return order < 0 ? -1 : order > 0;
  }
  if (a.is_list() && b.is_list() && a.list().kind == b.list().kind &&
      (a.list().kind == Sequence::kList || a.list().kind == Sequence::kTuple)) {
    const auto &x = a.list().items, &y = b.list().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!equals(ctx, x[i], y[i])) return compare(ctx, x[i], y[i]);
    return x.size() < y.size() ? -1 : x.size() > y.size();
  }
  if (a.is_undefined() && a.undefined_reason()) fail(*a.undefined_reason());
  if (b.is_undefined() && b.undefined_reason()) fail(*b.undefined_reason());
  fail(fmt::format("'{}' and '{}' cannot be ordered", type_name(a), type_name(b)));
}

const Value* find(Context& ctx, const Dict& dict, const Value& key) {
  if (key.is_string()) return find(ctx, dict, key.text());
  for (const auto& [k, v] : dict.entries)
    if (equals(ctx, k, key)) return &v;
  return nullptr;
}

const Value* find(Context& ctx, const Dict& dict, std::string_view key) {
  ctx.step(1 + static_cast<int64_t>(dict.entries.size() / 8));
  for (const auto& [k, v] : dict.entries) {
    if (k.is_string() && k.text().size() == key.size() && k.text() == key) {
      ctx.bytes(key.size());
      return &v;
    }
  }
  return nullptr;
}

bool contains(Context& ctx, const Value& container, const Value& item) {
  switch (container.type()) {
    case Type::kString:
      if (!item.is_string()) fail(fmt::format("'in <string>' needs a string, not '{}'", type_name(item)));
      ctx.bytes(container.text().size());
      return find_bytes(container.text(), item.text()) != std::string::npos;
    case Type::kDict:
      check_hashable(item);
      return find(ctx, container.dict(), item) != nullptr;
    case Type::kUndefined:
      return false;
    default: {
      ListPtr items = iterate(ctx, container);
      for (const Value& v : items->items)
        if (equals(ctx, v, item)) return true;
      return false;
    }
  }
}

ListPtr iterate(Context& ctx, const Value& v) {
  switch (v.type()) {
    case Type::kUndefined:
      return std::make_shared<const List>();
    case Type::kList: {
      const List& list = v.list();
      if (list.kind == Sequence::kIterator) {
        if (list.consumed) return std::make_shared<const List>();
        list.consumed = true;
      }
      return v.list_ptr();
    }
    case Type::kDict: {
      std::vector<Value> keys;
      for (const auto& entry : v.dict().entries) keys.push_back(entry.first);
      return make_list(ctx, std::move(keys)).list_ptr();
    }
    case Type::kString: {
      std::vector<Value> chars;
      ctx.bytes(v.text().size());
      for (size_t pos = 0, n; pos < v.text().size(); pos += n) {
        n = char_bytes(v.text(), pos);
        ctx.step();
        chars.emplace_back(v.str().slice(pos, pos + n));
      }
      return make_list(ctx, std::move(chars)).list_ptr();
    }
    default:
      fail(fmt::format("'{}' object is not iterable", type_name(v)));
  }
}

size_t length(Context& ctx, const Value& v) {
  switch (v.type()) {
    case Type::kUndefined:
      return 0;
    case Type::kString:
      ctx.bytes(v.text().size());
      return count_chars(v.text());
    case Type::kDict:
      return v.dict().entries.size();
    case Type::kLoop:
      return v.loop().items->items.size();
    case Type::kList:
      if (v.list().kind != Sequence::kIterator) return v.list().items.size();
      [[fallthrough]];
    default:
      fail(fmt::format("object of type '{}' has no len()", type_name(v)));
  }
}

// ------------------------------------------------------------------------------------------------ text of values
std::string format_real(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[64];
  auto end = std::to_chars(buffer, buffer + sizeof(buffer), d, std::chars_format::scientific).ptr;
  std::string_view text(buffer, static_cast<size_t>(end - buffer));
  bool negative = text.front() == '-';
  if (negative) text.remove_prefix(1);
  size_t e = text.find('e');
  int exponent = std::stoi(std::string(text.substr(e + 1)));
  std::string digits(1, text[0]);
  if (e > 2) digits += text.substr(2, e - 2);
  std::string out;
  int n = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {  // as Python's repr
    out = digits.substr(0, 1) + (n > 1 ? "." + digits.substr(1) : "");
    out += fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
  } else if (exponent < 0) {
    out = "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  } else if (exponent + 1 >= n) {
    out = digits + std::string(static_cast<size_t>(exponent + 1 - n), '0') + ".0";
  } else {
    out = digits.substr(0, static_cast<size_t>(exponent + 1)) + "." + digits.substr(static_cast<size_t>(exponent + 1));
  }
  return negative ? "-" + out : out;
}

namespace {

void append_string_repr(Context& ctx, const Str& s, Str& out) {
  const std::string& text = s.text();
  ctx.bytes(text.size());
  if (s.is_markup()) out.append("Markup(", false);
  char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  out.append(std::string_view(&quote, 1), false);
  for (size_t pos = 0, n; pos < text.size(); pos += n) {
    n = char_bytes(text, pos);
    char32_t c = char_at(text, pos);
    bool trusted = s.trusted_at(pos);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out.append(std::string("\\") + static_cast<char>(c), trusted);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out.append(c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t", trusted);
    } else if (is_printable(c)) {
      out.append(s, pos, pos + n);
    } else {
      auto u = static_cast<uint32_t>(c);
      out.append(u < 0x100     ? fmt::format("\\x{:02x}", u)
                 : u < 0x10000 ? fmt::format("\\u{:04x}", u)
                               : fmt::format("\\U{:08x}", u),
                 trusted);
    }
  }
  out.append(std::string_view(&quote, 1), false);
  if (s.is_markup()) out.append(")", false);
}

void append_repr(Context& ctx, const Value& v, Str& out);

void append_list_repr(Context& ctx, const List& list, Str& out) {
  if (list.kind == Sequence::kView || list.kind == Sequence::kIterator || list.kind == Sequence::kRange)
    fail("a range, dict view or generator cannot be printed; use the list filter");
  bool tuple = list.kind == Sequence::kTuple;
  out.append(tuple ? "(" : "[", false);
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i) out.append(", ", false);
    append_repr(ctx, list.items[i], out);
  }
  out.append(tuple ? (list.items.size() == 1 ? ",)" : ")") : "]", false);
}

void append_repr(Context& ctx, const Value& v, Str& out) {
  ctx.step();
  ctx.check_size(out.size());
  switch (v.type()) {
    case Type::kUndefined:
      out.append("Undefined", false);
      break;
    case Type::kNone:
      out.append("None", false);
      break;
    case Type::kBool:
      out.append(v.boolean() ? "True" : "False", false);
      break;
    case Type::kInt:
      out.append(fmt::format("{}", v.integer()), false);
      break;
    case Type::kReal:
      out.append(format_real(v.real()), false);
      break;
    case Type::kString:
      append_string_repr(ctx, v.str(), out);
      break;
    case Type::kList:
      append_list_repr(ctx, v.list(), out);
      break;
    case Type::kDict: {
      out.append("{", false);
      bool first = true;
      for (const auto& [key, value] : v.dict().entries) {
        if (!first) out.append(", ", false);
        first = false;
        append_repr(ctx, key, out);
        out.append(": ", false);
        append_repr(ctx, value, out);
      }
      out.append("}", false);
      break;
    }
    default:
      fail(fmt::format("a {} cannot be printed", type_name(v)));
  }
}

}  // namespace

Str to_str(Context& ctx, const Value& v) {
  if (v.is_undefined()) return {};
  if (v.is_string()) return v.str();
  return to_repr(ctx, v);
}

Str to_repr(Context& ctx, const Value& v) {
  Str out;
  append_repr(ctx, v, out);
  ctx.new_string(out.size());
  return out;
}

}  // namespace moectl::jinja
