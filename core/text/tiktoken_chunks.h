// Where the published Python code of tiktoken checkpoints cuts a text before tokenising each part on its own: a cut is
// a border between tokens, so it belongs to the ids. Pure; any thread.
#pragma once

#include <string_view>
#include <vector>

namespace moectl {

// Parts of valid UTF-8, none empty: at most 400,000 characters, and in one part never more than 25,000 characters in a
// row that are all white space (as Python's isspace) or all not.
std::vector<std::string_view> tiktoken_chunks(std::string_view text);

}  // namespace moectl
