// The secret that the processes of a cluster share (--cluster-secret-file).
#pragma once

#include <string>

namespace moectl {

// The file's content without blanks and line breaks at its ends. Throws Error{kBadConfig} naming the file when it
// cannot be read, holds fewer than 16 bytes, or more than 4,096. The secret is in no message.
std::string read_secret_file(const std::string& path);

}  // namespace moectl
