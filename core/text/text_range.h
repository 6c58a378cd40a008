// TextRange: a part of a text.
#pragma once

#include <cstddef>

namespace moectl {

struct TextRange {
  size_t begin = 0, end = 0;  // byte offsets
};

}  // namespace moectl
