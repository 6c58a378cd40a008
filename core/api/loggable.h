// What of an error answer may stand in a log: which field, and our own words, never a value that the client sent. Pure,
// any thread.
#pragma once

#include <string>
#include <string_view>

#include "core/api/errors.h"

namespace moectl::api {

inline constexpr size_t kMaxLoggedBytes = 200;

// What a chat template itself reports follows these words in a message; templates may put parts of a conversation
// there.
inline constexpr std::string_view kTemplateReports = "the chat template: ";

// One line of at most kMaxLoggedBytes. Left out: values, which are always quoted, what a template reports, and between
// backquotes what is not the name of a field.
std::string loggable(std::string_view message);

// "`top_p` must be ...", or only that there was an error when `param` itself is not a plain name.
struct LoggedError {
  std::string message, param;
};
LoggedError loggable(const ApiError& error);

}  // namespace moectl::api
