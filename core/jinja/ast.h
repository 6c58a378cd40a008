// The syntax tree of a template: two plain structs. Built once by the parser, read by any number of renderings. Depth
// is checked while it is built, so recursion over it is bounded.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/jinja/functions.h"
#include "core/jinja/value.h"

namespace moectl::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  enum class Op {
    kLiteral,    // literal
    kName,       // text
    kAttribute,  // args[0].text
    kItem,       // args[0][args[1]]
    kSlice,      // args[0][args[1]:args[2]:args[3]], bounds may be null
    kCall,       // args[0](args[1...]); the last names.size() arguments are named; "*" and "**" spread theirs
    kFilter,     // args[0] | text(args[1...]); args[0] is null in a filter block
    kTest,       // args[0] is text(args[1...])
    kList,
    kTuple,
    kDict,  // args: key, value, key, value ...
    kNegative,
    kPositive,
    kNot,
    kAnd,
    kOr,
    kArithmetic,  // args[0] names[0] args[1] names[1] args[2] ...
    kCompare,     // the same; a chain holds when each neighbouring pair does
    kConcat,
    kConditional,  // args[0] if args[1] else args[2] (may be null)
  };
  Op op;
  int line;
  int depth = 1;
  std::string text;
  Value literal;
  std::vector<ExprPtr> args;
  std::vector<std::string> names;
  Native native = nullptr;  // of a filter or test; null when unknown, which fails when it is reached
};

struct Stmt;
using Body = std::vector<Stmt>;

// Where `set`, `for` and `with` put a value: `name`, `name.attribute`, or the targets that its items go to.
struct Target {
  std::string name;
  std::string attribute;
  std::vector<Target> parts;
};

struct Stmt {
  enum class Tag {
    kText,
    kOutput,
    kSet,
    kSetBlock,
    kIf,
    kFor,
    kMacro,
    kCall,
    kBreak,
    kContinue,
    kWith,
    kFilter,
    kScope
  };
  Tag tag;
  int line;
  Value text{};                   // kText
  std::string name{};             // kMacro
  std::vector<Target> targets{};  // kSet, kSetBlock, kFor: one; kWith: one a value
  std::vector<ExprPtr> exprs{};   // kOutput, kSet; kSetBlock and kFilter: the filters; kFor: iterable, condition or
                                  // null; kIf: one a branch, null for else; kWith: values; kMacro: defaults or null;
                                  // kCall: the call
  std::vector<Body> bodies{};     // kIf: one a branch; kFor: body, else; kCall: the macro `caller`; others: body
  std::vector<std::string> parameters{};                                // kMacro
  bool recursive = false;                                               // kFor: the body may call loop(items)
  bool uses_caller = false, uses_kwargs = false, uses_varargs = false;  // kMacro: names in its body
};

// Throws Error{kBadData} with the line.
Body parse(std::string source, int max_depth);

}  // namespace moectl::jinja
