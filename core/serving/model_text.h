// ModelText: what a checkpoint folder says about text: tokenizer, chat template, special tokens, the formats of
// reasoning and tool calls. Turns requests into token ids. Immutable after load, any thread. Knows no engine and no
// HTTP.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/api/openai.h"
#include "core/serving/model_formats.h"
#include "core/text/chat_template.h"
#include "core/text/tokenizer.h"

namespace moectl {

struct ModelText {
  std::shared_ptr<const Tokenizer> tokenizer;         // null: --skip-tokenizer-init, prompts and answers are token ids
  std::shared_ptr<const ChatTemplate> chat_template;  // null: the checkpoint has none, chats are refused
  std::vector<std::pair<std::string, std::string>> special_tokens;  // template variables: bos_token, eos_token ...
  SpecialTokens prompt_tokens;                      // put around prompts that are text; rendered chats get none
  const api::ReasoningFormat* reasoning = nullptr;  // null: not split off
  ReasoningTokens reasoning_tokens;
  const api::ToolFormat* tool_calls = nullptr;  // null: chats with tools are refused
  ToolTemplate tool_template;
  std::vector<int32_t> reasoning_markers, tool_markers, harmony_markers;  // those that are single tokens

  // `reasoning_parser`, `tool_call_parser`: auto (by template and tokenizer), none, or a parser's name. A parser of
  // tool calls that was named serves templates without tools too. Throws Error{kBadData} naming the file,
  // Error{kBadConfig} for an unknown parser or one without its markers.
  static ModelText load(const std::filesystem::path& dir, bool skip_tokenizer_init, const std::string& reasoning_parser,
                        const std::string& tool_call_parser = "auto");

  // nullopt: more than `max_tokens`, which is found out before all of it was tokenized. Throw Error{kInvalidArgument}
  // when the checkpoint cannot do it (no tokenizer, no template) or the template refuses.
  std::optional<std::vector<int32_t>> encode_chat(const api::ChatRequest& request, size_t max_tokens) const;
  std::vector<int32_t> encode_chat(const api::ChatRequest& request) const { return *encode_chat(request, kNoLimit); }
  // No tokens are put before a prompt that begins with them.
  std::optional<std::vector<int32_t>> encode_prompt(const std::string& prompt, bool add_special_tokens,
                                                    size_t max_tokens) const;
  std::vector<int32_t> encode_prompt(const std::string& prompt, bool add_special_tokens) const {
    return *encode_prompt(prompt, add_special_tokens, kNoLimit);
  }
  std::string token_bytes(int32_t id) const;  // empty without a tokenizer

 private:
  static constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();
  std::string render(const nlohmann::ordered_json& variables) const;
  std::vector<TextSegment> render_segments(nlohmann::ordered_json variables) const;
};

}  // namespace moectl
