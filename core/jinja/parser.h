// Parser of Jinja templates: tokens -> tree, following jinja2's grammar and precedences. One object a template; used by
// one thread. Statements are in jinja_parser.cpp, expressions in jinja_expression_parser.cpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/jinja/ast.h"
#include "core/jinja/lexer.h"

namespace moectl::jinja {

class Parser {
 public:
  Parser(std::vector<Token> tokens, int max_depth) : tokens_(std::move(tokens)), max_depth_(max_depth) {}
  Body parse_template();

 private:
  using Kind = Token::Kind;

  // Statements.
  Body parse_body(std::initializer_list<std::string_view> ends);  // stops at one of `ends`, after its "{%"
  void parse_statement(Body& out);
  Stmt parse_if(int line);
  Stmt parse_for(int line);
  Stmt parse_set(int line);
  Stmt parse_macro(int line);
  Stmt parse_call_block(int line);
  void parse_signature(Stmt& macro);
  void parse_macro_body(Stmt& macro, std::string_view end);
  Stmt parse_with(int line);
  Stmt parse_filter_block(int line);
  Body parse_rest_of_block(std::string_view end);  // "%} body {% end"
  Target parse_target(bool with_attributes);
  Target parse_target_part(bool with_attributes);
  std::string parse_variable_name();

  // Expressions.
  ExprPtr parse_tuple(bool with_conditional = true, bool allow_empty = false);
  ExprPtr parse_expression(bool with_conditional = true);
  ExprPtr parse_binary(int min_level);
  ExprPtr parse_unary(bool with_filter = true);
  ExprPtr parse_primary();
  ExprPtr parse_string();
  ExprPtr parse_list();
  ExprPtr parse_dict();
  ExprPtr parse_postfix(ExprPtr node);
  ExprPtr parse_subscript(ExprPtr node);
  ExprPtr parse_filter_tail(ExprPtr node);
  ExprPtr parse_filter(ExprPtr node);
  ExprPtr parse_test(ExprPtr node);
  void parse_call_args(Expr& call);

  // Tokens.
  const Token& current() const { return tokens_[pos_]; }
  const Token& next_token() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  bool is_op(std::string_view op) const { return current().kind == Kind::kOperator && current().text == op; }
  bool is_name(std::string_view name) const { return current().kind == Kind::kName && current().text == name; }
  bool skip_op(std::string_view op);
  bool skip_name(std::string_view name);
  void expect_op(std::string_view op);
  void expect(Kind kind, std::string_view what);
  std::string expect_name(std::string_view what);
  std::string expect_dotted_name(std::string_view what);  // of a filter or test
  [[noreturn]] void unexpected(std::string_view expected) const;
  void advance() {
    if (pos_ + 1 < tokens_.size()) ++pos_;
  }

  ExprPtr make(Expr::Op op, int line, std::string text = {}) const;
  ExprPtr finish(ExprPtr node) const;  // sets the depth from the operands and checks it

  // Counts recursion of the parser itself: parentheses and blocks that leave no node.
  class Nesting {
   public:
    explicit Nesting(Parser& parser);
    ~Nesting() { --parser_.nesting_; }

   private:
    Parser& parser_;
  };

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  const int max_depth_;
  // Names that a macro's call sets without declaring them, where its body has them.
  struct SpecialNames {
    bool caller = false, kwargs = false, varargs = false;
  };

  SpecialNames seen_;
  int nesting_ = 0;
  int blocks_ = 0;
  int loops_ = 0;       // enclosing loops of the same function: break and continue need one
  int conditions_ = 0;  // inside a branch an unknown filter is an error only when reached, as in jinja2
};

}  // namespace moectl::jinja
