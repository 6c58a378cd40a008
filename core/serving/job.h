// GenerationJob: a generation request, ready for the engine. Making one is the slow part of a request before the engine
// (reading, rendering, tokenizing) and runs on the CPU pool.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "core/serving/answer.h"
#include "core/serving/instance.h"

namespace moectl {

struct GenerationJob {
  bool chat = false;
  AnswerOptions answer;
  api::Common common;
  std::vector<EncodedPrompt> prompts;
  // The request cannot be served: an unknown model, a prompt that is too long. (Malformed ones throw.)
  std::optional<api::ApiError> refusal;

  size_t num_choices() const { return prompts.size() * size_t(common.n); }
  // Whether the engine scores the prompt for choice `i` of it. In a whole answer the other choices take the scores of
  // the first; in a stream each needs them with its own first event.
  bool scores_prompt(int i) const { return answer.wants_prompt_scores(common.sampling) && (i == 0 || common.stream); }
};

// Throw Error{kInvalidArgument}.
GenerationJob make_chat_job(const Instance& instance, std::string_view body);
GenerationJob make_completion_job(const Instance& instance, std::string_view body);

api::Limits limits_of(const Instance& instance);

}  // namespace moectl
