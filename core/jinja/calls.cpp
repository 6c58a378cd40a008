// Calls of the interpreter: arguments, macros with their special names (caller, kwargs, varargs), call blocks and
// recursive loops.
#include <fmt/core.h>

#include <algorithm>

#include "core/jinja/functions.h"
#include "core/jinja/interpreter.h"

namespace moectl::jinja {

Value Interpreter::make_macro(const Stmt& stmt) const {
  auto callable = std::make_shared<Callable>();
  callable->name = stmt.name;
  callable->macro = &stmt;
  callable->scope = scope_->ref;
  return Value(std::move(callable));
}

Interpreter::Scope& Interpreter::find_scope(const ScopeRef& ref, const std::string& what) const {
  if (ref.position >= live_.size() || live_[ref.position]->ref.id != ref.id)
    fail(fmt::format("'{}' is called after the block that defines it has ended", what));
  return *live_[ref.position];
}

void Interpreter::exec_call_block(const Stmt& stmt) {
  Value caller = make_macro(stmt.bodies[0][0]);
  Value text = eval_call(*stmt.exprs[0], &caller);
  if (!text.is_string()) fail("a call block needs a macro to call");
  write(text.str());
}

// ------------------------------------------------------------------------------------------------ arguments
Args Interpreter::eval_args(const Expr& e) {
  Args args;
  size_t first_named = e.args.size() - e.names.size();
  for (size_t i = 1; i < e.args.size(); ++i) {
    Value value = eval(*e.args[i]);
    if (i < first_named) {
      args.positional.push_back(std::move(value));
    } else if (const std::string& name = e.names[i - first_named]; name == "*") {
      ListPtr items = iterate(ctx_, value);
      ctx_.step(static_cast<int64_t>(items->items.size()));
      args.positional.insert(args.positional.end(), items->items.begin(), items->items.end());
    } else if (name == "**") {
      spread_dict(value, args);
    } else {
      args.named.emplace_back(name, std::move(value));
    }
  }
  return args;
}

void Interpreter::spread_dict(const Value& dict, Args& args) {
  if (!dict.is_dict()) fail(fmt::format("the argument after ** must be a mapping, not '{}'", type_name(dict)));
  for (const auto& [key, value] : dict.dict().entries) {
    if (!key.is_string()) fail("keys of a mapping after ** must be strings");
    const std::string& name = key.text();
    ctx_.step(1 + static_cast<int64_t>(args.named.size() / 8));
    if (std::any_of(args.named.begin(), args.named.end(), [&](auto& arg) { return arg.first == name; }))
      fail(fmt::format("the argument '{}' is given twice", name.substr(0, 60)));
    args.named.emplace_back(name, value);
  }
}

// ------------------------------------------------------------------------------------------------ calls
Value Interpreter::eval_call(const Expr& e, const Value* caller) {
  Value callee = eval(*e.args[0]);
  Args args = eval_args(e);
  if (caller) args.named.emplace_back("caller", *caller);
  line_ = e.line;
  Value result = call(callee, args);
  line_ = e.line;
  return result;
}

Value Interpreter::call(const Value& callee, Args& args) {
  if (callee.is_undefined())
    fail(callee.undefined_reason() ? *callee.undefined_reason() : "an undefined value is called");
  if (callee.is(Value::Type::kLoop)) return call_loop(callee.loop(), args);
  if (!callee.is(Value::Type::kCallable)) fail(fmt::format("'{}' object is not callable", type_name(callee)));
  const Callable& callable = callee.callable();
  if (callable.macro) return call_macro(callable, args);
  return callable.native(ctx_, callable.stateful ? callee : callable.self, args);
}

// loop(items) inside of a recursive loop: the same loop over other items, as text.
Value Interpreter::call_loop(const Loop& loop, Args& args) {
  if (!loop.stmt) fail("this loop is called, but it is not marked `recursive`");
  Bound a = bind(args, "loop", {"iterable"});
  if (!a[0]) fail("loop() needs the items to loop over");
  Str text;
  Str* out = std::exchange(out_, &text);
  Scope* scope = std::exchange(scope_, &find_scope(loop.scope, "loop"));
  run_loop(*loop.stmt, *a[0], loop.depth0 + 1);
  scope_ = scope;
  out_ = out;
  return Value(std::move(text));
}

// Removes the argument `name` from the named ones; false when it is not there.
static bool take_named(Context& ctx, Args& args, std::string_view name, Value* value) {
  ctx.step(1 + static_cast<int64_t>(args.named.size() / 8));
  auto found = std::find_if(args.named.begin(), args.named.end(), [&](auto& arg) { return arg.first == name; });
  if (found == args.named.end()) return false;
  *value = std::move(found->second);
  args.named.erase(found);
  return true;
}

Value Interpreter::call_macro(const Callable& callable, Args& args) {
  const Stmt& macro = *callable.macro;
  Scope scope{&find_scope(callable.scope, macro.name)};
  InScope in(*this, scope);
  Str text;
  Str* out = std::exchange(out_, &text);
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const std::string& parameter = macro.parameters[i];
    Value value;
    if (i < args.positional.size()) {
      value = args.positional[i];
    } else if (!take_named(ctx_, args, parameter, &value)) {
      value = macro.exprs[i] ? eval(*macro.exprs[i])
                             : Value::undefined(fmt::format("parameter '{}' was not provided", parameter));
    }
    set_variable(parameter, std::move(value));
  }
  set_special_arguments(macro, args);
  exec(macro.bodies[0]);
  out_ = out;
  return Value(std::move(text));
}

// What is left of the arguments goes to the names that the macro's body uses; otherwise there must be nothing left.
void Interpreter::set_special_arguments(const Stmt& macro, Args& args) {
  if (macro.uses_caller) {
    Value caller = Value::undefined("no caller: the macro was not called by a call block");
    take_named(ctx_, args, "caller", &caller);
    set_variable("caller", std::move(caller));
  }
  if (macro.uses_kwargs) {
    std::vector<std::pair<Value, Value>> entries;
    for (auto& [name, value] : args.named) entries.emplace_back(Value(Str(name, false)), std::move(value));
    set_variable("kwargs", make_dict(ctx_, std::move(entries)));
  } else if (!args.named.empty()) {
    fail(fmt::format("macro '{}' has no parameter '{}', or got two values for it", macro.name,
                     args.named[0].first.substr(0, 60)));
  }
  size_t used = std::min(args.positional.size(), macro.parameters.size());
  if (macro.uses_varargs) {
    std::vector<Value> rest(args.positional.begin() + static_cast<std::ptrdiff_t>(used), args.positional.end());
    set_variable("varargs", make_list(ctx_, std::move(rest), Sequence::kTuple));
  } else if (args.positional.size() > used) {
    fail(fmt::format("macro '{}' takes at most {} arguments", macro.name, macro.parameters.size()));
  }
}

}  // namespace moectl::jinja
