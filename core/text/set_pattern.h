// Character sets by Unicode property, for SetMatcher. Pure; any thread.
#pragma once

#include <cstdint>
#include <string_view>

namespace moectl {

// Whether `c` has the general category or script `property` ("L", "Nd", "Han"), as the translated patterns mean it: the
// Unicode version is the one that newer_unicode.h brings PCRE2 to. False for a property that is not known.
bool has_property(char32_t c, std::string_view property);

}  // namespace moectl
