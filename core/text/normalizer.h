// NFC, the one normalizer that byte-level tokenizers use. Pure; any thread.
#pragma once

#include <string>
#include <string_view>

namespace moectl {

// Canonical composition of valid UTF-8. O(n log n), also for endless runs of combining marks.
std::string nfc(std::string_view text);

}  // namespace moectl
