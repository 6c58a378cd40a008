// Operators on values, with Python's rules; integers have 64 bits and overflow is an error.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "core/jinja/functions.h"
#include "core/jinja/interpreter.h"

namespace moectl::jinja {
namespace {

[[noreturn]] void overflow() {
  fail("integer overflow: integers have 64 bits");
}

void refuse_undefined(const Value& v) {
  if (v.is_undefined())
    fail(v.undefined_reason() ? *v.undefined_reason() : "an undefined value is used in an operation");
}

[[noreturn]] void unsupported(std::string_view op, const Value& a, const Value& b) {
  refuse_undefined(a);
  refuse_undefined(b);
  fail(fmt::format("unsupported operands for {}: '{}' and '{}'", op, type_name(a), type_name(b)));
}

Value integer_power(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) fail("0 cannot be raised to a negative power");
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) overflow();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) overflow();
  }
  return Value(result);
}

Value integer_arithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t r = 0;
  if (op == "+") {
    if (__builtin_add_overflow(a, b, &r)) overflow();
  } else if (op == "-") {
    if (__builtin_sub_overflow(a, b, &r)) overflow();
  } else if (op == "*") {
    if (__builtin_mul_overflow(a, b, &r)) overflow();
  } else if (op == "**") {
    return integer_power(a, b);
  } else {
    if (b == 0) fail("division by zero");
    if (op == "/") return Value(static_cast<double>(a) / static_cast<double>(b));
    if (b == -1) return op == "%" ? Value(int64_t{0}) : integer_arithmetic("-", 0, a);
    bool round_down = a % b != 0 && (a < 0) != (b < 0);
    r = op == "//" ? a / b - round_down : a % b + (round_down ? b : 0);
  }
  return Value(r);
}

Value real_arithmetic(std::string_view op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") {
    double r = std::pow(a, b);
    if (std::isnan(r) && !std::isnan(a) && !std::isnan(b)) fail("a negative number cannot be raised to a fraction");
    return Value(r);
  }
  if (b == 0) fail("division by zero");
  if (op == "/") return Value(a / b);
  double mod = std::fmod(a, b);
  double quotient = (a - mod) / b;
  if (mod == 0) {
    mod = std::copysign(0.0, b);
  } else if ((mod < 0) != (b < 0)) {
    mod += b;
    quotient -= 1;
  }
  if (op == "%") return Value(mod);
  if (quotient == 0) return Value(std::copysign(0.0, a / b));
  double whole = std::floor(quotient);
  return Value(quotient - whole > 0.5 ? whole + 1 : whole);
}

Value repeat_list(Context& ctx, const List& list, int64_t count) {
  count = std::max<int64_t>(count, 0);
  int64_t total;
  if (__builtin_mul_overflow(static_cast<int64_t>(list.items.size()), count, &total)) overflow();
  ctx.step(total);
  std::vector<Value> items;
  items.reserve(static_cast<size_t>(total));
  for (int64_t i = 0; total > 0 && i < count; ++i) items.insert(items.end(), list.items.begin(), list.items.end());
  return make_list(ctx, std::move(items), list.kind);
}

bool is_plain(const Value& v) {
  return v.is_list() && (v.list().kind == Sequence::kList || v.list().kind == Sequence::kTuple);
}

Value add_lists(Context& ctx, const List& a, const List& b) {
  std::vector<Value> items;
  ctx.step(static_cast<int64_t>(a.items.size() + b.items.size()));
  items.reserve(a.items.size() + b.items.size());
  items.insert(items.end(), a.items.begin(), a.items.end());
  items.insert(items.end(), b.items.begin(), b.items.end());
  return make_list(ctx, std::move(items), a.kind);
}

}  // namespace

Value arithmetic(Context& ctx, std::string_view op, const Value& a, const Value& b) {
  if (a.is_integer() && b.is_integer()) return integer_arithmetic(op, a.integer(), b.integer());
  if (a.is_number() && b.is_number()) return real_arithmetic(op, a.real(), b.real());
  if (op == "+" && a.is_string() && b.is_string()) return add_text(ctx, a.str(), b.str());
  if (op == "+" && is_plain(a) && is_plain(b) && a.list().kind == b.list().kind)
    return add_lists(ctx, a.list(), b.list());
  if (op == "*") {
    if (a.is_string() && b.is_integer()) return repeat_text(ctx, a.str(), b.integer());
    if (b.is_string() && a.is_integer()) return repeat_text(ctx, b.str(), a.integer());
    if (is_plain(a) && b.is_integer()) return repeat_list(ctx, a.list(), b.integer());
    if (is_plain(b) && a.is_integer()) return repeat_list(ctx, b.list(), a.integer());
  }
  if (op == "%" && a.is_string()) return printf_text(ctx, a.str(), b);
  unsupported(op, a, b);
}

