// Lexer of Jinja templates, set up as transformers does: trim_blocks and lstrip_blocks on, one trailing newline
// dropped. Whitespace control is done here: the parser sees finished text. Errors are Error{kBadData} with the line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moectl::jinja {

struct Token {
  enum class Kind {
    kText,
    kVariableBegin,
    kVariableEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kString,
    kInteger,
    kReal,
    kOperator,
    kEnd
  };
  Kind kind = Kind::kEnd;
  int line = 1;
  std::string text;  // text, name, string value or operator
  int64_t integer = 0;
  double real = 0;
};

std::vector<Token> tokenize(std::string source);

[[noreturn]] void bad_template(int line, const std::string& reason);

}  // namespace moectl::jinja
