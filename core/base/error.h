// The one exception type for bad input, I/O and peers. A message says what was wrong, where, what was expected, and
// what to do. How far an error reaches is decided by where it is caught (docs/architecture.md, "Errors know their
// radius").
#pragma once

#include <fmt/core.h>  // fmt::join needs <fmt/format.h>, which would cost every file a tenth of its compile time

#include <stdexcept>
#include <string>
#include <utility>

namespace moectl {

enum class Code {
  kUsage,              // command line cannot be understood               exit 2
  kInvalidArgument,    // a request or value is malformed                 exit 1,  HTTP 400
  kNotFound,           // file, model or path does not exist              exit 1,  HTTP 404
  kBadData,            // checkpoint, config or template is unusable      exit 65
  kBadConfig,          // flags contradict each other or lack something   exit 78
  kUnavailable,        // a peer or the engine cannot serve now           exit 69, HTTP 503
  kResourceExhausted,  // over a limit: memory, queue, size               exit 1,  HTTP 429
  kCancelled,          // the caller went away                            exit 130
  kInternal,           // an invariant is broken: our defect              exit 1,  HTTP 500
};

class Error : public std::runtime_error {
 public:
  // `param` names the request field at fault, as OpenAI's error objects do; empty when there is none.
  Error(Code code, std::string message, std::string param = {})
      : std::runtime_error(std::move(message)), code_(code), param_(std::move(param)) {}
  Code code() const { return code_; }
  const std::string& param() const { return param_; }

 private:
  Code code_;
  std::string param_;
};

// Process exit status for an error that ends the command (protocols: 0 ok, 1 failed, 2 usage, 65, 69, 78, 130).
int exit_code(Code code);

}  // namespace moectl
