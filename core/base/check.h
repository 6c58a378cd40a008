// CHECK(condition, "format {}", args...): an invariant of ours. A failure is a defect, thrown as Error{kInternal} so
// that only the instance or request in whose stage it happens ends, never the process by abort.
#pragma once

#include "core/base/error.h"

#define CHECK(cond, ...)                                                                                        \
  do {                                                                                                          \
    if (!(cond)) [[unlikely]]                                                                                   \
      throw ::moectl::Error(::moectl::Code::kInternal, fmt::format("{}:{}: `{}` does not hold: {}", __FILE__,   \
                                                                   __LINE__, #cond, fmt::format(__VA_ARGS__))); \
  } while (0)
