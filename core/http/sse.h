// Server-sent events as OpenAI clients read them: the text of one event, a comment, the end mark. Pure.
#pragma once

#include <string>
#include <string_view>

namespace moectl::http {

// "data: <data>\n\n"; data with line breaks becomes several `data:` lines of one event.
std::string sse_event(std::string_view data);
// ": <text>\n\n". Line breaks in the text become blanks: a comment cannot smuggle an event.
std::string sse_comment(std::string_view text);

inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";
inline constexpr std::string_view kSsePing = ": ping\n\n";

}  // namespace moectl::http
