// Cost: what one request asks of a server, and the most that one request may ask. The one place for both: readers
// refuse with these limits, workers schedule by these numbers. Pure, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/api/openai.h"

namespace moectl::api {

// ------------------------------------------------------------------------------------------------ limits
// Choices of one request: prompts x n. Each is a sequence of its own for the engine, so this bounds how much of the
// batch and of the queue one request can take. 128: twice the default --max-num-seqs.
inline constexpr int64_t kMaxRequestChoices = 128;
// Text of one POST /tokenize, which no context length bounds. A few thousand pages; its answer holds as many ids as the
// text has bytes, at most.
inline constexpr size_t kMaxTokenizeBytes = 16u << 20;
// A body over this size takes tens of milliseconds to prepare (read, render, tokenize) and up to ten times its bytes of
// memory. It is a large job of the CPU pool, which prepares one of them at a time (core/serving/prepare.h), so at
// most one body of the server's limit (32 MB) is expanded at once.
inline constexpr size_t kLargeBodyBytes = 256u << 10;

// Logprobs in one answer: tokens x (1 + alternatives) x choices. Each takes about 50 bytes of memory and 30 to 100 of
// text. A million is, for instance, a prompt of 128k tokens with 7 alternatives, or 64 prompts of 2,048 tokens with 5.
inline constexpr int64_t kMaxLogprobs = 1 << 20;

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

// Bounds the logprobs of one answer by kMaxLogprobs.
//   Prompts: every token of an echoed prompt and of prompt_logprobs is certain and counts, in streams too.
//   Output of a whole answer: max_tokens counts when the request gives it. When it does not, only the length of the
//   context would end the answer; that is never refused, but max_tokens is then set to what the bound leaves room for.
//   Output of a stream is not counted: it is not kept (but see kMaxUnsentBytes in core/serving).
// Throws Error{kInvalidArgument} naming the field that asks for most.
void bound_logprobs(Common& common, bool chat, bool echo, const std::vector<size_t>& num_prompt_tokens,
                    int max_model_len);

// Throws Error{kInvalidArgument} naming `n` or `prompt` when the choices are over kMaxRequestChoices.
void check_choices(const Cost& cost);

// Throws Error{kInvalidArgument} naming `prompt` or `messages` when the text is over kMaxTokenizeBytes.
void check_tokenize(const TokenizeRequest& request);

// Text of so many bytes has more than `max_tokens` tokens, whatever it says, when no token stands for more than
// `max_token_bytes` of it. 0: no such bound is known, and the answer is false.
bool exceeds_tokens(size_t num_bytes, size_t max_tokens, size_t max_token_bytes);
// Prompts up to this are counted to the end although they do not fit, so that the refusal can say by how much.
constexpr size_t max_counted_tokens(int max_model_len) {
  return 2 * size_t(max_model_len) + 1024;
}

}  // namespace moectl::api
