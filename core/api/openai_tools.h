// Tools in chat requests: `tools`, `tool_choice`, `parallel_tool_calls`, and the calls and results in messages. Reading
// is pure, any thread.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "core/api/fields.h"
#include "core/api/openai.h"

namespace moectl::api {

inline constexpr size_t kMaxTools = 512;
inline constexpr size_t kMaxToolMembers = 1024;  // in one object or array of a schema
inline constexpr size_t kMaxCallsPerMessage = 128;
inline constexpr size_t kMaxToolNameBytes = 128;
inline constexpr size_t kMaxCallIdBytes = 256;

// All of them throw Error{kInvalidArgument} with the field's name.

// `body` is the text of `fields`: the order of keys in `tools` is kept for the template, as Python's dicts keep it.
ToolRequest read_tools(const Fields& fields, std::string_view body);
// `tool_calls` of an assistant message.
std::vector<PastToolCall> read_past_tool_calls(const Fields& message);

}  // namespace moectl::api
