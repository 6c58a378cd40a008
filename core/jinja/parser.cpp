#include "core/jinja/parser.h"

#include <fmt/core.h>

#include <algorithm>

namespace moectl::jinja {

using Tag = Stmt::Tag;

// A pair of parentheses counts twice, as an expression and as an operand.
Parser::Nesting::Nesting(Parser& parser) : parser_(parser) {
  if (++parser_.nesting_ > 2 * parser_.max_depth_) {
    --parser_.nesting_;
    bad_template(parser_.current().line, fmt::format("an expression nests deeper than {} levels", parser_.max_depth_));
  }
}

bool Parser::skip_op(std::string_view op) {
  if (!is_op(op)) return false;
  advance();
  return true;
}
bool Parser::skip_name(std::string_view name) {
  if (!is_name(name)) return false;
  advance();
  return true;
}
void Parser::expect_op(std::string_view op) {
  if (!skip_op(op)) unexpected(fmt::format("'{}'", op));
}
void Parser::expect(Kind kind, std::string_view what) {
  if (current().kind != kind) unexpected(what);
  advance();
}
std::string Parser::expect_name(std::string_view what) {
  std::string name = current().text;
  expect(Kind::kName, what);
  return name;
}

std::string Parser::expect_dotted_name(std::string_view what) {
  std::string name = expect_name(what);
  while (skip_op(".")) name += '.' + expect_name(what);
  return name;
}

void Parser::unexpected(std::string_view expected) const {
  const Token& token = current();
  std::string found;
  switch (token.kind) {
    case Kind::kText:
      found = "text";
      break;
    case Kind::kVariableBegin:
      found = "'{{'";
      break;
    case Kind::kVariableEnd:
      found = "'}}'";
      break;
    case Kind::kBlockBegin:
      found = "'{%'";
      break;
    case Kind::kBlockEnd:
      found = "'%}'";
      break;
    case Kind::kName:
    case Kind::kOperator:
      found = fmt::format("'{}'", token.text.substr(0, 60));
      break;
    case Kind::kString:
      found = "a string";
      break;
    case Kind::kInteger:
    case Kind::kReal:
      found = "a number";
      break;
    case Kind::kEnd:
      found = "the end of the template";
      break;
  }
  bad_template(token.line, fmt::format("expected {}, found {}", expected, found));
}

// ------------------------------------------------------------------------------------------------ statements
Body Parser::parse_template() {
  Body body = parse_body({});
  return body;
}

Body Parser::parse_body(std::initializer_list<std::string_view> ends) {
  if (++blocks_ > max_depth_)
    bad_template(current().line, fmt::format("blocks nest deeper than {} levels", max_depth_));
  Body body;
  while (true) {
    const Token& token = current();
    if (token.kind == Kind::kEnd) {
      if (ends.size() != 0) unexpected(fmt::format("{{% {} %}}", *(ends.end() - 1)));
      break;
    }
    if (token.kind == Kind::kText) {
      body.push_back(Stmt{Tag::kText, token.line});
      body.back().text = Value(Str(token.text, true));
      advance();
    } else if (token.kind == Kind::kVariableBegin) {
      body.push_back(Stmt{Tag::kOutput, token.line});
      advance();
      body.back().exprs.push_back(parse_tuple());
      expect(Kind::kVariableEnd, "'}}'");
    } else {
      expect(Kind::kBlockBegin, "'{%'");
      bool at_end = false;
      for (std::string_view end : ends) at_end = at_end || is_name(end);
      if (at_end) break;
      parse_statement(body);
      expect(Kind::kBlockEnd, "'%}'");
    }
  }
  --blocks_;
  return body;
}

void Parser::parse_statement(Body& out) {
  int line = current().line;
  std::string tag = expect_name("a tag name");
  if (tag == "if") return out.push_back(parse_if(line));
  if (tag == "for") return out.push_back(parse_for(line));
  if (tag == "set") return out.push_back(parse_set(line));
  if (tag == "macro") return out.push_back(parse_macro(line));
  if (tag == "call") return out.push_back(parse_call_block(line));
  if (tag == "with") return out.push_back(parse_with(line));
  if (tag == "filter") return out.push_back(parse_filter_block(line));
  if (tag == "break" || tag == "continue") {
    if (loops_ == 0) bad_template(line, fmt::format("{} outside of a loop", tag));
    return out.push_back(Stmt{tag == "break" ? Tag::kBreak : Tag::kContinue, line});
  }
  if (tag == "print") {
    Stmt print{Tag::kOutput, line};
    print.exprs.push_back(parse_tuple());
    return out.push_back(std::move(print));
  }
  if (tag == "generation") {  // transformers' mark around an assistant's answer: its text counts, the mark does not
    Stmt scope{Tag::kScope, line};
    int loops = std::exchange(loops_, 0);
    scope.bodies.push_back(parse_rest_of_block("endgeneration"));
    loops_ = loops;
    return out.push_back(std::move(scope));
  }
  bad_template(line, fmt::format("the tag '{}' is unknown or not supported here", tag.substr(0, 60)));
}

Body Parser::parse_rest_of_block(std::string_view end) {
  expect(Kind::kBlockEnd, "'%}'");
  Body body = parse_body({end});
  advance();  // end
  return body;
}

Stmt Parser::parse_if(int line) {
  Stmt out{Tag::kIf, line};
  ++conditions_;
  out.exprs.push_back(parse_tuple(false));
  while (true) {
    expect(Kind::kBlockEnd, "'%}'");
    out.bodies.push_back(parse_body({"elif", "else", "endif"}));
    if (skip_name("elif")) {
      out.exprs.push_back(parse_tuple(false));
    } else if (skip_name("else")) {
      out.exprs.push_back(nullptr);
      out.bodies.push_back(parse_rest_of_block("endif"));
      break;
    } else {
      advance();  // endif
      break;
    }
  }
  --conditions_;
  return out;
}

Stmt Parser::parse_for(int line) {
  Stmt out{Tag::kFor, line};
  out.targets.push_back(parse_target(false));
  if (!skip_name("in")) unexpected("'in'");
  out.exprs.push_back(parse_tuple(false));
  out.exprs.push_back(skip_name("if") ? parse_expression() : nullptr);
  out.recursive = skip_name("recursive");
  expect(Kind::kBlockEnd, "'%}'");
  ++loops_;
  out.bodies.push_back(parse_body({"else", "endfor"}));
  --loops_;
  out.bodies.push_back(skip_name("else") ? parse_rest_of_block("endfor") : Body{});
  if (is_name("endfor")) advance();
  return out;
}

std::string Parser::parse_variable_name() {
  int line = current().line;
  std::string name = expect_name("a variable name");
  for (std::string_view reserved : {"true", "false", "none", "True", "False", "None"})
    if (name == reserved) bad_template(line, fmt::format("cannot assign to '{}'", name));
  return name;
}

// `a`, `ns.a` (in `set`), `a, b`, `a, (b, c)`.
Target Parser::parse_target(bool with_attributes) {
  Target first = parse_target_part(with_attributes);
  if (!is_op(",")) return first;
  Target target;
  target.parts.push_back(std::move(first));
  while (skip_op(",") && !is_op(")") && current().kind != Kind::kBlockEnd)
    target.parts.push_back(parse_target_part(with_attributes));
  return target;
}

Target Parser::parse_target_part(bool with_attributes) {
  Nesting nesting(*this);
  Target target;
  if (skip_op("(")) {
    target = parse_target(false);
    expect_op(")");
  } else {
    target.name = parse_variable_name();
    if (with_attributes && skip_op(".")) target.attribute = expect_name("an attribute name");
  }
  return target;
}

Stmt Parser::parse_set(int line) {
  Stmt out{Tag::kSet, line};
  out.targets.push_back(parse_target(true));
  if (skip_op("=")) {
    out.exprs.push_back(parse_tuple());
    return out;
  }
  out.tag = Tag::kSetBlock;
  ExprPtr filters;
  while (is_op("|")) filters = parse_filter(std::move(filters));
  out.exprs.push_back(std::move(filters));
  out.bodies.push_back(parse_rest_of_block("endset"));
  return out;
}

Stmt Parser::parse_macro(int line) {
  Stmt out{Tag::kMacro, line};
  out.name = parse_variable_name();
  parse_signature(out);
  parse_macro_body(out, "endmacro");
  return out;
}

// {% call(x) f(y) %}...{% endcall %}: f gets the body as a macro in its argument `caller`.
Stmt Parser::parse_call_block(int line) {
  Stmt caller{Tag::kMacro, line};
  caller.name = "caller";
  if (is_op("(")) parse_signature(caller);
  Stmt out{Tag::kCall, line};
  out.exprs.push_back(parse_expression());
  if (out.exprs[0]->op != Expr::Op::kCall) bad_template(line, "expected a call behind `call`");
  parse_macro_body(caller, "endcall");
  out.bodies.emplace_back().push_back(std::move(caller));
  return out;
}

void Parser::parse_signature(Stmt& macro) {
  expect_op("(");
  while (!is_op(")")) {
    macro.parameters.push_back(parse_variable_name());
    if (skip_op("=")) {
      macro.exprs.push_back(parse_expression());
    } else {
      if (!macro.exprs.empty() && macro.exprs.back())
        bad_template(macro.line, "a parameter without default follows one with default");
      macro.exprs.push_back(nullptr);
    }
    if (!skip_op(",")) break;
  }
  expect_op(")");
}

void Parser::parse_macro_body(Stmt& macro, std::string_view end) {
  int loops = std::exchange(loops_, 0);
  SpecialNames outside = std::exchange(seen_, {});
  macro.bodies.push_back(parse_rest_of_block(end));
  loops_ = loops;
  auto parameter = [&](std::string_view name) {
    return std::find(macro.parameters.begin(), macro.parameters.end(), name) != macro.parameters.end();
  };
  macro.uses_caller = seen_.caller && !parameter("caller");
  macro.uses_kwargs = seen_.kwargs && !parameter("kwargs");
  macro.uses_varargs = seen_.varargs && !parameter("varargs");
  for (size_t i = 0; seen_.caller && i < macro.parameters.size(); ++i)
    if (macro.parameters[i] == "caller" && !macro.exprs[i])
      bad_template(macro.line, "the parameter `caller` of a macro that uses it needs a default");
  seen_.caller |= outside.caller;
  seen_.kwargs |= outside.kwargs;
  seen_.varargs |= outside.varargs;
}

Stmt Parser::parse_with(int line) {
  Stmt out{Tag::kWith, line};
  while (current().kind != Kind::kBlockEnd) {
    if (!out.targets.empty()) expect_op(",");
    out.targets.push_back(parse_target(false));
    expect_op("=");
    out.exprs.push_back(parse_expression());
  }
  out.bodies.push_back(parse_rest_of_block("endwith"));
  return out;
}

Stmt Parser::parse_filter_block(int line) {
  Stmt out{Tag::kFilter, line};
  // The first filter has no bar before it: parse it as if it had.
  ExprPtr filter = make(Expr::Op::kFilter, current().line, expect_dotted_name("a filter name"));
  filter->native = find_filter(filter->text);
  if (!filter->native) bad_template(line, fmt::format("there is no filter named '{}'", filter->text));
  filter->args.push_back(nullptr);
  if (is_op("(")) parse_call_args(*filter);
  filter = finish(std::move(filter));
  while (is_op("|")) filter = parse_filter(std::move(filter));
  out.exprs.push_back(std::move(filter));
  out.bodies.push_back(parse_rest_of_block("endfilter"));
  return out;
}

Body parse(std::string source, int max_depth) {
  return Parser(tokenize(std::move(source)), max_depth).parse_template();
}

}  // namespace moectl::jinja
