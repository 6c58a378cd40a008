// Answer: one choice of one request, from the engine's tokens to what the client sees: text, stop strings, reasoning,
// tool calls, logprobs. A stream sends the increments, a whole response their sum. One object a choice; one thread (its
// coroutine).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/api/openai.h"
#include "core/api/openai_response.h"
#include "core/api/output_parser.h"
#include "core/engine/engine.h"
#include "core/serving/model_text.h"
#include "core/text/detokenizer.h"

namespace moectl {

// A prompt as the engine gets it, and what an answer may have to say about it.
struct EncodedPrompt {
  std::vector<int32_t> ids;
  std::optional<std::string> text;  // as the client gave it; nullopt: it gave token ids
  size_t num_added_before = 0;      // so many of the first ids are not in `text`
};

struct AnswerOptions {
  bool chat = false;        // split reasoning and tool calls off
  api::ToolRequest tools;   // chat
  bool echo = false;        // completions: the prompt first
  bool score_only = false;  // completions with max_tokens 0: the engine's token is not part of the answer

  bool wants_prompt_scores(const api::Sampling& sampling) const {
    return sampling.num_prompt_logprobs >= 0 || (echo && sampling.num_logprobs >= 0);
  }
};

class Answer {
 public:
  // `text`, `common` and `prompt` must outlive the answer. `scores` of the prompt are shared by the answers to it: the
  // first that gets them from the engine fills them in.
  Answer(const ModelText& text, const api::Common& common, const EncodedPrompt& prompt, AnswerOptions options,
         int index, std::shared_ptr<api::PromptScores> scores = std::make_shared<api::PromptScores>());

  // The increment that became certain. After it, done() may be true: by the engine or by a stop string (then the caller
  // cancels the engine's request). Not to be called when done, nor with finish kCancelled or kError.
  api::Choice push(GenerateOutput&& output);
  bool done() const { return done_; }

  int64_t num_tokens() const { return num_tokens_; }  // up to the stop
  int64_t num_reasoning_tokens() const { return num_reasoning_tokens_; }
  int64_t num_cached_tokens() const { return num_cached_tokens_; }

 private:
  void start(const GenerateOutput& first, api::Choice& delta);
  void add_token(const GenerateOutput::Token& token, bool ends_answer, api::Choice& delta);
  void add_output(api::OutputDelta&& parts, api::Choice& delta);
  bool is_mark(int32_t id) const;
  void close(const GenerateOutput& last, api::Choice& delta);
  void count_reasoning(int32_t id);
  api::ScoredToken scored(const GenerateOutput::Token& token, int num_top) const;
  void score_prompt(const GenerateOutput& first);

  const ModelText& text_;
  const api::Common& common_;
  const EncodedPrompt& prompt_;
  const AnswerOptions options_;
  const int index_;
  const std::shared_ptr<api::PromptScores> scores_;
  std::optional<Detokenizer> detokenizer_;
  api::OutputParser parser_;
  bool started_ = false, done_ = false;
  bool in_reasoning_ = false, after_reasoning_ = false;  // where tokens tell
  bool has_calls_ = false;
  int64_t num_tokens_ = 0, num_reasoning_tokens_ = 0, num_cached_tokens_ = 0;
  int64_t text_offset_ = 0;
};

}  // namespace moectl
