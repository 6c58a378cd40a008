// Filters that walk sequences and mappings.
#include <fmt/core.h>

#include <algorithm>
#include <unordered_map>

#include "core/jinja/functions.h"
#include "core/jinja/interpreter.h"

namespace moectl::jinja {
namespace {

// "a.b.0" or an index: the parts are looked up one after another.
Value get_path(Context& ctx, Value item, const Value& path, const Value* missing = nullptr) {
  if (path.is_integer()) return get_item(ctx, item, path);
  const std::string& text = string_argument(path, "an attribute").text();
  ctx.bytes(text.size());
  for (size_t begin = 0; begin <= text.size();) {
    size_t end = std::min(text.find('.', begin), text.size());
    std::string part = text.substr(begin, end - begin);
    bool index = !part.empty() && part.size() < 10 &&
                 std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    item = get_item(ctx, item, index ? Value(int64_t{std::stoi(part)}) : Value(Str(part, false)));
    if (item.is_undefined() && missing) item = *missing;
    begin = end + 1;
  }
  return item;
}

Value fold_case(Context& ctx, Value key, bool case_sensitive) {
  if (case_sensitive || !key.is_string()) return key;
  ctx.bytes(key.text().size() * 8);
  return Value(to_lower(key.str()));
}

Value key_of(Context& ctx, const Value& item, const Value* attribute, bool case_sensitive) {
  bool by_attribute = attribute && !attribute->is_none();
  return fold_case(ctx, by_attribute ? get_path(ctx, item, *attribute) : item, case_sensitive);
}

// The key of `sort`, which may name several attributes: "a, b.c".
Value sort_key(Context& ctx, const Value& item, const Value* attribute, bool case_sensitive) {
  if (!attribute || !attribute->is_string() || attribute->text().find(',') == std::string::npos)
    return key_of(ctx, item, attribute, case_sensitive);
  std::vector<Value> keys;
  const std::string& text = attribute->text();
  for (size_t begin = 0; begin <= text.size();) {
    size_t end = std::min(text.find(',', begin), text.size());
    Value part(Str(text.substr(begin, end - begin), false));
    keys.push_back(key_of(ctx, item, &part, case_sensitive));
    begin = end + 1;
  }
  return make_list(ctx, std::move(keys));
}

Value filter_length(Context& ctx, const Value& self, Args& args) {
  bind(args, "length", {});
  return Value(static_cast<int64_t>(length(ctx, self)));
}

Value filter_first(Context& ctx, const Value& self, Args& args) {
  bind(args, "first", {});
  if (self.is_string() && !self.str().empty()) return Value(self.str().slice(0, char_bytes(self.text(), 0)));
  ListPtr items = iterate(ctx, self);
  return items->items.empty() ? Value::undefined("No first item, sequence was empty.") : items->items.front();
}

Value filter_last(Context& ctx, const Value& self, Args& args) {
  bind(args, "last", {});
  if (self.is_list() && self.list().kind == Sequence::kIterator) fail("'generator' object is not reversible");
  ListPtr items = iterate(ctx, self);
  return items->items.empty() ? Value::undefined("No last item, sequence was empty.") : items->items.back();
}

Value filter_list(Context& ctx, const Value& self, Args& args) {
  bind(args, "list", {});
  return make_list(ctx, iterate(ctx, self)->items);
}

Value filter_join(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "join", {"d", "attribute"});
  Str separator = a[0] ? to_str(ctx, *a[0]) : Str();
  ListPtr items = iterate(ctx, self);
  if (!a[1] || a[1]->is_none()) return join_text(ctx, items->items, separator, true);
  std::vector<Value> parts;
  for (const Value& item : items->items) parts.push_back(get_path(ctx, item, *a[1]));
  return join_text(ctx, parts, separator, true);
}

Value filter_items(Context& ctx, const Value& self, Args& args) {
  bind(args, "items", {});
  std::vector<Value> pairs;
  if (!self.is_undefined()) {
    if (!self.is_dict()) fail("items: can only get item pairs from a mapping");
    for (const auto& [key, value] : self.dict().entries)
      pairs.push_back(make_list(ctx, {key, value}, Sequence::kTuple));
  }
  return make_list(ctx, std::move(pairs), Sequence::kIterator);
}

Value filter_attr(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "attr", {"name"});
  if (!a[0]) fail("attr needs a name");
  const std::string& name = string_argument(*a[0], "attr: name").text();
  if (self.is_dict()) {  // an attribute only, never an item
    Value method = find_method(self, name);
    return method.is_undefined() ? Value::undefined(fmt::format("'dict' object has no attribute '{}'", name)) : method;
  }
  return get_attribute(ctx, self, name);
}

