// Argument binding, attribute and item access, global functions and the text helpers that filters and methods share.
#include "core/jinja/functions.h"

#include <fmt/core.h>

#include <algorithm>
#include <ctime>
#include <unordered_map>

namespace moectl::jinja {

Bound bind(const Args& args, std::string_view function, std::initializer_list<std::string_view> parameters) {
  if (args.positional.size() > parameters.size())
    fail(fmt::format("{} takes at most {} arguments, {} given", function, parameters.size(), args.positional.size()));
  Bound bound(parameters.size(), nullptr);
  for (size_t i = 0; i < args.positional.size(); ++i) bound[i] = &args.positional[i];
  for (const auto& [name, value] : args.named) {
    auto at = std::find(parameters.begin(), parameters.end(), name);
    if (at == parameters.end()) fail(fmt::format("{} has no parameter '{}'", function, name));
    const Value*& slot = bound[static_cast<size_t>(at - parameters.begin())];
    if (slot) fail(fmt::format("{} got two values for '{}'", function, name));
    slot = &value;
  }
  return bound;
}

int64_t integer_argument(const Value& v, std::string_view what) {
  if (v.is_integer()) return v.integer();
  fail(fmt::format("{} must be an integer, not '{}'", what, type_name(v)));
}

const Str& string_argument(const Value& v, std::string_view what) {
  if (v.is_string()) return v.str();
  fail(fmt::format("{} must be a string, not '{}'", what, type_name(v)));
}

// ------------------------------------------------------------------------------------------------ access
Value get_attribute(Context& ctx, const Value& object, const std::string& name) {
  switch (object.type()) {
    case Value::Type::kUndefined:
      fail(object.undefined_reason() ? *object.undefined_reason()
                                     : fmt::format("an undefined value has no attribute '{}'", name));
    case Value::Type::kNamespace:
      ctx.step(1 + static_cast<int64_t>(object.ns().attributes.size() / 8));
      for (const auto& [key, value] : object.ns().attributes)
        if (key == name) return value;
      break;
    case Value::Type::kLoop:
      return get_loop_attribute(object.loop_ptr(), name);
    case Value::Type::kString:
    case Value::Type::kDict:
    case Value::Type::kList:
      if (Value method = find_method(object, name); !method.is_undefined()) return method;
      if (object.is_list() && object.list().is_group && (name == "grouper" || name == "list"))
        return object.list().items[name == "list"];
      if (is_refused_method(object, name))
        return Value::undefined(
            fmt::format("access to attribute '{}' of '{}' object is unsafe", name, type_name(object)));
      if (!object.is_dict()) break;
      if (const Value* item = find(ctx, object.dict(), name)) return *item;
      break;
    default:
      break;
  }
  return Value::undefined(fmt::format("'{}' object has no attribute '{}'", type_name(object), name));
}

Value get_item(Context& ctx, const Value& object, const Value& key) {
  if (object.is_dict()) {
    if (const Value* item = find(ctx, object.dict(), key)) return *item;
    if (key.is_string())
      if (Value method = find_method(object, key.text()); !method.is_undefined()) return method;
    return Value::undefined(fmt::format("'dict object' has no element {}", to_str(ctx, key).text()));
  }
  if (key.is_integer() && object.is_list() && object.list().kind != Sequence::kView &&
      object.list().kind != Sequence::kIterator) {
    const auto& items = object.list().items;
    int64_t i = key.integer() < 0 ? key.integer() + static_cast<int64_t>(items.size()) : key.integer();
    if (i >= 0 && i < static_cast<int64_t>(items.size())) return items[static_cast<size_t>(i)];
  } else if (key.is_integer() && object.is_string()) {
    const std::string& text = object.text();
    ctx.bytes(text.size());
    int64_t i = key.integer() < 0 ? key.integer() + static_cast<int64_t>(count_chars(text)) : key.integer();
    size_t pos = 0;
    for (; i > 0 && pos < text.size(); --i) pos += char_bytes(text, pos);
    if (i == 0 && pos < text.size())
      return Value(object.str().slice(pos, pos + char_bytes(text, pos)).marked(object.str().is_markup()));
  } else if (key.is_string() || object.is_undefined()) {
    return get_attribute(ctx, object, key.is_string() ? key.text() : std::string("[]"));
  }
  return Value::undefined(fmt::format("'{}' object has no such element", type_name(object)));
}

static Value loop_cycle(Context&, const Value& self, Args& args) {
  if (args.positional.empty() || !args.named.empty()) fail("loop.cycle needs the values to cycle through");
  return args.positional[self.loop().index % args.positional.size()];
}

static bool holds_objects(Context& ctx, const Value& v) {
  ctx.step();
  auto holds = [&ctx](const Value& item) { return holds_objects(ctx, item); };
  if (v.is_list()) return std::any_of(v.list().items.begin(), v.list().items.end(), holds);
  if (v.is_dict())
    return std::any_of(v.dict().entries.begin(), v.dict().entries.end(),
                       [&](auto& entry) { return holds(entry.first) || holds(entry.second); });
  return v.is(Value::Type::kLoop) || v.is(Value::Type::kCallable);
}

static Value loop_changed(Context& ctx, const Value& self, Args& args) {
  Loop& loop = self.loop();
  bool same = loop.changed_called && loop.last_changed.size() == args.positional.size();
  for (size_t i = 0; same && i < args.positional.size(); ++i)
    same = equals(ctx, loop.last_changed[i], args.positional[i]);
  loop.changed_called = true;
  // Kept values may not hold this loop itself: nothing would free the pair.
  for (const Value& v : args.positional)
    if (holds_objects(ctx, v)) fail("loop.changed takes no loops and no functions");
  loop.last_changed = args.positional;
  return Value(!same);
}

Value get_loop_attribute(const LoopPtr& loop, const std::string& name) {
  auto size = static_cast<int64_t>(loop->items->items.size());
  auto index = static_cast<int64_t>(loop->index);
  if (name == "index") return Value(index + 1);
  if (name == "index0") return Value(index);
  if (name == "revindex") return Value(size - index);
  if (name == "revindex0") return Value(size - index - 1);
  if (name == "first") return Value(index == 0);
  if (name == "last") return Value(index + 1 == size);
  if (name == "length") return Value(size);
  if (name == "depth") return Value(int64_t{loop->depth0 + 1});
  if (name == "depth0") return Value(int64_t{loop->depth0});
  if (name == "previtem" && index > 0) return loop->items->items[loop->index - 1];
  if (name == "nextitem" && index + 1 < size) return loop->items->items[loop->index + 1];
  if (name == "cycle" || name == "changed") {
    auto method = std::make_shared<Callable>();
    method->name = name;
    method->native = name == "cycle" ? loop_cycle : loop_changed;
    method->self = Value(loop);
    return Value(std::move(method));
  }
  return Value::undefined(fmt::format("loop.{} is undefined", name));
}

// ------------------------------------------------------------------------------------------------ global functions
namespace {

Value global_range(Context& ctx, const Value&, Args& args) {
  Bound a = bind(args, "range", {"start", "stop", "step"});
  if (!a[0]) fail("range needs an argument");
  int64_t start = a[1] ? integer_argument(*a[0], "range: start") : 0;
  int64_t stop = integer_argument(a[1] ? *a[1] : *a[0], "range: stop");
  int64_t step = a[2] ? integer_argument(*a[2], "range: step") : 1;
  if (step == 0) fail("range: step must not be zero");
  constexpr int64_t kMaxRange = 100'000;  // as jinja2's sandbox
  __int128 distance = step > 0 ? static_cast<__int128>(stop) - start : static_cast<__int128>(start) - stop;
  __int128 width = step > 0 ? static_cast<__int128>(step) : -static_cast<__int128>(step);
  __int128 count = distance <= 0 ? 0 : (distance + width - 1) / width;
  if (count > kMaxRange) fail(fmt::format("range is too big: at most {} items", kMaxRange));
  std::vector<Value> items;
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) items.emplace_back(start + i * step);
  return make_list(ctx, std::move(items), Sequence::kRange);
}

Value global_dict(Context& ctx, const Value&, Args& args) {
  if (args.positional.size() > 1) fail("dict takes one mapping or sequence of pairs, and named arguments");
  std::vector<std::pair<Value, Value>> entries;
  auto put = [&](const Value& key, const Value& value) {
    ctx.step(1 + static_cast<int64_t>(entries.size() / 8));
    for (auto& entry : entries)
      if (equals(ctx, entry.first, key)) return void(entry.second = value);
    entries.emplace_back(key, value);
  };
  if (!args.positional.empty() && args.positional[0].is_dict()) {
    entries = args.positional[0].dict().entries;
  } else if (!args.positional.empty()) {
    if (args.positional[0].is_undefined()) fail("dict: the argument is undefined");
    ListPtr source = iterate(ctx, args.positional[0]);
    for (const Value& pair : source->items) {
      ListPtr items = iterate(ctx, pair);
      if (items->items.size() != 2) fail("dict: a sequence must hold pairs");
      put(items->items[0], items->items[1]);
    }
  }
  // ** may have brought a name from the request.
  for (const auto& [name, value] : args.named) put(Value(Str(name, false)), value);
  return make_dict(ctx, std::move(entries));
}

Value global_namespace(Context& ctx, const Value&, Args& args) {
  Value dict = global_dict(ctx, {}, args);
  Namespace* ns = ctx.new_namespace();
  for (const auto& [key, value] : dict.dict().entries)
    if (key.is_string()) ns->attributes.emplace_back(key.text(), value);
  return Value(ns);
}

Value global_raise_exception(Context& ctx, const Value&, Args& args) {
  Bound a = bind(args, "raise_exception", {"message"});
  fail(a[0] ? to_str(ctx, *a[0]).text() : "raise_exception was called without a message");
}

Value global_strftime_now(Context& ctx, const Value&, Args& args) {
  Bound a = bind(args, "strftime_now", {"format"});
  if (!a[0]) fail("strftime_now needs a format");
  const std::string& format = string_argument(*a[0], "strftime_now: format").text();
  if (format.size() > 256) fail("strftime_now: the format is longer than 256 bytes");
  if (format.empty()) return Value(Str());
  std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char buffer[2048];
  size_t n = std::strftime(buffer, sizeof(buffer), format.c_str(), &local);
  return make_string(ctx, std::string(buffer, n));
}

Value call_joiner(Context& ctx, const Value& self, Args&) {
  ctx.step();
  if (self.callable().used) return self.callable().self;
  self.callable().used = true;
  return Value(Str());
}

Value global_joiner(Context&, const Value&, Args& args) {
  Bound a = bind(args, "joiner", {"sep"});
  auto joiner = std::make_shared<Callable>();
  joiner->name = "joiner";
  joiner->native = call_joiner;
  joiner->self = a[0] ? Value(string_argument(*a[0], "joiner: sep")) : Value(Str(", ", true));
  joiner->stateful = true;
  return Value(std::move(joiner));
}

}  // namespace

