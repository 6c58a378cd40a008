// How large an answer may become, and that it is made in pieces.
#include <gmock/gmock.h>

#include "core/api/cost.h"
#include "core/api/text_pieces.h"
#include "core/base/error.h"

namespace moectl::api {
namespace {

struct Asked {
  int n = 1, logprobs = -1, prompt_logprobs = -1;
  std::optional<int> max_tokens;
  bool chat = false, echo = false, stream = false;
};

// The field at fault, else max_tokens as the engine gets it ("": the context ends the answer).
std::string bound(const Asked& asked, const std::vector<size_t>& prompts, int max_model_len) {
  Common common{.n = asked.n, .stream = asked.stream};
  common.sampling.num_logprobs = asked.logprobs;
  common.sampling.num_prompt_logprobs = asked.prompt_logprobs;
  common.sampling.max_tokens = asked.max_tokens;
  try {
    bound_logprobs(common, asked.chat, asked.echo, prompts, max_model_len);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kInvalidArgument);
    return e.param();
  }
  return common.sampling.max_tokens ? std::to_string(*common.sampling.max_tokens) : "";
}

constexpr int k4k = 4096, k128k = 131072;

TEST(LogprobBound, OrdinaryRequestsPass) {
  EXPECT_EQ(bound({}, {100'000}, k128k), "") << "without logprobs there is nothing to bound";
  EXPECT_EQ(bound({.max_tokens = 100'000}, {100}, k128k), "100000");
  // Chats without max_tokens: never refused, and the bound is far beyond most answers.
  EXPECT_EQ(bound({.n = 4, .logprobs = 5, .chat = true}, {1000}, k4k), "43690");
  EXPECT_EQ(bound({.n = 4, .logprobs = 5, .chat = true}, {1000}, k128k), "43690");
  EXPECT_EQ(bound({.n = 16, .logprobs = 20, .chat = true}, {1000}, k128k), "3120");
  EXPECT_EQ(bound({.logprobs = 0, .chat = true}, {1000}, k128k), "1048576");
  // Evaluation harnesses: batches of prompts scored by echo, with max_tokens that count up to the end of the context.
  EXPECT_EQ(bound({.logprobs = 5, .max_tokens = 1, .echo = true}, std::vector<size_t>(64, 2048), k4k), "1");
  EXPECT_EQ(bound({.logprobs = 1, .max_tokens = 0, .echo = true}, {k128k - 1}, k128k), "0");
  EXPECT_EQ(bound({.prompt_logprobs = 0, .max_tokens = 1}, {k128k - 1}, k128k), "1");
  EXPECT_EQ(bound({.n = 4, .logprobs = 20, .max_tokens = 1'000'000}, {100}, k4k), "1000000");
}

TEST(LogprobBound, WhatIsCertainIsRefusedByName) {
  const std::vector<size_t> prompts(4, 2000);
  EXPECT_EQ(bound({.n = 16, .logprobs = 20, .prompt_logprobs = 20, .max_tokens = 1, .echo = true}, prompts, k4k),
            "logprobs");
  EXPECT_EQ(bound({.n = 16, .prompt_logprobs = 20, .max_tokens = 1}, prompts, k4k), "prompt_logprobs");
  EXPECT_EQ(bound({.n = 16, .prompt_logprobs = 20, .max_tokens = 1, .chat = true}, {2000}, k4k), "1")
      << "a chat has them once";
  EXPECT_EQ(bound({.n = 16, .logprobs = 20, .max_tokens = 4000}, {90}, k4k), "logprobs");
  EXPECT_EQ(bound({.n = 16, .logprobs = 20, .max_tokens = 4000, .stream = true}, {90}, k4k), "4000")
      << "a stream's output is not kept";
  EXPECT_EQ(bound({.n = 16, .logprobs = 20, .max_tokens = 1, .echo = true, .stream = true}, prompts, k4k), "logprobs")
      << "an echo is one event";
}

TEST(TextPieces, OneTextWhateverThePieces) {
  TextPieces pieces;
  std::string expected = "[";
  pieces.add("[");
  constexpr size_t kCount = 300'000;
  for (size_t i = 0; i < kCount; ++i) expected += (i ? "," : "") + std::to_string(i);
  size_t num_made = 0;
  pieces.add_list(kCount, 1000, [&](std::string& out, size_t i) {
    ++num_made;
    out += std::to_string(i);
  });
  pieces.add("]");
  pieces.add_list(0, 10, [](std::string&, size_t) { FAIL(); });
  pieces.add([](std::string& out) { out += "end"; });
  expected += "]end";

  std::string text = pieces.next();
  EXPECT_LT(num_made, kCount / 4) << "the rest is made when it is asked for";
  for (std::string piece; !(piece = pieces.next()).empty();) {
    EXPECT_LT(piece.size(), kPieceBytes + 10'000);
    text += piece;
  }
  EXPECT_EQ(text, expected);
  EXPECT_EQ(pieces.next(), "");
  EXPECT_EQ(TextPieces().all(), "");
}

}  // namespace
}  // namespace moectl::api
