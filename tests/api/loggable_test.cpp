// What of an error answer reaches a log: field names and our own words, nothing that a client sent.
#include "core/api/loggable.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moectl::api {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Loggable, KeepsFieldsAndNumbers) {
  for (const char* message : {
           "`temperature` must be a number from 0 and at most 2, not the number 3",
           "`max_tokens` (3) and `max_completion_tokens` (4) differ; send one of them",
           "`messages[0].content[12].type` must be a string, not an object",
           "This model's maximum context length is 64 tokens, prompt and answer together.",
           "The model `org/model-1.5` does not exist; this server serves `demo`",
       })
    EXPECT_EQ(loggable(message), message);
}

TEST(Loggable, LeavesOutWhatTheClientSent) {
  const struct {
    const char *message, *logged;
  } cases[] = {
      {"`role` must be one of these, not \"my secret\"", "`role` must be one of these, not ..."},
      {"the key \"a secret\" and another \" mark\" occurs twice", "the key ... occurs twice"},
      {"syntax error; last read: '\"the secret it's", "syntax error; last read: ..."},
      {"last read: 'it's my secret'; expected ','", "last read: ..."},
      {"the key \"it's my 'secret'\" and 'my secret' are not the request's",
       "the key ... and ... are not the request's"},
      {"`my secret field` cannot be set", "`...` cannot be set"},
      {"`my secret without an end", "`...`"},
      {"the chat template: no role my secret, please", "the chat template"},
      {"two\nlines\x1b[1m of \xc3\xa4", "two?lines?[1m of ??"},
  };
  for (const auto& [message, logged] : cases) EXPECT_EQ(loggable(message), logged);
}

TEST(Loggable, IsShort) {
  EXPECT_EQ(loggable(std::string(5000, 'x')).size(), kMaxLoggedBytes);
  EXPECT_THAT(loggable(fmt::format("`{}` must be set", std::string(100, 'x'))), "`...` must be set");
}

// The names of fields are the client's where objects are free: `logit_bias`, `chat_template_kwargs`.
TEST(Loggable, AParamThatIsNoNameHidesTheMessage) {
  ApiError error = from_status(400, "`logit_bias.a` my secret `b` must be a number");
  error.param = "logit_bias.a` my secret `b";
  const LoggedError logged = loggable(error);
  EXPECT_EQ(logged.param, "");
  EXPECT_THAT(logged.message, Not(HasSubstr("secret")));
  error.param = "logit_bias.5";
  EXPECT_EQ(loggable(error).param, "logit_bias.5");
}

}  // namespace
}  // namespace moectl::api