Native find_global(std::string_view name) {
  static const std::unordered_map<std::string_view, Native> kGlobals = {
      {"range", global_range},
      {"dict", global_dict},
      {"namespace", global_namespace},
      {"joiner", global_joiner},
      {"raise_exception", global_raise_exception},
      {"strftime_now", global_strftime_now},
  };
  auto found = kGlobals.find(name);
  return found == kGlobals.end() ? nullptr : found->second;
}

// ------------------------------------------------------------------------------------------------ shared text
// functions
Value replace_text(Context& ctx, const Str& s, const Str& from, const Str& to, int64_t count) {
  const std::string& text = s.text();
  ctx.bytes(text.size());
  std::vector<size_t> places;
  for (size_t pos = 0; pos <= text.size() && (count < 0 || static_cast<int64_t>(places.size()) < count);) {
    size_t at = find_bytes(text, from.text(), pos);
    if (at == std::string::npos) break;
    ctx.step();
    places.push_back(at);
    pos = from.empty() ? (at < text.size() ? at + char_bytes(text, at) : at + 1) : at + from.size();
  }
  size_t size = text.size() - places.size() * from.size();
  size_t added;
  if (__builtin_mul_overflow(places.size(), to.size(), &added) || __builtin_add_overflow(size, added, &size))
    fail("replace: the result is too long");
  ctx.new_string(size);
  Str out;
  size_t copied = 0;
  for (size_t at : places) {
    out.append(s, copied, at);
    out.append(to);
    copied = at + from.size();
  }
  out.append(s, copied, text.size());
  return Value(std::move(out));
}

