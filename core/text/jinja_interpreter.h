// Runs a parsed template once. One object a rendering, one thread. Depth is counted over statements, expressions and
// macro calls together, so the C++ stack is bounded: at max_depth 64 parsing and rendering fit 256 KiB of it (with
// sanitizers, whose frames are ten times larger, 4 MiB).
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/text/jinja_ast.h"
#include "core/text/jinja_value.h"

namespace moectl::jinja {

class Interpreter {
 public:
  Interpreter(Context& ctx, const Value& variables) : ctx_(ctx), variables_(variables), scope_(&root_) {}
  Str run(const Body& body);
  int line() const { return line_; }  // where it stands; after an exception, where that happened

 private:
  // Variables of one block; a name is looked up from the innermost scope outwards, then in the request's variables.
  struct Scope {
    Scope* parent = nullptr;
    std::vector<std::pair<std::string, Value>> variables{};
  };
  class Nested;   // counts depth
  class InScope;  // makes a scope current
  enum class Flow { kNormal, kBreak, kContinue };

  Flow exec(const Body& body);
  Flow exec(const Stmt& stmt);
  Flow exec_if(const Stmt& stmt);
  Flow exec_for(const Stmt& stmt);
  Flow exec_with(const Stmt& stmt);
  Flow exec_captured(const Stmt& stmt);
  ListPtr select_items(const Stmt& stmt);
  void exec_set(const Stmt& stmt);
  void exec_macro(const Stmt& stmt);
  void write(const Str& text);
  void assign(const Target& target, const Value& value);
  void assign_one(const std::string& name, const std::string& attribute, const Value& value);
  void set_variable(std::string_view name, Value value);
  Value lookup(const std::string& name);

  Value eval(const Expr& e);
  Value eval_item(const Expr& e);
  Value eval_slice(const Expr& e);
  Value eval_call(const Expr& e);
  Value eval_filter(const Expr& e, const Value* captured = nullptr);
  Value eval_native(const Expr& e, const Value& self);
  Value eval_list(const Expr& e);
  Value eval_dict(const Expr& e);
  Value eval_logic(const Expr& e);
  Value eval_chain(const Expr& e);
  Value eval_compare(const Expr& e);
  Value eval_concat(const Expr& e);
  Value eval_conditional(const Expr& e);
  Args eval_args(const Expr& e);
  Value call_macro(const Stmt& macro, Args& args);

  Context& ctx_;
  const Value& variables_;
  Scope root_;
  Scope* scope_;
  Str* out_ = nullptr;
  int depth_ = 0;
  int line_ = 1;
};

// Operators, in jinja_operators.cpp.
Value arithmetic(Context& ctx, std::string_view op, const Value& a, const Value& b);
Value negate(const Value& v);
bool holds(Context& ctx, std::string_view op, const Value& a, const Value& b);  // comparisons, in, not in
Value slice(Context& ctx, const Value& v, const Value& start, const Value& stop, const Value& step);

}  // namespace moectl::jinja
