#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/api/errors.h"
#include "core/api/openai_response.h"

namespace moectl::api {
namespace {

using Json = nlohmann::json;

AnswerHead head() {
  return {.id = "chatcmpl-1", .model = "demo", .created = 1700000000};
}

Json event_json(const std::string& event) {
  EXPECT_EQ(std::count(event.begin(), event.end(), '\n'), 0) << "an event must be one line";
  return Json::parse(event);
}

TEST(ChatResponse, HasOpenAiShape) {
  Choice choice{.index = 0, .content = "541", .reasoning = "sum\n", .finish_reason = "stop"};
  const Json json = Json::parse(chat_response(head(), {choice}, {10, 5, 4, 2}).all());
  EXPECT_EQ(json,
            Json::parse(R"({"id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": "demo",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "541", "reasoning_content": "sum\n",
      "reasoning": "sum\n", "refusal": null}, "logprobs": null, "finish_reason": "stop", "stop_reason": null}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "prompt_tokens_details": {"cached_tokens": 4},
      "completion_tokens_details": {"reasoning_tokens": 2}}})"));
  choice.content.clear();
  EXPECT_TRUE(Json::parse(chat_response(head(), {choice}, {}).all())["choices"][0]["message"]["content"].is_null());
}

TEST(ChatResponse, ToolCallsWholeAndInAStream) {
  Choice choice{.reasoning = "hm",
                .tool_calls = {{0, "call_1", "f", "{\"a\": 1}"}, {1, "call_2", "g", "{}"}},
                .finish_reason = "tool_calls"};
  const Json message = Json::parse(chat_response(head(), {choice}, {}).all())["choices"][0]["message"];
  EXPECT_TRUE(message["content"].is_null());
  EXPECT_EQ(message["tool_calls"], Json::parse(R"([
      {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
      {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}}])"));

  AnswerHead h = head();
  h.tools = true;
  EXPECT_TRUE(event_json(chat_role_chunk(h, 0, {}))["choices"][0]["delta"]["content"].is_null());
  const Json begin = event_json(chat_chunk(h, {.tool_calls = {{1, "call_2", "g", ""}}}).all());
  EXPECT_EQ(begin["choices"][0]["delta"], Json::parse(R"({"tool_calls": [
      {"index": 1, "id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}}]})"));
  const Json more = event_json(chat_chunk(h, {.tool_calls = {{1, "", "", "{}"}}}).all());
  EXPECT_EQ(more["choices"][0]["delta"],
            Json::parse(R"({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]})"));
}

TEST(ChatResponse, BytesThatAreNoUtf8AreShownExactlyInBytes) {
  AnswerHead h = head();
  h.logprobs = true;
  Choice choice{.content = "\xE8", .finish_reason = "length"};
  choice.logprobs.push_back({.id = 7, .bytes = "\xE8\xA7", .logprob = -INFINITY, .top = {{8, "a", -0.5f}}});
  const Json entry = Json::parse(chat_response(h, {choice}, {}).all())["choices"][0];
  EXPECT_EQ(entry["message"]["content"], "\xEF\xBF\xBD");
  const Json token = entry["logprobs"]["content"][0];
  EXPECT_EQ(token["bytes"], Json::array({0xE8, 0xA7}));
  EXPECT_EQ(token["logprob"], -9999.0);
  EXPECT_EQ(token["top_logprobs"], Json::parse(R"([{"token": "a", "logprob": -0.5, "bytes": [97]}])"));
}

TEST(ChatChunks, RoleDeltaFinishUsage) {
  AnswerHead h = head();
  h.usage_in_stream = true;
  h.token_ids = true;
  const Json role = event_json(chat_role_chunk(h, 1, {3, 4}));
  EXPECT_EQ(role["object"], "chat.completion.chunk");
  EXPECT_EQ(role["prompt_token_ids"], Json::array({3, 4}));
  EXPECT_EQ(role["choices"], Json::parse(R"([{"index": 1, "delta": {"role": "assistant", "content": ""},
    "logprobs": null, "finish_reason": null}])"));
  EXPECT_TRUE(role.contains("usage") && role["usage"].is_null());

  const Json reasoning = event_json(chat_chunk(h, {.index = 1, .reasoning = "line\nline", .token_ids = {9}}).all());
  EXPECT_EQ(reasoning["choices"][0]["delta"],
            Json::parse(R"({"reasoning": "line\nline", "reasoning_content": "line\nline"})"));
  EXPECT_EQ(reasoning["choices"][0]["token_ids"], Json::array({9}));

  const Json last = event_json(chat_chunk(h, {.content = "!", .finish_reason = "stop", .stop_string = "END"}).all());
  EXPECT_EQ(last["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(last["choices"][0]["stop_reason"], "END");

  const Json usage = event_json(usage_chunk(h, true, {1, 2, 0, 0}));
  EXPECT_EQ(usage["choices"], Json::array());
  EXPECT_EQ(usage["usage"]["total_tokens"], 3);
}

TEST(CompletionResponse, LegacyLogprobs) {
  AnswerHead h = head();
  h.logprobs = h.prompt_logprobs = h.token_ids = true;
  Choice choice{.content = "Hi you", .token_ids = {2}, .finish_reason = "length", .prompt_token_ids = {1}};
  PromptScores prompt;
  prompt.push_back({.id = 1, .bytes = "Hi", .has_logprob = false, .text_offset = 0});
  prompt.push_back(
      {.id = 2, .bytes = " you", .logprob = -1, .top = {{5, " me", -0.5f}, {6, " they", -0.75f}}, .text_offset = 2});
  choice.prompt_scores = std::make_shared<const PromptScores>(prompt);
  choice.echoed_top = 1;
  choice.prompt_top = 2;
  choice.logprobs.push_back({.id = 3, .bytes = "!", .logprob = -2, .text_offset = 6});
  const Json entry = Json::parse(completion_response(h, {choice}, {}).all())["choices"][0];
  EXPECT_EQ(entry["logprobs"], Json::parse(R"({"tokens": ["Hi", " you", "!"], "token_logprobs": [null, -1.0, -2.0],
    "top_logprobs": [null, {" me": -0.5, " you": -1.0}, {"!": -2.0}], "text_offset": [0, 2, 6]})"));
  EXPECT_EQ(entry["prompt_logprobs"],
            Json::parse(R"([null, {"2": {"logprob": -1.0, "rank": null, "decoded_token": " you"},
    "5": {"logprob": -0.5, "rank": 1, "decoded_token": " me"},
    "6": {"logprob": -0.75, "rank": 2, "decoded_token": " they"}}])"));
  EXPECT_EQ(entry["prompt_token_ids"], Json::array({1}));
  h.tokens_as_ids = true;
  EXPECT_EQ(Json::parse(completion_response(h, {choice}, {}).all())["choices"][0]["logprobs"]["tokens"],
            Json::array({"token_id:1", "token_id:2", "token_id:3"}));
}

TEST(Choice, AppendSumsIncrements) {
  Choice whole{.index = 2};
  whole.append({.content = "a", .reasoning = "r", .token_ids = {1}, .prompt_token_ids = {9}});
  whole.append({.content = "b", .token_ids = {2}, .finish_reason = "stop", .stop_token = 4});
  EXPECT_EQ(whole.content, "ab");
  EXPECT_EQ(whole.reasoning, "r");
  EXPECT_THAT(whole.token_ids, ::testing::ElementsAre(1, 2));
  EXPECT_EQ(whole.finish_reason, "stop");
  EXPECT_EQ(whole.stop_token, 4);
  EXPECT_EQ(whole.index, 2);
  whole.append({.tool_calls = {{0, "id", "f", "{"}}});
  whole.append({.tool_calls = {{0, "", "", "}"}, {1, "id2", "g", ""}}});
  ASSERT_EQ(whole.tool_calls.size(), 2u);
  EXPECT_EQ(whole.tool_calls[0].arguments, "{}");
  EXPECT_EQ(whole.tool_calls[1].name, "g");
}

TEST(Errors, HaveTheStatusOfTheirCode) {
  const auto status = [](Code code) { return from_error(Error(code, "x")).status; };
  EXPECT_EQ(status(Code::kUsage), 400);
  EXPECT_EQ(status(Code::kInvalidArgument), 400);
  EXPECT_EQ(status(Code::kNotFound), 404);
  EXPECT_EQ(status(Code::kResourceExhausted), 429);
  EXPECT_EQ(status(Code::kUnavailable), 503);
  for (const Code code : {Code::kBadData, Code::kBadConfig, Code::kCancelled, Code::kInternal})
    EXPECT_EQ(status(code), 500);
}

TEST(Errors, CarryTypeParamAndCode) {
  const Json bad = Json::parse(error_body(from_error(Error(Code::kInvalidArgument, "wrong \xff", "n"))));
  EXPECT_EQ(
      bad,
      Json::parse(
          R"({"error": {"message": "wrong \ufffd", "type": "invalid_request_error", "param": "n", "code": null}})"));
  const struct {
    ApiError error;
    int status;
    const char *type, *code;
  } kCases[] = {
      {invalid_api_key(), 401, "authentication_error", "invalid_api_key"},
      {model_not_found("a", "b"), 404, "not_found_error", "model_not_found"},
      {context_length_exceeded(3000, 2048, "messages"), 400, "invalid_request_error", "context_length_exceeded"},
      {from_status(405, "x"), 405, "invalid_request_error", ""},
      {from_status(429, "x"), 429, "rate_limit_error", ""},
      {from_status(500, "x"), 500, "server_error", ""},
      {draining(), 503, "service_unavailable_error", ""},
  };
  for (const auto& c : kCases) {
    EXPECT_EQ(c.error.status, c.status);
    const Json error = Json::parse(error_body(c.error))["error"];
    EXPECT_EQ(error["type"], c.type);
    EXPECT_EQ(error["code"], *c.code ? Json(c.code) : Json(nullptr));
  }
  EXPECT_EQ(Json::parse(error_body(loading()))["error"]["code"], 503);
  EXPECT_EQ(Json::parse(error_body(loading()))["error"]["message"], "Loading model");
}

TEST(Errors, ApiKeys) {
  EXPECT_EQ(api_key_of("Bearer secret"), "secret");
  EXPECT_EQ(api_key_of("bearer  secret "), "secret");
  EXPECT_EQ(api_key_of("secret"), "secret");
  EXPECT_EQ(api_key_of(""), "");
  EXPECT_EQ(api_key_of("Bearer "), "");
  EXPECT_TRUE(equal_constant_time("secret", "secret"));
  EXPECT_FALSE(equal_constant_time("secret", "secreT"));
  EXPECT_FALSE(equal_constant_time("secret", "secret1"));
  EXPECT_FALSE(equal_constant_time("", "secret"));
}

TEST(Characters, AreCodePoints) {
  EXPECT_EQ(count_characters("a\xC3\xA9\xF0\x9F\x99\x82"), 3);
}

}  // namespace
}  // namespace moectl::api
