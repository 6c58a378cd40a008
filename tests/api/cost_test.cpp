// What a request costs, and that requests over a limit are refused by the field that is at fault.
#include "core/api/cost.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "core/base/error.h"

namespace moectl::api {
namespace {

using ::testing::HasSubstr;

std::string prompts_body(int num_prompts, int n) {
  std::string list;
  for (int i = 0; i < num_prompts; ++i) list += (i ? ",\"Hi\"" : "\"Hi\"");
  return R"({"prompt":[)" + list + R"(],"n":)" + std::to_string(n) + "}";
}
// The param of the refusal; "" when the request is read.
std::string refused_param(const std::string& body) {
  try {
    read_completion_request(body, {});
    return "";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kInvalidArgument);
    EXPECT_THAT(e.what(), HasSubstr("128"));
    return e.param();
  }
}

TEST(Cost, CountsChoicesAndPromptBytes) {
  const CompletionRequest texts = read_completion_request(R"({"prompt":["abc","äöüß"],"n":3})", {});
  EXPECT_EQ(cost_of(texts).num_prompts, 2);
  EXPECT_EQ(cost_of(texts).num_choices, 6);
  EXPECT_EQ(cost_of(texts).max_prompt_bytes, 8u);
  EXPECT_EQ(cost_of(texts).max_prompt_tokens, 11);
  const CompletionRequest ids = read_completion_request(R"({"prompt":[[1,2,3],[4]]})", {});
  EXPECT_EQ(cost_of(ids).num_choices, 2);
  EXPECT_EQ(cost_of(ids).max_prompt_bytes, 0u);
  EXPECT_EQ(cost_of(ids).max_prompt_tokens, 4);
  const ChatRequest chat = read_chat_request(
      R"({"n":2,"messages":[{"role":"user","content":"Hello"},{"role":"assistant","content":"","tool_calls":
          [{"id":"a","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"a","content":"x"}]})",
      {});
  EXPECT_EQ(cost_of(chat).num_choices, 2);
  EXPECT_EQ(cost_of(chat).max_prompt_bytes, 9u);
}

TEST(Cost, TheProductOfPromptsAndNIsBounded) {
  EXPECT_EQ(refused_param(prompts_body(64, 2)), "");
  EXPECT_EQ(refused_param(prompts_body(8, 16)), "");
  EXPECT_EQ(refused_param(prompts_body(64, 3)), "n");
  EXPECT_EQ(refused_param(prompts_body(64, 16)), "n");
  EXPECT_EQ(refused_param(prompts_body(9, 16)), "n");
}

TEST(Cost, BytesThatCannotFitAreKnownBeforeTokenization) {
  EXPECT_FALSE(exceeds_tokens(1000, 100, 10));
  EXPECT_FALSE(exceeds_tokens(1009, 100, 10));
  EXPECT_TRUE(exceeds_tokens(1010, 100, 10));
  EXPECT_FALSE(exceeds_tokens(1u << 30, 100, 0));  // no bound is known
}

}  // namespace
}  // namespace moectl::api