Value negate(const Value& v) {
  if (v.is_integer()) return integer_arithmetic("-", 0, v.integer());
  if (v.is_number()) return Value(-v.real());
  refuse_undefined(v);
  fail(fmt::format("bad operand for unary - or +: '{}'", type_name(v)));
}

bool holds(Context& ctx, std::string_view op, const Value& a, const Value& b) {
  if (op == "==") return equals(ctx, a, b);
  if (op == "!=") return !equals(ctx, a, b);
  if (op == "in") return contains(ctx, b, a);
  if (op == "not in") return !contains(ctx, b, a);
  int order = compare(ctx, a, b);
  if (order == 2) return false;
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  if (op == ">") return order > 0;
  return order >= 0;
}

// ------------------------------------------------------------------------------------------------ slices
namespace {

struct Range {
  int64_t start, step, count;
};

// Python's slice.indices for a sequence of `size` items.
Range resolve(const Value& start, const Value& stop, const Value& step_value, int64_t size) {
  int64_t step = step_value.is_none() ? 1 : integer_argument(step_value, "a slice's step");
  if (step == 0) fail("a slice's step cannot be zero");
  step = std::clamp<int64_t>(step, -size - 1, size + 1);
  auto bound = [&](const Value& v, int64_t missing) {
    if (v.is_none()) return missing;
    int64_t i = integer_argument(v, "a slice's bound");
    if (i < 0) return std::max<int64_t>(i + size, step < 0 ? -1 : 0);
    return std::min(i, step < 0 ? size - 1 : size);
  };
  int64_t begin = bound(start, step < 0 ? size - 1 : 0), end = bound(stop, step < 0 ? -1 : size);
  int64_t count = step > 0 ? (end - begin + step - 1) / step : (begin - end - step - 1) / -step;
  return {begin, step, std::max<int64_t>(0, step > 0 ? (end > begin ? count : 0) : (begin > end ? count : 0))};
}

Value slice_text(Context& ctx, const Str& s, const Value& start, const Value& stop, const Value& step) {
  const std::string& text = s.text();
  ctx.new_string(2 * text.size());
  std::vector<uint32_t> at;  // byte offset of each character, and of the end
  for (size_t pos = 0; pos < text.size(); pos += char_bytes(text, pos)) at.push_back(static_cast<uint32_t>(pos));
  at.push_back(static_cast<uint32_t>(text.size()));
  Range r = resolve(start, stop, step, static_cast<int64_t>(at.size()) - 1);
  auto offset = [&](int64_t i) { return static_cast<size_t>(at[static_cast<size_t>(i)]); };
  Str out;
  if (r.step == 1 && r.count > 0) {
    out = s.slice(offset(r.start), offset(r.start + r.count));
  } else {
    for (int64_t i = r.start, n = 0; n < r.count; ++n, i += r.step) out.append(s, offset(i), offset(i + 1));
  }
  return Value(std::move(out).marked(s.is_markup()));
}

}  // namespace

Value slice(Context& ctx, const Value& v, const Value& start, const Value& stop, const Value& step) {
  refuse_undefined(v);
  if (v.is_string()) return slice_text(ctx, v.str(), start, stop, step);
  if (!v.is_list() || v.list().kind == Sequence::kView || v.list().kind == Sequence::kIterator)
    fail(fmt::format("'{}' cannot be sliced", type_name(v)));
  const auto& items = v.list().items;
  Range r = resolve(start, stop, step, static_cast<int64_t>(items.size()));
  ctx.step(r.count);
  std::vector<Value> out;
  for (int64_t i = r.start, n = 0; n < r.count; ++n, i += r.step) out.push_back(items[static_cast<size_t>(i)]);
  return make_list(ctx, std::move(out), v.list().kind);
}

}  // namespace moectl::jinja