Value join_text(Context& ctx, const std::vector<Value>& items, const Str& separator, bool convert) {
  Str out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!convert && !items[i].is_string())
      fail(fmt::format("join: item {} must be a string, not '{}'", i, type_name(items[i])));
    Str part = to_str(ctx, items[i]);
    ctx.bytes(part.size() + separator.size());
    ctx.check_size(out.size() + part.size() + separator.size());
    if (i) out.append(separator);
    out.append(part);
  }
  return Value(std::move(out));
}

Str escape_text(Context& ctx, const Str& s) {
  ctx.bytes(s.size() * 4);
  Str out;
  for (size_t pos = 0; pos < s.size(); ++pos) {
    char c = s.text()[pos];
    const char* entity = c == '&'    ? "&amp;"
                         : c == '<'  ? "&lt;"
                         : c == '>'  ? "&gt;"
                         : c == '"'  ? "&#34;"
                         : c == '\'' ? "&#39;"
                                     : nullptr;
    if (entity) {
      out.append(entity, s.trusted_at(pos));
    } else {
      out.append(s, pos, pos + 1);
    }
  }
  ctx.check_size(out.size());
  return std::move(out).marked();
}

Value add_text(Context& ctx, const Str& a, const Str& b) {
  if (a.is_markup() != b.is_markup())
    return a.is_markup() ? add_text(ctx, a, escape_text(ctx, b)) : add_text(ctx, escape_text(ctx, a), b);
  ctx.new_string(a.size() + b.size());
  Str sum = a;
  sum.append(b);
  return Value(std::move(sum));
}

