// Answers as plain data and their JSON: whole responses, SSE chunks, the model list. One Choice is both an increment
// (in a stream) and, summed up with append(), the whole answer, so that both forms always agree. Pure, any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/api/text_pieces.h"
#include "core/api/tool_parser.h"

namespace moectl::api {

struct AlternativeToken {
  int32_t id = 0;
  std::string bytes;  // may be part of a UTF-8 character
  float logprob = 0.0f;
};

struct ScoredToken {
  int32_t id = 0;
  std::string bytes;
  float logprob = 0.0f;
  bool has_logprob = true;            // false for the first prompt token
  std::vector<AlternativeToken> top;  // best first
  int64_t text_offset = 0;            // characters before it in the text (completions)
};

// The tokens of a prompt; the choices of one prompt share them, so that they are kept once.
using PromptScores = std::vector<ScoredToken>;

struct Choice {
  int index = 0;
  std::string content;                    // visible text
  std::string reasoning;                  // chat only
  std::vector<ToolCallDelta> tool_calls;  // chat only
  std::vector<ScoredToken> logprobs;      // empty unless asked for; see echoed_top
  std::vector<int32_t> token_ids;         // empty unless asked for
  std::string finish_reason;              // empty: goes on
  std::string stop_string;                // the stop string that ended it
  int32_t stop_token = -1;                // the stop_token_ids entry that ended it
  // Facts about this choice's prompt, for completions that ask for them.
  std::vector<int32_t> prompt_token_ids;
  std::shared_ptr<const PromptScores> prompt_scores;
  int echoed_top = -1;  // `logprobs` begin with the prompt's, each with so many alternatives; -1: they do not
  int prompt_top = -1;  // the same for `prompt_logprobs`; -1: there are none

  void append(Choice&& more);  // `more` follows this one
  size_t text_bytes() const;   // about how long its JSON is
};

struct Usage {
  int64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0, reasoning_tokens = 0;
};

// What all messages of one answer carry, and which optional parts it has.
struct AnswerHead {
  std::string id, model;
  int64_t created = 0;  // seconds since 1970
  bool logprobs = false, token_ids = false, prompt_logprobs = false;
  bool tokens_as_ids = false;    // token text is "token_id:17"
  bool usage_in_stream = false;  // chunks carry "usage": null, the last one the numbers
  bool tools = false;            // the answer may be calls without content
};

// What they refer to must outlive the pieces.
TextPieces chat_response(const AnswerHead& head, const std::vector<Choice>& choices, const Usage& usage);
TextPieces completion_response(const AnswerHead& head, const std::vector<Choice>& choices, const Usage& usage);

// The data of one SSE event each.
std::string chat_role_chunk(const AnswerHead& head, int index, const std::vector<int32_t>& prompt_token_ids);
// Whether an event is a chat_role_chunk(): it names a role and carries no text yet.
bool is_role_chunk(std::string_view event);
TextPieces chat_chunk(const AnswerHead& head, const Choice& delta);
TextPieces completion_chunk(const AnswerHead& head, const Choice& delta);
std::string usage_chunk(const AnswerHead& head, bool chat, const Usage& usage);

std::string models_response(std::string_view model, int64_t created, int max_model_len);
std::string model_response(std::string_view model, int64_t created, int max_model_len);
// `token_text`: empty when the texts of the tokens were not asked for.
std::string tokenize_response(const std::vector<int32_t>& ids, int max_model_len,
                              const std::function<std::string(int32_t)>& token_text);
std::string detokenize_response(std::string_view prompt);

int64_t count_characters(std::string_view utf8);  // code points

}  // namespace moectl::api
