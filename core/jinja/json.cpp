// JSON at both ends of a template: the request's variables become Values, and the tojson filter writes Values as
// Python's json.dumps does (transformers replaces Jinja's own tojson: no HTML escapes, ensure_ascii off).
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/jinja/functions.h"
#include "core/jinja/value.h"

namespace moectl::jinja {
namespace {

template <class Json>
Value convert(const Json& json, bool trusted, int depth_left, int* depth) {
  *depth = 0;
  switch (json.type()) {
    case Json::value_t::null:
      return Value(None{});
    case Json::value_t::boolean:
      return Value(json.template get<bool>());
    case Json::value_t::number_integer:
      return Value(json.template get<int64_t>());
    case Json::value_t::number_unsigned: {
      auto n = json.template get<uint64_t>();
      if (n > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        fail(fmt::format("the integer {} does not fit 64 bits with sign", n));
      return Value(static_cast<int64_t>(n));
    }
    case Json::value_t::number_float:
      return Value(json.template get<double>());
    case Json::value_t::string:
      return Value(Str(json.template get_ref<const std::string&>(), trusted));
    case Json::value_t::array:
    case Json::value_t::object:
      break;
    default:
      fail("a variable holds bytes that are no JSON value");
  }
  if (depth_left <= 0) fail("the variables nest too deeply");
  int child = 0;
  if (json.is_array()) {
    List list;
    list.items.reserve(json.size());
    for (const Json& item : json) {
      list.items.push_back(convert(item, trusted, depth_left - 1, &child));
      *depth = std::max(*depth, child);
    }
    list.depth = ++*depth;
    return Value(ListPtr(std::make_shared<const List>(std::move(list))));
  }
  Dict dict;
  dict.entries.reserve(json.size());
  for (const auto& [key, item] : json.items()) {
    dict.entries.emplace_back(Value(Str(key, trusted)), convert(item, trusted, depth_left - 1, &child));
    *depth = std::max(*depth, child);
  }
  dict.depth = ++*depth;
  return Value(DictPtr(std::make_shared<const Dict>(std::move(dict))));
}

// ------------------------------------------------------------------------------------------------ tojson
struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool pretty = false;
  Str indent;
  Str item_separator, key_separator;
};

void append_json_string(Context& ctx, const Str& s, const JsonStyle& style, Str& out) {
  const std::string& text = s.text();
  ctx.bytes(text.size() * 4);
  out.append("\"", false);
  size_t copied = 0;  // bytes before this are in `out`
  for (size_t pos = 0, n; pos < text.size(); pos += n) {
    n = char_bytes(text, pos);
    auto c = static_cast<uint32_t>(char_at(text, pos));
    if (c >= 0x20 && c != '"' && c != '\\' && !(style.ensure_ascii && c > 0x7E)) continue;
    std::string escaped;
    switch (c) {
      case '"':
        escaped = "\\\"";
        break;
      case '\\':
        escaped = "\\\\";
        break;
      case '\n':
        escaped = "\\n";
        break;
      case '\r':
        escaped = "\\r";
        break;
      case '\t':
        escaped = "\\t";
        break;
      case '\f':
        escaped = "\\f";
        break;
      case '\b':
        escaped = "\\b";
        break;
      default:
        escaped = c < 0x10000 ? fmt::format("\\u{:04x}", c)
                              : fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((c - 0x10000) >> 10), 0xDC00 + (c & 0x3FF));
    }
    out.append(s, copied, pos);
    out.append(escaped, s.trusted_at(pos));
    copied = pos + n;
  }
  out.append(s, copied, text.size());
  out.append("\"", false);
}

std::string json_number(const Value& v) {
  if (v.is(Value::Type::kBool)) return v.boolean() ? "true" : "false";
  if (v.is(Value::Type::kInt)) return fmt::format("{}", v.integer());
  double d = v.real();
  if (std::isnan(d)) return "NaN";
  if (std::isinf(d)) return d < 0 ? "-Infinity" : "Infinity";
  return format_real(d);
}

void append_line(Context& ctx, const JsonStyle& style, int level, Str& out) {
  if (!style.pretty) return;
  out.append("\n", false);
  ctx.bytes(style.indent.size() * static_cast<size_t>(level));
  ctx.check_size(out.size() + style.indent.size() * static_cast<size_t>(level));
  for (int i = 0; i < level; ++i) out.append(style.indent);
}

void append_json(Context& ctx, const Value& v, const JsonStyle& style, int level, Str& out);

void append_json_dict(Context& ctx, const Dict& dict, const JsonStyle& style, int level, Str& out) {
  std::vector<const std::pair<Value, Value>*> entries;
  for (const auto& entry : dict.entries) entries.push_back(&entry);
  if (style.sort_keys)
    std::stable_sort(entries.begin(), entries.end(),
                     [&ctx](auto* a, auto* b) { return compare(ctx, a->first, b->first) == -1; });
  out.append("{", false);
  bool first = true;
  for (const auto* entry : entries) {
    if (!first) out.append(style.item_separator);
    first = false;
    append_line(ctx, style, level + 1, out);
    const Value& key = entry->first;
    if (key.is_string()) {
      append_json_string(ctx, key.str(), style, out);
    } else if (key.is_number() || key.is_none()) {
      out.append('"' + (key.is_none() ? "null" : json_number(key)) + '"', false);
    } else {
      fail(fmt::format("tojson: keys must be strings, numbers, booleans or none, not {}", type_name(key)));
    }
    out.append(style.key_separator);
    append_json(ctx, entry->second, style, level + 1, out);
  }
  if (!entries.empty()) append_line(ctx, style, level, out);
  out.append("}", false);
}

void append_json(Context& ctx, const Value& v, const JsonStyle& style, int level, Str& out) {
  ctx.step();
  ctx.check_size(out.size());
  if (v.is_none()) return out.append("null", false);
  if (v.is_number()) return out.append(json_number(v), false);
  if (v.is_string()) return append_json_string(ctx, v.str(), style, out);
  if (v.is_dict()) return append_json_dict(ctx, v.dict(), style, level, out);
  if (!v.is_list() || (v.list().kind != Sequence::kList && v.list().kind != Sequence::kTuple))
    fail(fmt::format("Object of type {} is not JSON serializable", type_name(v)));
  out.append("[", false);
  bool first = true;
  for (const Value& item : v.list().items) {
    if (!first) out.append(style.item_separator);
    first = false;
    append_line(ctx, style, level + 1, out);
    append_json(ctx, item, style, level + 1, out);
  }
  if (!first) append_line(ctx, style, level, out);
  out.append("]", false);
}

}  // namespace

