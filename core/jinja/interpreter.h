// Runs a parsed template once. One object a rendering, one thread. Depth is counted over statements, expressions and
// macro calls together, so the C++ stack is bounded: at max_depth 64 parsing and rendering fit 256 KiB of it (with
// sanitizers, whose frames are ten times larger, 4 MiB).
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/jinja/ast.h"
#include "core/jinja/value.h"

namespace moectl::jinja {

class Interpreter {
 public:
  Interpreter(Context& ctx, const Value& variables) : ctx_(ctx), variables_(variables), scope_(&root_) {}
  Interpreter(const Interpreter&) = delete;
  Str run(const Body& body);
  int line() const { return line_; }  // where it stands; after an exception, where that happened

 private:
  // Variables of one block; a name is looked up from the innermost scope outwards, then in the request's variables.
  struct Scope {
    Scope* parent = nullptr;
    std::vector<std::pair<std::string, Value>> variables{};
    ScopeRef ref{};
  };
  class Nested;  // counts depth
  // Makes a new scope current while it lives.
  class InScope {
   public:
    InScope(Interpreter& in, Scope& scope) : in_(in), scope_(scope), outer_(std::exchange(in.scope_, &scope)) {
      scope.ref.position = in.live_.size();
      in.live_.push_back(&scope);
      renew();
    }
    ~InScope() {
      in_.scope_ = outer_;
      in_.live_.pop_back();
    }
    // Forgets the variables, and with them the macros that were defined here.
    void renew() {
      scope_.variables.clear();
      scope_.ref.id = ++in_.last_scope_id_;
    }

   private:
    Interpreter& in_;
    Scope& scope_;
    Scope* outer_;
  };
  enum class Flow { kNormal, kBreak, kContinue };

  Flow exec(const Body& body);
  Flow exec(const Stmt& stmt);
  Flow exec_if(const Stmt& stmt);
  Flow exec_for(const Stmt& stmt);
  Flow exec_with(const Stmt& stmt);
  Flow exec_captured(const Stmt& stmt);
  Flow run_loop(const Stmt& stmt, const Value& iterable, int depth0);
  ListPtr select_items(const Stmt& stmt, const Value& iterable);
  void exec_set(const Stmt& stmt);
  void write(const Str& text);
  void assign(const Target& target, const Value& value);
  void assign_attribute(const Target& target, const Value& value);
  void set_variable(std::string_view name, Value value);
  Value lookup(const std::string& name);

  Value eval(const Expr& e);
  Value eval_item(const Expr& e);
  Value eval_slice(const Expr& e);
  Value eval_filter(const Expr& e, const Value* captured = nullptr);
  Value eval_native(const Expr& e, const Value& self);
  Value eval_list(const Expr& e);
  Value eval_dict(const Expr& e);
  Value eval_logic(const Expr& e);
  Value eval_chain(const Expr& e);
  Value eval_compare(const Expr& e);
  Value eval_concat(const Expr& e);
  Value eval_conditional(const Expr& e);

  // Calls, in jinja_calls.cpp.
  Value make_macro(const Stmt& stmt) const;
  void exec_call_block(const Stmt& stmt);
  Value eval_call(const Expr& e, const Value* caller = nullptr);
  Args eval_args(const Expr& e);
  void spread_dict(const Value& dict, Args& args);
  Value call(const Value& callee, Args& args);
  Value call_loop(const Loop& loop, Args& args);
  Value call_macro(const Callable& callable, Args& args);
  void set_special_arguments(const Stmt& macro, Args& args);
  Scope& find_scope(const ScopeRef& ref, const std::string& what) const;

  Context& ctx_;
  const Value& variables_;
  Scope root_;
  Scope* scope_;
  std::vector<Scope*> live_{&root_};  // every scope whose block runs, at its ref.position
  uint64_t last_scope_id_ = 0;
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