Value filter_reverse(Context& ctx, const Value& self, Args& args) {
  bind(args, "reverse", {});
  if (self.is_string()) return slice(ctx, self, Value(None{}), Value(None{}), Value(int64_t{-1}));
  ListPtr items = iterate(ctx, self);
  return make_list(ctx, {items->items.rbegin(), items->items.rend()}, Sequence::kIterator);
}

// ------------------------------------------------------------------------------------------------ map and select
Args rest_of(Context& ctx, const Args& args, size_t from) {
  Args rest;
  ctx.step(1 + static_cast<int64_t>(args.positional.size() + args.named.size()));
  if (args.positional.size() > from)
    rest.positional.assign(args.positional.begin() + static_cast<std::ptrdiff_t>(from), args.positional.end());
  rest.named = args.named;
  return rest;
}

Native named_native(const Value& name, bool test) {
  const std::string& text = string_argument(name, test ? "a test name" : "a filter name").text();
  Native native = test ? find_test(text) : find_filter(text);
  if (!native) fail(fmt::format("there is no {} named '{}'", test ? "test" : "filter", text));
  return native;
}

Value filter_map(Context& ctx, const Value& self, Args& args) {
  Context::Nested nested(ctx);
  std::vector<Value> out;
  if (!truthy(self)) return make_list(ctx, {}, Sequence::kIterator);  // as jinja2: none is no error
  ListPtr items = iterate(ctx, self);
  if (args.positional.empty() && !args.named.empty()) {
    Bound a = bind(args, "map", {"attribute", "default"});
    if (!a[0]) fail("map needs a filter or an attribute");
    for (const Value& item : items->items) out.push_back(get_path(ctx, item, *a[0], a[1]));
  } else {
    if (args.positional.empty()) fail("map needs a filter or an attribute");
    Native native = named_native(args.positional[0], false);
    for (const Value& item : items->items) {
      Args rest = rest_of(ctx, args, 1);
      out.push_back(native(ctx, item, rest));
    }
  }
  return make_list(ctx, std::move(out), Sequence::kIterator);
}

Value choose(Context& ctx, const Value& self, const Args& args, bool wanted, bool by_attribute) {
  Context::Nested nested(ctx);
  if (!truthy(self)) return make_list(ctx, {}, Sequence::kIterator);  // as jinja2: none is no error
  size_t used = by_attribute ? 1 : 0;
  if (args.positional.size() < used) fail("selectattr and rejectattr need an attribute");
  Native native = args.positional.size() > used ? named_native(args.positional[used], true) : nullptr;
  std::vector<Value> out;
  ListPtr items = iterate(ctx, self);
  for (const Value& item : items->items) {
    Value tested = by_attribute ? get_path(ctx, item, args.positional[0]) : item;
    Args rest = rest_of(ctx, args, used + 1);
    if (truthy(native ? native(ctx, tested, rest) : tested) == wanted) out.push_back(item);
  }
  return make_list(ctx, std::move(out), Sequence::kIterator);
}
Value filter_select(Context& ctx, const Value& self, Args& args) {
  return choose(ctx, self, args, true, false);
}
Value filter_reject(Context& ctx, const Value& self, Args& args) {
  return choose(ctx, self, args, false, false);
}
Value filter_selectattr(Context& ctx, const Value& self, Args& args) {
  return choose(ctx, self, args, true, true);
}
Value filter_rejectattr(Context& ctx, const Value& self, Args& args) {
  return choose(ctx, self, args, false, true);
}

