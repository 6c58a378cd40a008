#include "core/base/json_depth.h"

#include "core/base/error.h"

namespace moectl {

void check_json_depth(std::string_view text, int limit, const std::string& origin) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;  // whatever is escaped, a quote too, belongs to the string
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > limit) {
        throw Error(Code::kBadData, fmt::format("{}: JSON nests deeper than {} levels at byte {}; expected at most {}",
                                                origin, limit, i, limit));
      }
    } else if (c == ']' || c == '}') {
      --depth;  // below zero: the parser has already failed there
    }
  }
}

}  // namespace moectl
