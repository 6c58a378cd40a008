#include "core/jinja/interpreter.h"

#include <fmt/core.h>

#include <algorithm>

namespace moectl::jinja {

using Tag = Stmt::Tag;
using Op = Expr::Op;

// Statements and expressions in progress, macro calls included, may nest three times as deep as either may in the
// source.
static constexpr int kDynamicDepth = 3;

class Interpreter::Nested {
 public:
  explicit Nested(Interpreter& in) : in_(in) {
    if (in_.depth_ >= kDynamicDepth * in_.ctx_.max_depth)
      fail("macros and blocks nest too deeply (endless recursion?)");
    ++in_.depth_;
  }
  ~Nested() { --in_.depth_; }

 private:
  Interpreter& in_;
};

Str Interpreter::run(const Body& body) {
  Str out;
  out_ = &out;
  exec(body);
  return out;
}

// ------------------------------------------------------------------------------------------------ statements
Interpreter::Flow Interpreter::exec(const Body& body) {
  for (const Stmt& stmt : body)
    if (Flow flow = exec(stmt); flow != Flow::kNormal) return flow;
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::exec(const Stmt& stmt) {
  Nested nested(*this);
  ctx_.step();
  line_ = stmt.line;
  switch (stmt.tag) {
    case Tag::kText:
      write(stmt.text.str());
      break;
    case Tag::kOutput:
      write(to_str(ctx_, eval(*stmt.exprs[0])));
      break;
    case Tag::kSet:
      exec_set(stmt);
      break;
    case Tag::kMacro:
      set_variable(stmt.name, make_macro(stmt));
      break;
    case Tag::kCall:
      exec_call_block(stmt);
      break;
    case Tag::kIf:
      return exec_if(stmt);
    case Tag::kFor:
      return exec_for(stmt);
    case Tag::kBreak:
      return Flow::kBreak;
    case Tag::kContinue:
      return Flow::kContinue;
    case Tag::kWith:
    case Tag::kScope:
      return exec_with(stmt);
    case Tag::kSetBlock:
    case Tag::kFilter:
      return exec_captured(stmt);
  }
  return Flow::kNormal;
}

void Interpreter::write(const Str& text) {
  ctx_.bytes(text.size());
  ctx_.check_size(out_->size() + text.size());
  out_->append(text);
}

void Interpreter::exec_set(const Stmt& stmt) {
  assign(stmt.targets[0], eval(*stmt.exprs[0]));
}

Interpreter::Flow Interpreter::exec_if(const Stmt& stmt) {
  for (size_t i = 0; i < stmt.exprs.size(); ++i)
    if (!stmt.exprs[i] || truthy(eval(*stmt.exprs[i]))) return exec(stmt.bodies[i]);
  return Flow::kNormal;
}

ListPtr Interpreter::select_items(const Stmt& stmt, const Value& iterable) {
  ListPtr items = iterate(ctx_, iterable);
  if (!stmt.exprs[1]) return items;
  std::vector<Value> selected;
  Scope scope{scope_};
  InScope in(*this, scope);
  for (const Value& item : items->items) {
    ctx_.step();
    in.renew();
    assign(stmt.targets[0], item);
    if (truthy(eval(*stmt.exprs[1]))) selected.push_back(item);
  }
  return make_list(ctx_, std::move(selected)).list_ptr();
}

Interpreter::Flow Interpreter::exec_for(const Stmt& stmt) {
  return run_loop(stmt, eval(*stmt.exprs[0]), 0);
}

Interpreter::Flow Interpreter::run_loop(const Stmt& stmt, const Value& iterable, int depth0) {
  auto loop = std::make_shared<Loop>();
  loop->items = select_items(stmt, iterable);
  loop->depth0 = depth0;
  loop->stmt = stmt.recursive ? &stmt : nullptr;
  loop->scope = scope_->ref;
  Scope scope{scope_};
  InScope in(*this, scope);
  bool completed = false;  // jinja2's else runs unless some iteration reached the body's end
  for (; loop->index < loop->items->items.size(); ++loop->index) {
    ctx_.step();
    in.renew();
    scope.variables.emplace_back("loop", Value(loop));
    assign(stmt.targets[0], loop->items->items[loop->index]);
    Flow flow = exec(stmt.bodies[0]);
    completed = completed || flow == Flow::kNormal;
    if (flow == Flow::kBreak) break;
  }
  if (completed) return Flow::kNormal;
  in.renew();
  return exec(stmt.bodies[1]);
}

Interpreter::Flow Interpreter::exec_with(const Stmt& stmt) {
  std::vector<Value> values;  // all are evaluated outside, as in jinja2
  for (const ExprPtr& e : stmt.exprs) values.push_back(eval(*e));
  Scope scope{scope_};
  InScope in(*this, scope);
  for (size_t i = 0; i < values.size(); ++i) assign(stmt.targets[i], values[i]);
  return exec(stmt.bodies[0]);
}

// {% set x %}...{% endset %} and {% filter f %}...{% endfilter %}: the body's text becomes a value. A break inside
// leaves it.
Interpreter::Flow Interpreter::exec_captured(const Stmt& stmt) {
  Str text;
  Flow flow;
  {
    Scope scope{scope_};
    InScope in(*this, scope);
    Str* outer = std::exchange(out_, &text);
    flow = exec(stmt.bodies[0]);
    out_ = outer;
  }
  if (flow != Flow::kNormal) return flow;
  Value value{std::move(text)};
  if (stmt.exprs[0]) value = eval_filter(*stmt.exprs[0], &value);
  if (stmt.tag == Tag::kSetBlock) {
    assign(stmt.targets[0], value);
  } else {
    write(to_str(ctx_, value));
  }
  return flow;
}

// ------------------------------------------------------------------------------------------------ variables
void Interpreter::assign(const Target& target, const Value& value) {
  if (target.parts.empty()) {
    if (!target.attribute.empty()) return assign_attribute(target, value);
    return set_variable(target.name, value);
  }
  ListPtr items = iterate(ctx_, value);
  if (items->items.size() != target.parts.size())
    fail(fmt::format("cannot unpack {} values into {} names", items->items.size(), target.parts.size()));
  for (size_t i = 0; i < target.parts.size(); ++i) assign(target.parts[i], items->items[i]);
}

void Interpreter::assign_attribute(const Target& target, const Value& value) {
  Value object = lookup(target.name);
  if (!object.is(Value::Type::kNamespace))
    fail(fmt::format("cannot assign attribute '{}' on a non-namespace object", target.attribute));
  auto& attributes = object.ns().attributes;
  ctx_.step(1 + static_cast<int64_t>(attributes.size() / 8));
  for (auto& [key, old] : attributes)
    if (key == target.attribute) return void(old = value);
  attributes.emplace_back(target.attribute, value);
}

void Interpreter::set_variable(std::string_view name, Value value) {
  ctx_.step(1 + static_cast<int64_t>(scope_->variables.size() / 8));
  for (auto& [key, old] : scope_->variables)
    if (key == name) return void(old = std::move(value));
  scope_->variables.emplace_back(std::string(name), std::move(value));
}

Value Interpreter::lookup(const std::string& name) {
  for (Scope* scope = scope_; scope; scope = scope->parent) {
    ctx_.step(1 + static_cast<int64_t>(scope->variables.size() / 8));
    for (const auto& [key, value] : scope->variables)
      if (key == name) return value;
  }
  if (const Value* value = find(ctx_, variables_.dict(), name)) return *value;
  if (Native native = find_global(name)) {
    auto callable = std::make_shared<Callable>();
    callable->name = name;
    callable->native = native;
    return Value(std::move(callable));
  }
  return Value::undefined(fmt::format("'{}' is undefined", name));
}

// ------------------------------------------------------------------------------------------------ expressions
Value Interpreter::eval(const Expr& e) {
  Nested nested(*this);
  ctx_.step();
  switch (e.op) {
    case Op::kLiteral:
      return e.literal;
    case Op::kName:
      return lookup(e.text);
    case Op::kAttribute:
    case Op::kItem:
      return eval_item(e);
    case Op::kSlice:
      return eval_slice(e);
    case Op::kCall:
      return eval_call(e);
    case Op::kFilter:
      return eval_filter(e);
    case Op::kTest:
      return eval_native(e, eval(*e.args[0]));
    case Op::kList:
    case Op::kTuple:
      return eval_list(e);
    case Op::kDict:
      return eval_dict(e);
    case Op::kNegative:
    case Op::kPositive:
    case Op::kNot:
    case Op::kAnd:
    case Op::kOr:
      return eval_logic(e);
    case Op::kArithmetic:
      return eval_chain(e);
    case Op::kCompare:
      return eval_compare(e);
    case Op::kConcat:
      return eval_concat(e);
    case Op::kConditional:
      return eval_conditional(e);
  }
  return {};
}

Value Interpreter::eval_item(const Expr& e) {
  Value object = eval(*e.args[0]);
  if (e.op == Op::kAttribute) {
    line_ = e.line;
    return get_attribute(ctx_, object, e.text);
  }
  Value key = eval(*e.args[1]);
  line_ = e.line;
  return get_item(ctx_, object, key);
}

Value Interpreter::eval_slice(const Expr& e) {
  Value parts[4];
  for (size_t i = 0; i < 4; ++i) parts[i] = e.args[i] ? eval(*e.args[i]) : Value(None{});
  line_ = e.line;
  return slice(ctx_, parts[0], parts[1], parts[2], parts[3]);
}

Value Interpreter::eval_filter(const Expr& e, const Value* captured) {
  if (!e.args[0]) return eval_native(e, *captured);
  // In `{% filter a | b %}` the innermost filter has no operand of its own: the captured text is it.
  if (captured && e.args[0]->op == Op::kFilter) return eval_native(e, eval_filter(*e.args[0], captured));
  return eval_native(e, eval(*e.args[0]));
}

Value Interpreter::eval_native(const Expr& e, const Value& self) {
  Args args = eval_args(e);
  line_ = e.line;
  if (!e.native) fail(fmt::format("there is no {} named '{}'", e.op == Op::kTest ? "test" : "filter", e.text));
  return e.native(ctx_, self, args);
}

Value Interpreter::eval_list(const Expr& e) {
  std::vector<Value> items;
  for (const ExprPtr& arg : e.args) items.push_back(eval(*arg));
  return make_list(ctx_, std::move(items), e.op == Op::kTuple ? Sequence::kTuple : Sequence::kList);
}

Value Interpreter::eval_dict(const Expr& e) {
  std::vector<std::pair<Value, Value>> entries;
  for (size_t i = 0; i < e.args.size(); i += 2) {
    Value key = eval(*e.args[i]), value = eval(*e.args[i + 1]);
    ctx_.step(static_cast<int64_t>(entries.size() / 8));
    auto same =
        std::find_if(entries.begin(), entries.end(), [&](auto& entry) { return equals(ctx_, entry.first, key); });
    if (same != entries.end()) {
      same->second = std::move(value);
    } else {
      entries.emplace_back(std::move(key), std::move(value));
    }
  }
  return make_dict(ctx_, std::move(entries));
}

Value Interpreter::eval_logic(const Expr& e) {
  Value v = eval(*e.args[0]);
  line_ = e.line;
  if (e.op == Op::kNot) return Value(!truthy(v));
  if (e.op == Op::kNegative || e.op == Op::kPositive) {
    Value negative = negate(v);
    return e.op == Op::kNegative ? negative : negate(negative);
  }
  for (size_t i = 1; i < e.args.size() && truthy(v) == (e.op == Op::kAnd); ++i) v = eval(*e.args[i]);
  return v;
}

Value Interpreter::eval_chain(const Expr& e) {
  Value v = eval(*e.args[0]);
  for (size_t i = 1; i < e.args.size(); ++i) {
    Value right = eval(*e.args[i]);
    line_ = e.line;
    v = arithmetic(ctx_, e.names[i - 1], v, right);
  }
  return v;
}

Value Interpreter::eval_compare(const Expr& e) {
  Value left = eval(*e.args[0]);
  for (size_t i = 1; i < e.args.size(); ++i) {
    Value right = eval(*e.args[i]);
    line_ = e.line;
    if (!holds(ctx_, e.names[i - 1], left, right)) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Interpreter::eval_concat(const Expr& e) {
  Str out;
  for (const ExprPtr& arg : e.args) {
    Str part = to_str(ctx_, eval(*arg));
    ctx_.bytes(part.size());
    ctx_.check_size(out.size() + part.size());
    out.append(part);
  }
  return Value(std::move(out));
}

Value Interpreter::eval_conditional(const Expr& e) {
  if (truthy(eval(*e.args[1]))) return eval(*e.args[0]);
  if (e.args[2]) return eval(*e.args[2]);
  return Value::undefined("the inline if-expression has no else and its condition does not hold");
}

}  // namespace moectl::jinja
