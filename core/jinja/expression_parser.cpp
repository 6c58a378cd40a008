// Expressions, by precedence climbing: `or`, `and`, `not`, comparisons, + -, ~, * / // %, **, unary with filters and
// tests.
#include <fmt/core.h>

#include <algorithm>

#include "core/jinja/parser.h"

namespace moectl::jinja {

using Op = Expr::Op;

namespace {

enum Level {
  kNoOperator,
  kOrLevel,
  kAndLevel,
  kNotLevel,
  kCompareLevel,
  kAddLevel,
  kConcatLevel,
  kMultiplyLevel,
  kPowerLevel
};

Level level_of(const Token& token, const Token& next) {
  const std::string& t = token.text;
  if (token.kind == Token::Kind::kName) {
    if (t == "or") return kOrLevel;
    if (t == "and") return kAndLevel;
    if (t == "in" || (t == "not" && next.kind == Token::Kind::kName && next.text == "in")) return kCompareLevel;
  } else if (token.kind == Token::Kind::kOperator) {
    if (t == "==" || t == "!=" || t == "<" || t == ">" || t == "<=" || t == ">=") return kCompareLevel;
    if (t == "+" || t == "-") return kAddLevel;
    if (t == "~") return kConcatLevel;
    if (t == "*" || t == "/" || t == "//" || t == "%") return kMultiplyLevel;
    if (t == "**") return kPowerLevel;
  }
  return kNoOperator;
}

Op op_of(Level level) {
  switch (level) {
    case kOrLevel:
      return Op::kOr;
    case kAndLevel:
      return Op::kAnd;
    case kCompareLevel:
      return Op::kCompare;
    case kConcatLevel:
      return Op::kConcat;
    default:
      return Op::kArithmetic;
  }
}

}  // namespace

ExprPtr Parser::make(Op op, int line, std::string text) const {
  auto node = std::make_unique<Expr>();
  node->op = op;
  node->line = line;
  node->text = std::move(text);
  return node;
}

ExprPtr Parser::finish(ExprPtr node) const {
  int depth = 0;
  for (const ExprPtr& arg : node->args)
    if (arg) depth = std::max(depth, arg->depth);
  node->depth = depth + 1;
  if (node->depth > max_depth_)
    bad_template(node->line, fmt::format("an expression nests deeper than {} levels", max_depth_));
  return node;
}

ExprPtr Parser::parse_tuple(bool with_conditional, bool allow_empty) {
  int line = current().line;
  auto ends = [this] {
    return current().kind == Kind::kVariableEnd || current().kind == Kind::kBlockEnd || is_op(")") || is_name("in");
  };
  if (ends()) {
    if (!allow_empty || !is_op(")")) unexpected("an expression");
    return make(Op::kTuple, line);
  }
  ExprPtr first = parse_expression(with_conditional);
  if (!is_op(",")) return first;
  ExprPtr tuple = make(Op::kTuple, line);
  tuple->args.push_back(std::move(first));
  while (skip_op(",") && !ends()) tuple->args.push_back(parse_expression(with_conditional));
  return finish(std::move(tuple));
}

ExprPtr Parser::parse_expression(bool with_conditional) {
  Nesting nesting(*this);
  ExprPtr node = parse_binary(kOrLevel);
  while (with_conditional && is_name("if")) {
    ExprPtr conditional = make(Op::kConditional, current().line);
    advance();
    ++conditions_;
    conditional->args.push_back(std::move(node));
    conditional->args.push_back(parse_binary(kOrLevel));
    conditional->args.push_back(skip_name("else") ? parse_expression() : nullptr);
    --conditions_;
    node = finish(std::move(conditional));
  }
  return node;
}

ExprPtr Parser::parse_binary(int min_level) {
  Nesting nesting(*this);
  ExprPtr left;
  if (min_level <= kNotLevel && is_name("not")) {
    left = make(Op::kNot, current().line);
    advance();
    left->args.push_back(parse_binary(kNotLevel));
    left = finish(std::move(left));
  } else {
    left = parse_unary();
  }
  // One node for a chain of equal precedence, however long: depth counts nesting, not length.
  for (Level level; (level = level_of(current(), next_token())) != kNoOperator && level >= min_level;) {
    ExprPtr chain = make(op_of(level), current().line);
    chain->args.push_back(std::move(left));
    while (level_of(current(), next_token()) == level) {
      std::string op = current().text;
      advance();
      if (op == "not") {
        op = "not in";
        advance();
      }
      chain->names.push_back(std::move(op));
      chain->args.push_back(parse_binary(level + 1));
    }
    left = finish(std::move(chain));
  }
  return left;
}

ExprPtr Parser::parse_unary(bool with_filter) {
  ExprPtr node;
  if (is_op("-") || is_op("+")) {
    Nesting nesting(*this);
    node = make(is_op("-") ? Op::kNegative : Op::kPositive, current().line);
    advance();
    node->args.push_back(parse_unary(false));
    node = finish(std::move(node));
  } else {
    node = parse_primary();
  }
  node = parse_postfix(std::move(node));
  return with_filter ? parse_filter_tail(std::move(node)) : std::move(node);
}

ExprPtr Parser::parse_primary() {
  const Token& token = current();
  ExprPtr node = make(Op::kLiteral, token.line);
  switch (token.kind) {
    case Kind::kName: {
      const std::string& name = token.text;
      if (name == "true" || name == "True" || name == "false" || name == "False") {
        node->literal = Value(name[0] == 't' || name[0] == 'T');
      } else if (name == "none" || name == "None") {
        node->literal = Value(None{});
      } else {
        node->op = Op::kName;
        node->text = name;
        seen_.caller |= name == "caller";
        seen_.kwargs |= name == "kwargs";
        seen_.varargs |= name == "varargs";
      }
      advance();
      return node;
    }
    case Kind::kString:
      return parse_string();
    case Kind::kInteger:
      node->literal = Value(token.integer);
      advance();
      return node;
    case Kind::kReal:
      node->literal = Value(token.real);
      advance();
      return node;
    default:
      break;
  }
  if (is_op("[")) return parse_list();
  if (is_op("{")) return parse_dict();
  if (!skip_op("(")) unexpected("an expression");
  node = parse_tuple(true, true);
  expect_op(")");
  return node;
}

ExprPtr Parser::parse_string() {  // neighbouring literals are one string
  ExprPtr node = make(Op::kLiteral, current().line);
  std::string text;
  for (; current().kind == Kind::kString; advance()) text += current().text;
  node->literal = Value(Str(std::move(text), true));
  return node;
}

ExprPtr Parser::parse_list() {
  ExprPtr node = make(Op::kList, current().line);
  expect_op("[");
  while (!is_op("]")) {
    node->args.push_back(parse_expression());
    if (!skip_op(",")) break;
  }
  expect_op("]");
  return finish(std::move(node));
}

ExprPtr Parser::parse_dict() {
  ExprPtr node = make(Op::kDict, current().line);
  expect_op("{");
  while (!is_op("}")) {
    node->args.push_back(parse_expression());
    expect_op(":");
    node->args.push_back(parse_expression());
    if (!skip_op(",")) break;
  }
  expect_op("}");
  return finish(std::move(node));
}

ExprPtr Parser::parse_postfix(ExprPtr node) {
  while (true) {
    if (is_op(".") || is_op("[")) {
      node = parse_subscript(std::move(node));
    } else if (is_op("(")) {
      ExprPtr call = make(Op::kCall, current().line);
      call->args.push_back(std::move(node));
      parse_call_args(*call);
      node = finish(std::move(call));
    } else {
      return node;
    }
  }
}

ExprPtr Parser::parse_subscript(ExprPtr node) {
  int line = current().line;
  if (skip_op(".")) {
    bool integer = current().kind == Kind::kInteger;
    ExprPtr out = make(integer ? Op::kItem : Op::kAttribute, line);
    out->args.push_back(std::move(node));
    if (integer) {
      out->args.push_back(parse_primary());
    } else {
      out->text = expect_name("an attribute name");
    }
    return finish(std::move(out));
  }
  expect_op("[");
  ExprPtr out = make(Op::kItem, line);
  out->args.push_back(std::move(node));
  out->args.push_back(is_op(":") ? nullptr : parse_expression());
  if (is_op(":")) {
    out->op = Op::kSlice;
    for (int i = 0; i < 2; ++i)
      out->args.push_back(skip_op(":") && !is_op(":") && !is_op("]") ? parse_expression() : nullptr);
  }
  if (is_op(",")) bad_template(line, "several subscripts in one pair of brackets are not supported");
  expect_op("]");
  return finish(std::move(out));
}

ExprPtr Parser::parse_filter_tail(ExprPtr node) {
  while (true) {
    if (is_op("|")) {
      node = parse_filter(std::move(node));
    } else if (is_name("is")) {
      node = parse_test(std::move(node));
    } else if (is_op("(")) {
      node = parse_postfix(std::move(node));
    } else {
      return node;
    }
  }
}

ExprPtr Parser::parse_filter(ExprPtr node) {
  expect_op("|");
  ExprPtr filter = make(Op::kFilter, current().line, expect_dotted_name("a filter name"));
  filter->native = find_filter(filter->text);
  if (!filter->native && conditions_ == 0)
    bad_template(filter->line, fmt::format("there is no filter named '{}'", filter->text));
  filter->args.push_back(std::move(node));
  if (is_op("(")) parse_call_args(*filter);
  return finish(std::move(filter));
}

ExprPtr Parser::parse_test(ExprPtr node) {
  int line = current().line;
  advance();  // is
  bool negated = skip_name("not");
  ExprPtr test = make(Op::kTest, line, expect_dotted_name("a test name"));
  test->native = find_test(test->text);
  if (!test->native && conditions_ == 0) bad_template(line, fmt::format("there is no test named '{}'", test->text));
  test->args.push_back(std::move(node));
  Kind kind = current().kind;
  if (is_op("(")) {
    parse_call_args(*test);
  } else if ((kind == Kind::kName && !is_name("else") && !is_name("or") && !is_name("and")) || kind == Kind::kString ||
             kind == Kind::kInteger || kind == Kind::kReal || is_op("[") || is_op("{")) {
    if (is_name("is")) bad_template(line, "tests cannot be chained with `is`");
    test->args.push_back(parse_postfix(parse_primary()));
  }
  test = finish(std::move(test));
  if (!negated) return test;
  ExprPtr inverse = make(Op::kNot, line);
  inverse->args.push_back(std::move(test));
  return finish(std::move(inverse));
}

// Positional arguments, then named ones; `*list` may stand from the first named one on, `**dict` ends the list.
void Parser::parse_call_args(Expr& call) {
  constexpr size_t kMaxArguments = 1000;
  int line = current().line;
  expect_op("(");
  while (!is_op(")")) {
    bool named = current().kind == Kind::kName && next_token().kind == Kind::kOperator && next_token().text == "=";
    auto& names = call.names;
    std::string name = named ? current().text : is_op("*") ? "*" : is_op("**") ? "**" : "";
    if (!names.empty() && (name.empty() || names.back() == "**"))
      bad_template(line, "arguments must be positional first, then named, and `**` last");
    if (name != "" && std::find(names.begin(), names.end(), name) != names.end())
      bad_template(line, fmt::format("the argument '{}' is given twice", name.substr(0, 60)));
    if (!name.empty()) {
      advance();
      if (named) advance();
      names.push_back(std::move(name));
    }
    call.args.push_back(parse_expression());
    if (call.args.size() > kMaxArguments)
      bad_template(line, fmt::format("a call has more than {} arguments", kMaxArguments));
    if (!skip_op(",")) break;
  }
  expect_op(")");
}

}  // namespace moectl::jinja
