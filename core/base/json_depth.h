// The nesting of a JSON text, checked before a recursive reader sees it: nlohmann's copy, dump and destructor recurse.
// Any thread; knows nothing of what the document means.
#pragma once

#include <string>
#include <string_view>

namespace moectl {

// Throws Error{kBadData} naming `origin` (a file or field) and the offset where arrays and objects nest more than
// `limit` deep. One pass, no recursion, no allocation; text that is not JSON is left for the parser to refuse.
void check_json_depth(std::string_view text, int limit, const std::string& origin);

}  // namespace moectl