// ------------------------------------------------------------------------------------------------ order
struct Keyed {
  Value key, item;
};

std::vector<Value> sorted(Context& ctx, std::vector<Keyed> items, bool reverse) {
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    return compare(ctx, reverse ? b.key : a.key, reverse ? a.key : b.key) == -1;
  });
  std::vector<Value> out;
  for (Keyed& item : items) out.push_back(std::move(item.item));
  return out;
}

Value filter_sort(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<Keyed> items;
  ListPtr source = iterate(ctx, self);
  for (const Value& item : source->items) items.push_back({sort_key(ctx, item, a[2], a[1] && truthy(*a[1])), item});
  return make_list(ctx, sorted(ctx, std::move(items), a[0] && truthy(*a[0])));
}

Value filter_dictsort(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "dictsort", {"case_sensitive", "by", "reverse"});
  if (!self.is_dict()) fail(fmt::format("dictsort: '{}' is no mapping", type_name(self)));
  std::string by = a[1] ? string_argument(*a[1], "dictsort: by").text() : "key";
  if (by != "key" && by != "value") fail("dictsort: by must be \"key\" or \"value\"");
  std::vector<Keyed> items;
  for (const auto& [key, value] : self.dict().entries)
    items.push_back({key_of(ctx, by == "key" ? key : value, nullptr, a[0] && truthy(*a[0])),
                     make_list(ctx, {key, value}, Sequence::kTuple)});
  return make_list(ctx, sorted(ctx, std::move(items), a[2] && truthy(*a[2])));
}

Value filter_unique(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "unique", {"case_sensitive", "attribute"});
  std::vector<Value> seen, out;
  ListPtr source = iterate(ctx, self);
  for (const Value& item : source->items) {
    Value key = key_of(ctx, item, a[1], a[0] && truthy(*a[0]));
    check_hashable(key);
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& v) { return equals(ctx, v, key); })) continue;
    seen.push_back(std::move(key));
    out.push_back(item);
  }
  return make_list(ctx, std::move(out), Sequence::kIterator);
}

// Groups of items with the same key, ordered by it: (key, items) with the names `grouper` and `list`.
Value filter_groupby(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "groupby", {"attribute", "default", "case_sensitive"});
  if (!a[0]) fail("groupby needs an attribute");
  bool case_sensitive = a[2] && truthy(*a[2]);
  std::vector<Keyed> items;
  ListPtr source = iterate(ctx, self);
  for (const Value& item : source->items)
    items.push_back({fold_case(ctx, get_path(ctx, item, *a[0], a[1]), case_sensitive), item});
  std::vector<Value> ordered = sorted(ctx, std::move(items), false);
  std::vector<Value> groups, members;
  Value key;
  auto close_group = [&] {
    if (members.empty()) return;
    Value shown = get_path(ctx, members[0], *a[0], a[1]);
    List group = make_list(ctx, {shown, make_list(ctx, std::move(members))}, Sequence::kTuple).list();
    group.is_group = true;
    groups.emplace_back(std::make_shared<const List>(std::move(group)));
    members.clear();
  };
  for (Value& item : ordered) {
    Value item_key = fold_case(ctx, get_path(ctx, item, *a[0], a[1]), case_sensitive);
    if (!members.empty() && !equals(ctx, item_key, key)) close_group();
    key = std::move(item_key);
    members.push_back(std::move(item));
  }
  close_group();
  return make_list(ctx, std::move(groups));
}

