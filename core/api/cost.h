// Cost: what one request asks of a server, and the most that one request may ask. The one place for both: readers
// refuse with these limits, workers schedule by these numbers. Pure, any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/api/openai.h"

namespace moectl::api {

// ------------------------------------------------------------------------------------------------ limits
// Choices of one request: prompts x n. Each is a sequence of its own for the engine, so this bounds how much of the
// batch and of the queue one request can take. 128: twice the default --max-num-seqs.
inline constexpr int64_t kMaxRequestChoices = 128;
// Text of one POST /tokenize, which no context length bounds. A few thousand pages; its answer holds as many ids as the
// text has bytes, at most.
inline constexpr size_t kMaxTokenizeBytes = 16u << 20;
// A body over this size takes milliseconds to prepare (read, render, tokenize) and is a large job of the worker pool.
inline constexpr size_t kLargeBodyBytes = 256u << 10;
// Bodies of large jobs that are prepared at the same time, in bytes; others wait. Preparing takes about ten times the
// memory of the body.
inline constexpr size_t kMaxPreparingBytes = 64u << 20;

// ------------------------------------------------------------------------------------------------ costs
struct Cost {
  int64_t num_prompts = 0;
  int64_t num_choices = 0;        // prompts x n
  size_t max_prompt_bytes = 0;    // of the longest text prompt; chats: of all contents, before the template
  int64_t max_prompt_tokens = 0;  // upper bound for all prompts together: a byte is at most one token. Not what the
                                  // template and special tokens add
};
Cost cost_of(const ChatRequest& request);
Cost cost_of(const CompletionRequest& request);

// Throws Error{kInvalidArgument} naming `n` or `prompt` when the choices are over kMaxRequestChoices.
void check_choices(const Cost& cost);

// Text of so many bytes has more than `max_tokens` tokens, whatever it says, when no token stands for more than
// `max_token_bytes` of it. 0: no such bound is known, and the answer is false.
bool exceeds_tokens(size_t num_bytes, int64_t max_tokens, size_t max_token_bytes);

}  // namespace moectl::api
