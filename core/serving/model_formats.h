// Which formats of reasoning and tool calls a checkpoint writes, and how its chat template wants to be told of tools.
// Decided once, at load; pure.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "core/api/output_formats.h"
#include "core/text/tokenizer.h"

namespace moectl {

// Ids of the markers that are single tokens; -1: not one.
struct ReasoningTokens {
  int32_t open = -1, close = -1, ends_at = -1;
  // Tokens tell exactly where reasoning is; else its text does.
  bool known() const { return open >= 0 && close >= 0; }
};

// `name`: a parser's name, auto (by template and tokenizer) or none. nullptr: none. `chat_template`: its source, empty
// when there is none. Throw Error{kBadConfig} for an unknown name, or one whose markers the tokenizer has not.
const api::ReasoningFormat* choose_reasoning(const std::string& name, const std::string& chat_template,
                                             const Tokenizer& tokenizer);
const api::ToolFormat* choose_tools(const std::string& name, const std::string& chat_template,
                                    const Tokenizer& tokenizer);
ReasoningTokens reasoning_tokens(const api::ReasoningFormat& format, const Tokenizer& tokenizer);
// Ids of `markers` that are single tokens.
std::vector<int32_t> marker_tokens(const std::vector<std::string_view>& markers, const Tokenizer& tokenizer);

// What a template makes of tools. Found by rendering small chats: templates disagree, and none says.
struct ToolTemplate {
  bool takes_tools = false;  // `tools` shows in the prompt
  // Past calls: with arguments as JSON text (some templates print them as they are), else as an object, as transformers
  // asks for; with the message's content none, else "".
  bool arguments_as_text = false, content_is_none = false;
};
// `render` gives the prompt of variables, or throws Error.
using RenderChat = std::function<std::string(const nlohmann::ordered_json&)>;
ToolTemplate probe_tool_template(const RenderChat& render);

}  // namespace moectl
