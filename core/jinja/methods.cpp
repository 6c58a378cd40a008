// Methods of Python's dict and list that the immutable sandbox allows, and where methods are looked up.
#include <fmt/core.h>

#include <algorithm>
#include <unordered_map>

#include "core/jinja/functions.h"

namespace moectl::jinja {
namespace {

Value dict_get(Context& ctx, const Value& self, Args& args) {
  if (!args.named.empty()) fail("get takes no named arguments");
  Bound a = bind(args, "get", {"key", "default"});
  if (!a[0]) fail("get needs a key");
  check_hashable(*a[0]);
  if (const Value* item = find(ctx, self.dict(), *a[0])) return *item;
  return a[1] ? *a[1] : Value(None{});
}

Value dict_keys(Context& ctx, const Value& self, Args& args) {
  bind(args, "keys", {});
  std::vector<Value> out;
  for (const auto& entry : self.dict().entries) out.push_back(entry.first);
  return make_list(ctx, std::move(out), Sequence::kView);
}
Value dict_values(Context& ctx, const Value& self, Args& args) {
  bind(args, "values", {});
  std::vector<Value> out;
  for (const auto& entry : self.dict().entries) out.push_back(entry.second);
  return make_list(ctx, std::move(out), Sequence::kView);
}
Value dict_items(Context& ctx, const Value& self, Args& args) {
  bind(args, "items", {});
  std::vector<Value> out;
  for (const auto& [key, value] : self.dict().entries) out.push_back(make_list(ctx, {key, value}, Sequence::kTuple));
  return make_list(ctx, std::move(out), Sequence::kView);
}
Value copy_of(Context&, const Value& self, Args& args) {
  bind(args, "copy", {});
  return self;  // values never change
}

Value list_index(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "index", {"value"});
  if (!a[0]) fail("index needs a value");
  const auto& items = self.list().items;
  for (size_t i = 0; i < items.size(); ++i)
    if (equals(ctx, items[i], *a[0])) return Value(static_cast<int64_t>(i));
  fail("index: the value is not in the list");
}
Value list_count(Context& ctx, const Value& self, Args& args) {
  Bound a = bind(args, "count", {"value"});
  if (!a[0]) fail("count needs a value");
  int64_t count = 0;
  for (const Value& item : self.list().items) count += equals(ctx, item, *a[0]);
  return Value(count);
}

using Methods = std::unordered_map<std::string_view, Native>;

const Methods& methods_of(const Value& object) {
  static const Methods kNone;
  static const Methods kDict = {
      {"get", dict_get}, {"keys", dict_keys}, {"values", dict_values}, {"items", dict_items}, {"copy", copy_of}};
  static const Methods kList = {{"index", list_index}, {"count", list_count}, {"copy", copy_of}};
  static const Methods kTuple = {{"index", list_index}, {"count", list_count}};
  if (object.is_dict()) return kDict;
  if (!object.is_list()) return kNone;
  return object.list().kind == Sequence::kList ? kList : object.list().kind == Sequence::kTuple ? kTuple : kNone;
}

}  // namespace

Value find_method(const Value& object, std::string_view name) {
  Native native = nullptr;
  if (object.is_string()) {
    native = find_string_method(name, object.str().is_markup());
  } else if (const Methods& methods = methods_of(object); methods.count(name)) {
    native = methods.at(name);
  }
  if (!native) return {};
  auto method = std::make_shared<Callable>();
  method->name = name;
  method->native = native;
  method->self = object;
  return Value(std::move(method));
}

bool is_refused_method(const Value& object, std::string_view name) {
  static constexpr std::string_view kDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  static constexpr std::string_view kList[] = {"append", "clear",  "extend",  "insert",
                                               "pop",    "remove", "reverse", "sort"};
  if (object.is_dict()) return std::find(std::begin(kDict), std::end(kDict), name) != std::end(kDict);
  return object.is_list() && object.list().kind == Sequence::kList &&
         std::find(std::begin(kList), std::end(kList), name) != std::end(kList);
}

}  // namespace moectl::jinja
