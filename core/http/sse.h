// Server-sent events as OpenAI clients read them: the text of one event, the end mark, a ping. Pure.
#pragma once

#include <string>
#include <string_view>

namespace moectl::http {

// "data: <data>\n\n"; data with line breaks becomes several `data:` lines of one event.
std::string sse_event(std::string_view data);

inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";
inline constexpr std::string_view kSsePing = ": ping\n\n";

}  // namespace moectl::http