Value repeat_text(Context& ctx, const Str& s, int64_t count) {
  count = s.empty() ? 0 : std::max<int64_t>(count, 0);
  size_t size;
  if (__builtin_mul_overflow(s.size(), static_cast<size_t>(count), &size)) fail("string * int: the result is too long");
  ctx.new_string(size);
  ctx.step(count);
  Str out;
  for (int64_t i = 0; i < count; ++i) out.append(s);
  return Value(std::move(out).marked(s.is_markup()));
}

Value pad_text(Context& ctx, const Str& s, int64_t left, int64_t right, const Str& fill) {
  if (count_chars(fill.text()) != 1) fail("the fill character must be exactly one character");
  Str out = repeat_text(ctx, fill, left).str();
  ctx.new_string(out.size() + s.size());
  out.append(s);
  out.append(repeat_text(ctx, fill, right).str());
  ctx.check_size(out.size());
  return Value(std::move(out));
}

std::vector<Str> split_lines(Context& ctx, const Str& s, bool keep_ends) {
  const std::string& text = s.text();
  ctx.bytes(text.size());
  std::vector<Str> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    size_t n = char_bytes(text, pos);
    char32_t c = char_at(text, pos);
    bool ends = (c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (c == '\r' && pos + 1 < text.size() && text[pos + 1] == '\n') n = 2;
    if (ends) {
      ctx.step();
      lines.push_back(s.slice(begin, keep_ends ? pos + n : pos));
      begin = pos + n;
    }
    pos += n;
  }
  if (begin < text.size()) lines.push_back(s.slice(begin, text.size()));
  return lines;
}

}  // namespace moectl::jinja
