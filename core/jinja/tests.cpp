// Tests: `x is name(args)`.
#include <fmt/core.h>

#include <unordered_map>

#include "core/jinja/functions.h"
#include "core/jinja/interpreter.h"

namespace moectl::jinja {
namespace {

using Type = Value::Type;

// Without arguments.
template <bool (*Holds)(const Value&)>
Value plain(Context&, const Value& self, Args& args) {
  bind(args, "test", {});
  return Value(Holds(self));
}

bool is_defined(const Value& v) {
  return !v.is_undefined();
}
bool is_undefined(const Value& v) {
  return v.is_undefined();
}
bool is_none(const Value& v) {
  return v.is_none();
}
bool is_string(const Value& v) {
  return v.is_string();
}
bool is_mapping(const Value& v) {
  return v.is_dict();
}
bool is_iterable(const Value& v) {
  return v.is_undefined() || v.is_string() || v.is_list() || v.is_dict() || v.is(Type::kLoop);
}
bool is_sequence(const Value& v) {
  if (v.is_list()) return v.list().kind != Sequence::kView && v.list().kind != Sequence::kIterator;
  return v.is_undefined() || v.is_string() || v.is_dict();
}
bool is_number(const Value& v) {
  return v.is_number();
}
bool is_integer(const Value& v) {
  return v.is(Type::kInt);
}
bool is_float(const Value& v) {
  return v.is(Type::kReal);
}
bool is_boolean(const Value& v) {
  return v.is(Type::kBool);
}
bool is_true(const Value& v) {
  return v.is(Type::kBool) && v.boolean();
}
bool is_false(const Value& v) {
  return v.is(Type::kBool) && !v.boolean();
}
bool is_escaped(const Value&) {
  return false;  // autoescape is off: no text is marked as markup
}
bool is_callable(const Value& v) {
  return v.is(Type::kCallable) || v.is_undefined();
}

// All cased characters have one case, and there is one at least.
Value has_case(Context& ctx, const Value& self, bool (*wanted)(char32_t), bool (*other)(char32_t)) {
  Str s = to_str(ctx, self);
  ctx.bytes(4 * s.size());
  bool found = false;
  for (size_t pos = 0; pos < s.size(); pos += char_bytes(s.text(), pos)) {
    char32_t c = char_at(s.text(), pos);
    if (other(c)) return Value(false);
    found = found || wanted(c);
  }
  return Value(found);
}
Value test_lower(Context& ctx, const Value& self, Args& args) {
  bind(args, "lower", {});
  return has_case(ctx, self, is_lower, is_upper);
}
Value test_upper(Context& ctx, const Value& self, Args& args) {
  bind(args, "upper", {});
  return has_case(ctx, self, is_upper, is_lower);
}

const Value& other_of(const Args& args, std::string_view name) {
  Bound a = bind(args, name, {"other"});
  if (!a[0]) fail(fmt::format("the test '{}' needs a value to compare with", name));
  return *a[0];
}
template <int64_t kRemainder>
Value test_parity(Context& ctx, const Value& self, Args& args) {
  bind(args, "even or odd", {});
  return Value(equals(ctx, arithmetic(ctx, "%", self, Value(int64_t{2})), Value(kRemainder)));
}
Value test_eq(Context& ctx, const Value& self, Args& args) {
  return Value(holds(ctx, "==", self, other_of(args, "==")));
}
Value test_ne(Context& ctx, const Value& self, Args& args) {
  return Value(holds(ctx, "!=", self, other_of(args, "!=")));
}
Value test_lt(Context& ctx, const Value& self, Args& args) {
  return Value(holds(ctx, "<", self, other_of(args, "<")));
}
Value test_le(Context& ctx, const Value& self, Args& args) {
  return Value(holds(ctx, "<=", self, other_of(args, "<=")));
}
Value test_gt(Context& ctx, const Value& self, Args& args) {
  return Value(holds(ctx, ">", self, other_of(args, ">")));
}
Value test_ge(Context& ctx, const Value& self, Args& args) {
  return Value(holds(ctx, ">=", self, other_of(args, ">=")));
}
Value test_in(Context& ctx, const Value& self, Args& args) {
  return Value(holds(ctx, "in", self, other_of(args, "in")));
}
Value test_sameas(Context&, const Value& self, Args& args) {
  return Value(self.same_object(other_of(args, "sameas")));
}
Value test_divisibleby(Context& ctx, const Value& self, Args& args) {
  return Value(!truthy(arithmetic(ctx, "%", self, other_of(args, "divisibleby"))));
}
Value test_filter(Context&, const Value& self, Args& args) {
  bind(args, "filter", {});
  return Value(self.is_string() && find_filter(self.text()) != nullptr);
}
Value test_test(Context&, const Value& self, Args& args) {
  bind(args, "test", {});
  return Value(self.is_string() && find_test(self.text()) != nullptr);
}

}  // namespace

Native find_test(std::string_view name) {
  static const std::unordered_map<std::string_view, Native> kTests = {
      {"defined", plain<is_defined>},
      {"undefined", plain<is_undefined>},
      {"none", plain<is_none>},
      {"string", plain<is_string>},
      {"mapping", plain<is_mapping>},
      {"iterable", plain<is_iterable>},
      {"sequence", plain<is_sequence>},
      {"number", plain<is_number>},
      {"integer", plain<is_integer>},
      {"float", plain<is_float>},
      {"boolean", plain<is_boolean>},
      {"true", plain<is_true>},
      {"false", plain<is_false>},
      {"even", test_parity<0>},
      {"odd", test_parity<1>},
      {"callable", plain<is_callable>},
      {"escaped", plain<is_escaped>},
      {"lower", test_lower},
      {"upper", test_upper},
      {"eq", test_eq},
      {"==", test_eq},
      {"equalto", test_eq},
      {"ne", test_ne},
      {"!=", test_ne},
      {"lt", test_lt},
      {"<", test_lt},
      {"lessthan", test_lt},
      {"le", test_le},
      {"<=", test_le},
      {"gt", test_gt},
      {">", test_gt},
      {"greaterthan", test_gt},
      {"ge", test_ge},
      {">=", test_ge},
      {"in", test_in},
      {"sameas", test_sameas},
      {"divisibleby", test_divisibleby},
      {"filter", test_filter},
      {"test", test_test},
  };
  auto found = kTests.find(name);
  return found == kTests.end() ? nullptr : found->second;
}

}  // namespace moectl::jinja
