// The queue between engine and stream: what waits is merged by choice and bounded.
#include "core/serving/increments.h"

#include <gmock/gmock.h>

#include <future>

#include "core/base/error.h"
#include "core/http/spawn.h"

namespace moectl {
namespace {

Task<void> pop_one(Increments& increments, Clock::duration timeout, std::promise<std::optional<Increment>>& taken) {
  std::optional<Increment> increment = co_await increments.pop(timeout);
  taken.set_value(std::move(increment));
}

std::optional<Increment> take(Increments& increments, Clock::duration timeout = std::chrono::seconds(30)) {
  std::promise<std::optional<Increment>> taken;
  auto future = taken.get_future();
  http::IoThread thread;
  thread.spawn("test", pop_one(increments, timeout, taken));
  return future.get();
}

GenerateOutput tokens(std::vector<int32_t> ids, FinishReason finish = FinishReason::kNone) {
  GenerateOutput output{.finish = finish};
  for (const int32_t id : ids) output.tokens.push_back({.id = id});
  return output;
}

std::vector<int32_t> ids_of(const Increment& increment) {
  std::vector<int32_t> ids;
  for (const GenerateOutput::Token& token : increment.output.tokens) ids.push_back(token.id);
  return ids;
}

TEST(Increments, WhatWaitsIsMergedByChoice) {
  Increments increments("r", 2, 1 << 20);
  GenerateOutput first = tokens({1});
  first.num_cached_tokens = 7;
  first.prompt_tokens.resize(3);
  increments.push(1, std::move(first));
  increments.push(0, tokens({5}));
  increments.push(1, tokens({2, 3}));
  increments.push(1, tokens({4}, FinishReason::kLength));
  std::optional<Increment> taken = take(increments);
  ASSERT_TRUE(taken);
  EXPECT_EQ(taken->choice_idx, 1u);
  EXPECT_THAT(ids_of(*taken), ::testing::ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(taken->output.finish, FinishReason::kLength);
  EXPECT_EQ(taken->output.num_cached_tokens, 7);
  EXPECT_EQ(taken->output.prompt_tokens.size(), 3u);
  taken = take(increments);
  ASSERT_TRUE(taken);
  EXPECT_EQ(taken->choice_idx, 0u);
  EXPECT_THAT(ids_of(*taken), ::testing::ElementsAre(5));
  EXPECT_FALSE(take(increments, std::chrono::milliseconds(1)));
  EXPECT_TRUE(increments.timed_out());
  increments.push(0, tokens({6}));
  taken = take(increments);
  ASSERT_TRUE(taken);
  EXPECT_THAT(ids_of(*taken), ::testing::ElementsAre(6));
}

TEST(Increments, AReaderThatTakesIsNeverCut) {
  Increments increments("r", 1, 1000);
  for (int i = 0; i < 100; ++i) {
    for (int k = 0; k < 10; ++k) increments.push(0, tokens({k}));
    ASSERT_TRUE(take(increments));
  }
  EXPECT_FALSE(increments.overflowed());
}

TEST(Increments, TooMuchThatWaitsEndsTheRequest) {
  Increments increments("r", 2, 1000);
  Code code = Code::kInternal;
  int num_pushed = 0;
  try {
    for (; num_pushed < 1000; ++num_pushed) increments.push(size_t(num_pushed % 2), tokens({1}));
  } catch (const Error& e) {
    code = e.code();
  }
  EXPECT_EQ(code, Code::kCancelled);
  EXPECT_EQ(num_pushed, 1000 / int(sizeof(GenerateOutput::Token)));
  EXPECT_THROW(increments.push(1, tokens({1})), Error) << "each choice's request ends";
  EXPECT_FALSE(take(increments));
  EXPECT_TRUE(increments.overflowed());
}

TEST(Increments, NobodyTakesWhenTheClientIsGone) {
  Increments increments("r", 1, 1000);
  increments.close();
  EXPECT_THROW(increments.push(0, tokens({1})), Error);
  EXPECT_FALSE(take(increments));
  EXPECT_FALSE(increments.overflowed());
  EXPECT_FALSE(increments.timed_out());
}

}  // namespace
}  // namespace moectl
