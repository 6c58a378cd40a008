// The dialect of a checkpoint's split patterns, and what PCRE2's Unicode tables lack for them. Pure; any thread.
#pragma once

#include <string>
#include <string_view>

namespace moectl {

// The pattern in PCRE2's dialect. `newer_unicode` adds the characters that PCRE2's Unicode tables do not know yet.
// Throws Error{kBadData}, beginning with `where`, for what is not supported.
std::string translate_pattern(std::string_view pattern, bool newer_unicode, const std::string& where);

// Whether `text` (valid UTF-8) has a character that is assigned in Unicode 16 and unknown to PCRE2 10.42 (Unicode 14).
bool has_newer_unicode(std::string_view text);

}  // namespace moectl