Value from_json(const nlohmann::ordered_json& json, bool trusted, int max_depth) {
  int depth;
  return convert(json, trusted, max_depth, &depth);
}
Value from_json(const nlohmann::json& json, bool trusted, int max_depth) {
  int depth;
  return convert(json, trusted, max_depth, &depth);
}

Value filter_tojson(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = a[0] && truthy(*a[0]);
  style.sort_keys = a[3] && truthy(*a[3]);
  if (a[1] && !a[1]->is_none()) {
    style.pretty = true;
    if (a[1]->is_string()) {
      style.indent = a[1]->str();
    } else {
      int64_t width = std::max<int64_t>(0, integer_argument(*a[1], "tojson: indent"));
      ctx.new_string(static_cast<size_t>(width));
      style.indent = Str(std::string(static_cast<size_t>(width), ' '), false);
    }
  }
  style.item_separator = Str(style.pretty ? "," : ", ", false);
  style.key_separator = Str(": ", false);
  if (a[2] && !a[2]->is_none()) {
    if (!a[2]->is_list() || a[2]->list().items.size() != 2 || !a[2]->list().items[0].is_string() ||
        !a[2]->list().items[1].is_string())
      fail("tojson: separators must be a pair of strings");
    style.item_separator = a[2]->list().items[0].str();
    style.key_separator = a[2]->list().items[1].str();
  }
  Str out;
  append_json(ctx, self, style, 0, out);
  ctx.new_string(out.size());
  return Value(std::move(out));
}

}  // namespace moectl::jinja
