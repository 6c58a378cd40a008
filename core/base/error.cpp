#include "core/base/error.h"

namespace moectl {

int exit_code(Code code) {
  switch (code) {
    case Code::kUsage:
      return 2;
    case Code::kBadData:
      return 65;
    case Code::kUnavailable:
      return 69;
    case Code::kBadConfig:
      return 78;
    case Code::kCancelled:
      return 130;
    case Code::kInvalidArgument:
    case Code::kNotFound:
    case Code::kResourceExhausted:
    case Code::kInternal:
      return 1;
  }
  return 1;
}

}  // namespace moectl