// Lists of `linecount` items; the last one is filled up with `fill_with`.
Value filter_batch(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "batch", {"linecount", "fill_with"});
  if (!a[0]) fail("batch needs a number of items");
  int64_t size = integer_argument(*a[0], "batch: linecount");
  std::vector<Value> out, row;
  ListPtr source = iterate(ctx, self);
  for (const Value& item : source->items) {
    if (static_cast<int64_t>(row.size()) == size) out.push_back(make_list(ctx, std::exchange(row, {})));
    row.push_back(item);
  }
  if (!row.empty()) {
    int64_t missing = size - static_cast<int64_t>(row.size());
    if (a[1] && !a[1]->is_none() && missing > 0) {
      ctx.step(missing);
      row.insert(row.end(), static_cast<size_t>(missing), *a[1]);
    }
    out.push_back(make_list(ctx, std::move(row)));
  }
  return make_list(ctx, std::move(out), Sequence::kIterator);
}

// `slices` lists of nearly equal length; the shorter ones get `fill_with`.
Value filter_slice(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "slice", {"slices", "fill_with"});
  if (!a[0]) fail("slice needs a number of slices");
  int64_t slices = integer_argument(*a[0], "slice: slices");
  ListPtr items = iterate(ctx, self);
  if (slices == 0) fail("slice: the number of slices is zero");
  ctx.step(std::max<int64_t>(slices, 0));
  std::vector<Value> out;
  auto size = static_cast<int64_t>(items->items.size());
  auto next = items->items.begin();
  for (int64_t i = 0; i < slices; ++i) {
    bool longer = i < size % slices;
    auto end = next + static_cast<std::ptrdiff_t>(size / slices + (longer ? 1 : 0));
    std::vector<Value> part(next, end);
    if (a[1] && !a[1]->is_none() && !longer) part.push_back(*a[1]);
    out.push_back(make_list(ctx, std::move(part)));
    next = end;
  }
  return make_list(ctx, std::move(out), Sequence::kIterator);
}

Value extreme(Context& ctx, const Value& self, const Args& args, int wanted) {
  Bound a = bind(args, "min or max", {"case_sensitive", "attribute"});
  ListPtr items = iterate(ctx, self);
  if (items->items.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  Keyed best;
  bool first = true;
  for (const Value& item : items->items) {
    Value key = key_of(ctx, item, a[1], a[0] && truthy(*a[0]));
    if (first || compare(ctx, key, best.key) == wanted) best = {std::move(key), item};
    first = false;
  }
  return best.item;
}
Value filter_min(Context& ctx, const Value& self, Args& args) {
  return extreme(ctx, self, args, -1);
}
Value filter_max(Context& ctx, const Value& self, Args& args) {
  return extreme(ctx, self, args, 1);
}

Value filter_sum(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "sum", {"attribute", "start"});
  Value sum = a[1] ? *a[1] : Value(int64_t{0});
  if (sum.is_string()) fail("sum cannot add strings; use join");
  ListPtr source = iterate(ctx, self);
  for (const Value& item : source->items)
    sum = arithmetic(ctx, "+", sum, a[0] && !a[0]->is_none() ? get_path(ctx, item, *a[0]) : item);
  return sum;
}

}  // namespace

Native find_sequence_filter(std::string_view name) {
  static const std::unordered_map<std::string_view, Native> kFilters = {
      {"length", filter_length},
      {"count", filter_length},
      {"first", filter_first},
      {"last", filter_last},
      {"list", filter_list},
      {"join", filter_join},
      {"items", filter_items},
      {"attr", filter_attr},
      {"reverse", filter_reverse},
      {"map", filter_map},
      {"select", filter_select},
      {"reject", filter_reject},
      {"selectattr", filter_selectattr},
      {"rejectattr", filter_rejectattr},
      {"sort", filter_sort},
      {"dictsort", filter_dictsort},
      {"unique", filter_unique},
      {"groupby", filter_groupby},
      {"batch", filter_batch},
      {"slice", filter_slice},
      {"min", filter_min},
      {"max", filter_max},
      {"sum", filter_sum},
  };
  auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace moectl::jinja
