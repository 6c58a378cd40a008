// What clients may send: every field honoured or refused by name, every hostile body refused with a reason.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "core/api/openai.h"
#include "core/base/error.h"

namespace moectl::api {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr Limits kLimits{.vocab_size = 4096, .max_model_len = 2048};

// A chat body with `extra` members ("\"n\": 2") added.
std::string chat_body(const std::string& extra) {
  return R"({"messages": [{"role": "user", "content": "Hi"}])" + (extra.empty() ? "" : ", " + extra) + "}";
}
std::string completion_body(const std::string& extra) {
  return R"({"prompt": "Hi")" + (extra.empty() ? "" : ", " + extra) + "}";
}

struct Refusal {
  std::string message, param;
};
template <class F>
Refusal refusal_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kInvalidArgument) << e.what();
    return {e.what(), e.param()};
  }
  return {"(accepted)", "(accepted)"};
}
Refusal refuse_chat(const std::string& body) {
  return refusal_of([&] { read_chat_request(body, kLimits); });
}
Refusal refuse_completion(const std::string& body) {
  return refusal_of([&] { read_completion_request(body, kLimits); });
}

std::string repeat(const std::string& text, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += text;
  return out;
}

TEST(Json, RefusesWhatIsNotExactlyOneText) {
  const std::string messages = R"("messages":[{"role":"user","content":"Hi"}])";
  const struct {
    std::string body, reason;
  } kCases[] = {
      {"", "empty"},
      {"   ", "not valid JSON"},
      {"[]", "must be a JSON object, not an array of 0"},
      {"\"text\"", "must be a JSON object"},
      {"{" + messages + "} {}", "not valid JSON"},
      {"{" + messages + "}x", "not valid JSON"},
      {"{" + messages + ",}", "not valid JSON"},
      {"{" + messages + ", \"temperature\": NaN}", "not valid JSON"},
      {"{" + messages + ", \"temperature\": Infinity}", "not valid JSON"},
      {"{" + messages + ", \"temperature\": 1e400}", "number overflow"},
      {"{" + messages + ", \"temperature\": 01}", "not valid JSON"},
      {"{" + messages + ", \"n\": 1, \"n\": 2}", "\"n\" occurs twice"},
      {"{" + messages + ", \"metadata\": {\"a\": \"x\", \"a\": \"x\"}}", "\"a\" occurs twice"},
      {"{" + messages + ", \"metadata\": {\"a\": \"x\", \"\\u0061\": \"x\"}}", "\"a\" occurs twice"},
      {"{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}", "UTF-8"},
      {"{\"messages\":[{\"role\":\"user\",\"content\":\"\xc0\x80\"}]}", "UTF-8"},
      {"{\"messages\":[{\"role\":\"user\",\"content\":\"\xed\xa0\x80\"}]}", "UTF-8"},
      {R"({"messages":[{"role":"user","content":"\ud800"}]})", "surrogate"},
      {R"({"messages":[{"role":"user","content":"\udc00"}]})", "surrogate"},
      {R"({"messages":[{"role":"user","content":"\ud800\u0041"}]})", "surrogate"},
      {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\nb\"}]}", "control character"},
      {std::string("{\"messages\":\0}", 14), "not valid JSON"},
      {"{" + messages + ", \"x\": // no\n 1}", "not valid JSON"},
      {"{" + messages + ", \"x\": " + repeat("[", 100'000), "deep"},
      {"{" + messages + ", \"x\": " + repeat("[", 64) + repeat("]", 64) + "}", "deep"},
      {"{" + messages + ", \"x\": " + repeat("{\"a\":", 64) + "1" + repeat("}", 64) + "}", "deep"},
      {"{" + messages + ", \"x\": [" + repeat("[],", 3 << 20) + "1]}", "more than"},
  };
  for (const auto& c : kCases) EXPECT_THAT(refuse_chat(c.body).message, HasSubstr(c.reason)) << c.body.substr(0, 100);
}

TEST(Json, AcceptsDepthUpToTheLimitAndUnknownFields) {
  read_chat_request(chat_body("\"x\": " + repeat("[", 63) + repeat("]", 63)), kLimits);
  read_chat_request(chat_body(R"("some_future_field": {"a": [1, null]})"), kLimits);
  const auto request = read_chat_request(R"({"messages":[{"role":"user","content":"\ud83d\ude42 \u0000"}]})", kLimits);
  EXPECT_EQ(request.messages[0].content, std::string("\xF0\x9F\x99\x82 \0", 6));
}

TEST(Request, RefusesWithTheFieldsName) {
  const struct {
    const char *extra, *param, *reason;
  } kBoth[] = {
      {R"("model": 3)", "model", "must be a string, not the number 3"},
      {R"("temperature": -0.1)", "temperature", "a number from 0 to 2"},
      {R"("temperature": 2.5)", "temperature", "not the number 2.5"},
      {R"("temperature": "hot")", "temperature", "not \"hot\""},
      {R"("temperature": true)", "temperature", "not true"},
      {R"("top_p": 0)", "top_p", "over 0"},
      {R"("top_p": 1.01)", "top_p", "at most 1"},
      {R"("min_p": -1)", "min_p", "from 0"},
      {R"("top_k": -2)", "top_k", "from -1"},
      {R"("top_k": 1.5)", "top_k", "an integer"},
      {R"("presence_penalty": 3)", "presence_penalty", "from -2 to 2"},
      {R"("frequency_penalty": -3)", "frequency_penalty", "from -2"},
      {R"("temperature": 1e-40)", "temperature", "from 0"},  // subnormal as float
      {R"("top_p": 1e-50)", "top_p", "over 0"},              // 0 as float
      {R"("repetition_penalty": 0)", "repetition_penalty", "from 0.01"},
      {R"("repetition_penalty": 1e-40)", "repetition_penalty", "from 0.01"},
      {R"("repetition_penalty": 1e38)", "repetition_penalty", "to 100"},
      {R"("logit_bias": {"5": 1e38})", "logit_bias.5", "from -100 to 100"},
      {R"("logit_bias": {"5": 1e-45})", "logit_bias.5", "from -100 to 100"},
      {R"("n": 0)", "n", "from 1 to 16"},
      {R"("n": 17)", "n", "from 1 to 16"},
      {R"("n": 1.0)", "n", "an integer"},
      {R"("n": "2")", "n", "not \"2\""},
      {R"("seed": 1e3)", "seed", "an integer"},
      {R"("seed": 18446744073709551615)", "seed", "an integer"},
      {R"("max_tokens": -1)", "max_tokens", "an integer"},
      {R"("max_tokens": 9223372036854775808)", "max_tokens", "an integer"},
      {R"("max_tokens": 99999999999999999999999)", "max_tokens", "an integer"},
      {R"("max_tokens": 2147483648)", "max_tokens", "an integer"},
      {R"("max_tokens": 10.5)", "max_tokens", "an integer"},
      {R"("max_tokens": [1])", "max_tokens", "not an array"},
      {R"("min_tokens": -1)", "min_tokens", "an integer"},
      {R"("min_tokens": 5, "max_tokens": 4)", "min_tokens", "over `max_tokens` (4)"},
      {R"("min_tokens": 5, "stop": "a")", "min_tokens", "cannot be combined"},
      {R"("ignore_eos": 1)", "ignore_eos", "true or false"},
      {R"("stop": "")", "stop", "must not be empty"},
      {R"("stop": ["a", ""])", "stop[1]", "must not be empty"},
      {R"("stop": ["a", 1])", "stop[1]", "a string"},
      {R"("stop": {"a": 1})", "stop", "not an object"},
      {R"("stop": ["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"])", "stop",
       "at most 16"},
      {R"("stop_token_ids": [4096])", "stop_token_ids[0]", "from 0 to 4095"},
      {R"("stop_token_ids": [1, -1])", "stop_token_ids[1]", "from 0 to 4095"},
      {R"("stop_token_ids": 1)", "stop_token_ids", "an array of token ids"},
      {R"("logit_bias": [1])", "logit_bias", "an object"},
      {R"("logit_bias": {"4096": 1})", "logit_bias", "from 0 to 4095"},
      {R"("logit_bias": {"-1": 1})", "logit_bias", "from 0 to 4095"},
      {R"("logit_bias": {"": 1})", "logit_bias", "from 0 to 4095"},
      {R"("logit_bias": {"99999999999999999999": 1})", "logit_bias", "from 0 to 4095"},
      {R"("logit_bias": {"5": 1, "05": 1})", "logit_bias", "twice"},
      {R"("logit_bias": {"5": 101})", "logit_bias.5", "from -100 to 100"},
      {R"("logit_bias": {"5": "1"})", "logit_bias.5", "from -100 to 100"},
      {R"("stream": "yes")", "stream", "true or false"},
      {R"("stream_options": {"include_usage": true})", "stream_options", "only with `stream`"},
      {R"("stream": true, "stream_options": {"include_usage": 1})", "stream_options.include_usage", "true or false"},
      {R"("stream": true, "prompt_logprobs": 1)", "prompt_logprobs", "not available with `stream`"},
      {R"("prompt_logprobs": 21)", "prompt_logprobs", "from 0 to 20"},
      {R"("response_format": {"type": "json_object"})", "response_format", "not supported"},
      {R"("response_format": {"type": "json_schema", "json_schema": {}})", "response_format", "not supported"},
      {R"("structured_outputs": {"regex": "(a+)+b"})", "structured_outputs", "not supported"},
      {R"("guided_json": {})", "guided_json", "not supported"},
      {R"("functions": [{"name": "f"}])", "functions", "replaced by `tools`"},
      {R"("function_call": "auto2")", "function_call", "replaced by `tools`"},
      {R"("suffix": "x")", "suffix", "not supported"},
      {R"("chat_template": "{{ 1 }}")", "chat_template", "come from the checkpoint"},
      {R"("kv_transfer_params": {"remote_host": "203.0.113.1"})", "kv_transfer_params", "never by a client"},
      {R"("bootstrap_host": "203.0.113.1")", "bootstrap_host", "never by a client"},
      {R"("remote_block_ids": [1])", "remote_block_ids", "never by a client"},
      {R"("prefill_url": "http://203.0.113.1")", "prefill_url", "never by a client"},
      {R"("priority": 1)", "priority", "not supported"},
      {R"("use_beam_search": true)", "use_beam_search", "not supported"},
      {R"("store": true)", "store", "not stored"},
      {R"("user": 1)", "user", "a string"},
      {R"("metadata": {"a": 1})", "metadata.a", "a string"},
      {R"("cache_salt": 1)", "cache_salt", "a string"},
  };
  for (const auto& c : kBoth)
    for (const Refusal& refusal : {refuse_chat(chat_body(c.extra)), refuse_completion(completion_body(c.extra))}) {
      EXPECT_EQ(refusal.param, c.param) << c.extra;
      EXPECT_THAT(refusal.message, HasSubstr(c.reason)) << c.extra;
    }
}

TEST(ChatRequest, RefusesWithTheFieldsName) {
  const struct {
    const char *body, *param, *reason;
  } kCases[] = {
      {R"({})", "messages", "required"},
      {R"({"messages": []})", "messages", "at least one message"},
      {R"({"messages": {}})", "messages", "at least one message"},
      {R"({"messages": ["Hi"]})", "messages[0]", "an object"},
      {R"({"messages": [{"content": "Hi"}]})", "messages[0].role", "one of system"},
      {R"({"messages": [{"role": "robot", "content": "Hi"}]})", "messages[0].role", "not \"robot\""},
      {R"({"messages": [{"role": "function", "content": "4", "name": "f"}]})", "messages[0].role", "one of system"},
      {R"({"messages": [{"role": "tool", "content": "4"}]})", "messages[0].tool_call_id", "required"},
      {R"({"messages": [{"role": "tool", "tool_call_id": "x"}]})", "messages[0].content", "required"},
      {R"({"messages": [{"role": "user", "content": "4", "tool_call_id": "x"}]})", "messages[0].tool_call_id",
       "tool messages"},
      {R"({"messages": [{"role": "user"}]})", "messages[0].content", "required"},
      {R"({"messages": [{"role": "user", "content": 3}]})", "messages[0].content", "the number 3"},
      {R"({"messages": [{"role": "user", "content": [3]}]})", "messages[0].content[0]", "an object"},
      {R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})", "messages[0].content[0].text", "a string"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://203.0.113.1/"}}]}]})",
       "messages[0].content[0].type", "nothing is fetched"},
      {R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}]})",
       "messages[0].content[1].type", "text only"},
  };
  for (const auto& c : kCases) {
    const Refusal refusal = refuse_chat(c.body);
    EXPECT_EQ(refusal.param, c.param) << c.body;
    EXPECT_THAT(refusal.message, HasSubstr(c.reason)) << c.body;
  }
  const struct {
    const char *extra, *param;
  } kExtras[] = {
      {R"("logprobs": 3)", "logprobs"},
      {R"("top_logprobs": 3)", "top_logprobs"},
      {R"("logprobs": true, "top_logprobs": 21)", "top_logprobs"},
      {R"("logprobs": true, "top_logprobs": -1)", "top_logprobs"},
      {R"("max_tokens": 0)", "max_tokens"},
      {R"("max_tokens": 5, "max_completion_tokens": 6)", "max_tokens"},
      {R"("max_completion_tokens": 0)", "max_completion_tokens"},
      {R"("best_of": 2)", "best_of"},
      {R"("echo": true)", "echo"},
      {R"("continue_final_message": true)", "continue_final_message"},
      {R"("reasoning_effort": "extreme")", "reasoning_effort"},
      {R"("chat_template_kwargs": [])", "chat_template_kwargs"},
      {R"("chat_template_kwargs": {"messages": "x"})", "chat_template_kwargs.messages"},
      {R"("chat_template_kwargs": {"bos_token": "<|evil|>"})", "chat_template_kwargs.bos_token"},
      {R"("chat_template_kwargs": {"x": [1]})", "chat_template_kwargs.x"},
  };
  for (const auto& c : kExtras) EXPECT_EQ(refuse_chat(chat_body(c.extra)).param, c.param) << c.extra;
}

TEST(ChatRequest, ReadsEverythingItHonours) {
  const auto r = read_chat_request(chat_body(R"("model": "m", "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.1,
      "n": 3, "seed": -1, "stop": "END", "stop_token_ids": [4], "max_completion_tokens": 7,
      "logit_bias": {"5": -100, "17": 2.5}, "logprobs": true, "top_logprobs": 4, "presence_penalty": 1,
      "frequency_penalty": -1, "repetition_penalty": 1.5, "stream": true, "stream_options": {"include_usage": true},
      "ignore_eos": true, "cache_salt": "tenant", "return_token_ids": true, "reasoning_effort": "low",
      "chat_template_kwargs": {"thinking": true, "level": 3, "style": "terse"}, "tools": [], "tool_choice": "none",
      "response_format": {"type": "text"}, "user": "u", "parallel_tool_calls": true)"),
                                   kLimits);
  const Sampling& s = r.common.sampling;
  EXPECT_EQ(r.common.model, "m");
  EXPECT_EQ(s.temperature, 0);
  EXPECT_EQ(s.top_p, 0.5);
  EXPECT_EQ(s.top_k, 0);
  EXPECT_EQ(s.min_p, 0.1);
  EXPECT_EQ(r.common.n, 3);
  EXPECT_EQ(s.seed, ~uint64_t{0});
  EXPECT_THAT(s.stop, ElementsAre("END"));
  EXPECT_THAT(s.stop_token_ids, ElementsAre(4));
  EXPECT_EQ(s.max_tokens, 7);
  EXPECT_THAT(s.logit_bias, ::testing::UnorderedElementsAre(Pair(5, -100.0f), Pair(17, 2.5f)));
  EXPECT_EQ(s.num_logprobs, 4);
  EXPECT_EQ(s.presence_penalty, 1);
  EXPECT_EQ(s.frequency_penalty, -1);
  EXPECT_EQ(s.repetition_penalty, 1.5);
  EXPECT_TRUE(r.common.stream && r.common.include_usage && s.ignore_eos && r.common.return_token_ids);
  EXPECT_EQ(r.common.cache_salt, "tenant");
  EXPECT_THAT(r.template_kwargs,
              ::testing::UnorderedElementsAre(Pair("reasoning_effort", Scalar("low")), Pair("thinking", Scalar(true)),
                                              Pair("level", Scalar(int64_t{3})), Pair("style", Scalar("terse"))));
}

TEST(ChatRequest, ReadsMessages) {
  const auto r = read_chat_request(R"({"messages": [
      {"role": "developer", "content": "Be brief."},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
      {"role": "assistant", "content": null, "reasoning_content": "why", "tool_calls": null, "refusal": null},
      {"role": "user", "content": ""}], "n": null, "stop": null})",
                                   kLimits);
  ASSERT_EQ(r.messages.size(), 4u);
  EXPECT_EQ(r.messages[0].role, "system");
  EXPECT_EQ(r.messages[1].content, "a\nb");
  EXPECT_EQ(r.messages[1].name, "Ann");
  EXPECT_EQ(r.messages[2].content, "");
  EXPECT_EQ(r.messages[2].reasoning_content, "why");
  EXPECT_EQ(r.common.n, 1);
  EXPECT_FALSE(r.common.sampling.max_tokens);
  EXPECT_EQ(r.common.sampling.num_logprobs, -1);
}

// ------------------------------------------------------------------------------------------------ tools

std::string with_tool(const std::string& function) {
  return chat_body(R"("tools": [{"type": "function", "function": )" + function + "}]");
}
std::string with_call(const std::string& call) {
  return R"({"messages": [{"role": "assistant", "content": null, "tool_calls": [)" + call + "]}]}";
}

TEST(ChatRequest, ReadsTools) {
  const auto r = read_chat_request(
      chat_body(R"("tools": [{"type": "function", "function": {"name": "get_weather", "description": "d",
          "parameters": {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}},
          "strict": true}}, {"function": {"name": "now"}, "type": "function"}], "tool_choice": "auto",
          "parallel_tool_calls": false, "x": {"tools": 1})"),
      kLimits);
  ASSERT_NE(r.tools.tools, nullptr);
  EXPECT_TRUE(r.tools.parses_calls());
  EXPECT_FALSE(r.tools.parallel);
  // keys in the order of the request: templates print them
  EXPECT_EQ(r.tools.tools->dump(),
            R"([{"type":"function","function":{"name":"get_weather","description":"d","parameters":{"type":"object",)"
            R"("properties":{"z":{"type":"string"},"a":{"type":"integer"}}},"strict":true}},)"
            R"({"function":{"name":"now"},"type":"function"}])");
  EXPECT_FALSE(read_chat_request(with_tool(R"({"name": "f"})").insert(1, R"("tool_choice": "none", )"), kLimits)
                   .tools.parses_calls());
  EXPECT_FALSE(read_chat_request(chat_body(""), kLimits).tools.parses_calls());
}

TEST(ChatRequest, ReadsPastCallsAndResults) {
  const auto r = read_chat_request(R"({"messages": [{"role": "user", "content": "?"},
      {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": \"\\u00e9\"}"}},
        {"id": "call_2", "function": {"name": "g", "arguments": ""}}]},
      {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "4"}]},
      {"role": "assistant", "content": "x", "tool_calls": []}]})",
                                   kLimits);
  ASSERT_EQ(r.messages[1].tool_calls.size(), 2u);
  EXPECT_EQ(r.messages[1].content, "");
  EXPECT_EQ(r.messages[1].tool_calls[0].id, "call_1");
  EXPECT_EQ(r.messages[1].tool_calls[0].name, "f");
  EXPECT_EQ(r.messages[1].tool_calls[0].arguments, R"({"b": 1, "a": "\u00e9"})");
  EXPECT_EQ(r.messages[1].tool_calls[1].arguments, "{}");
  EXPECT_EQ(r.messages[2].role, "tool");
  EXPECT_EQ(r.messages[2].tool_call_id, "call_1");
  EXPECT_EQ(r.messages[2].content, "4");
}

TEST(ChatRequest, RefusesBadTools) {
  const std::string f = R"({"name": "f"})";
  const std::string many = "{\"name\": \"f\", \"parameters\": {" + [] {
    std::string members;
    for (int i = 0; i < 1025; ++i) members += (i ? ", \"" : "\"") + std::to_string(i) + "\": 1";
    return members;
  }() + "}}";
  const struct {
    std::string body, param, reason;
  } kCases[] = {
      {chat_body(R"("tools": {})"), "tools", "an array of tools"},
      {chat_body(R"("tools": ["f"])"), "tools[0]", "an object"},
      {chat_body(R"("tools": [{"type": "function"}])"), "tools[0].function", "required"},
      {chat_body(R"("tools": [{"type": "web_search"}])"), "tools[0].type", "\"function\""},
      {with_tool(R"({"name": ""})"), "tools[0].function.name", "the function's name"},
      {with_tool(R"({"name": "a b"})"), "tools[0].function.name", "letters, digits"},
      {with_tool(R"({"name": "f", "parameters": []})"), "tools[0].function.parameters", "JSON schema"},
      {with_tool(R"({"name": "f", "description": 1})"), "tools[0].function.description", "a string"},
      {with_tool(R"({"name": "f", "strict": "yes"})"), "tools[0].function.strict", "true or false"},
      {with_tool(many), "tools[0]", "1025 members"},
      {chat_body("\"tools\": [" + repeat(R"({"type": "function", "function": {"name": "f"}}, )", 600) + "1]"), "tools",
       "at most 512"},
      {chat_body(
           R"("tools": [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}])"),
       "tools[1].function.name", "twice"},
      {chat_body(R"("tool_choice": "required")"), "tool_choice", "there are no `tools`"},
      {chat_body(R"("tool_choice": "always")"), "tool_choice", "\"none\", \"auto\""},
      {chat_body(R"("tool_choice": 1)"), "tool_choice", "\"none\", \"auto\""},
      {with_tool(f).insert(1, R"("tool_choice": "required", )"), "tool_choice", "constrained decoding"},
      {with_tool(f).insert(1, R"("tool_choice": {"type": "function", "function": {"name": "f"}}, )"), "tool_choice",
       "constrained decoding"},
      {with_tool(f).insert(1, R"("tool_choice": {"type": "function", "function": {"name": "g"}}, )"), "tool_choice",
       "not in `tools`"},
      {with_tool(f).insert(1, R"("tool_choice": {"type": "allowed_tools"}, )"), "tool_choice.type", "\"function\""},
      {with_tool(f).insert(1, R"("parallel_tool_calls": 1, )"), "parallel_tool_calls", "true or false"},
      {with_call("1"), "messages[0].tool_calls[0]", "an object"},
      {with_call(R"({"function": {"name": "f", "arguments": "{}"}})"), "messages[0].tool_calls[0].id", "required"},
      {with_call(R"({"id": "1"})"), "messages[0].tool_calls[0].function", "required"},
      {with_call(R"({"id": "1", "type": "custom"})"), "messages[0].tool_calls[0].type", "\"function\""},
      {with_call(R"({"id": "1", "function": {"arguments": "{}"}})"), "messages[0].tool_calls[0].function.name",
       "required"},
      {with_call(R"({"id": "1", "function": {"name": "f"}})"), "messages[0].tool_calls[0].function.arguments",
       "required"},
      {with_call(R"({"id": "1", "function": {"name": "f", "arguments": {}}})"),
       "messages[0].tool_calls[0].function.arguments", "a string"},
      {with_call(R"({"id": "1", "function": {"name": "f", "arguments": "{\"a\""}})"),
       "messages[0].tool_calls[0].function.arguments", "a JSON object"},
      {with_call(R"({"id": "1", "function": {"name": "f", "arguments": "[]"}})"),
       "messages[0].tool_calls[0].function.arguments", "a JSON object"},
      {with_call("{\"id\": \"1\", \"function\": {\"name\": \"f\", \"arguments\": \"" + repeat("[", 1000) + "\"}}"),
       "messages[0].tool_calls[0].function.arguments", "a JSON object"},
      {R"({"messages": [{"role": "user", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}]})",
       "messages[0].tool_calls", "assistant messages"},
  };
  for (const auto& c : kCases) {
    const Refusal refusal = refuse_chat(c.body);
    EXPECT_EQ(refusal.param, c.param) << c.body.substr(0, 200);
    EXPECT_THAT(refusal.message, HasSubstr(c.reason)) << c.body.substr(0, 200);
  }
  EXPECT_EQ(refuse_completion(completion_body(R"("tools": [{"type": "function", "function": {"name": "f"}}])")).param,
            "tools");
  EXPECT_EQ(refuse_completion(completion_body(R"("tool_choice": "required")")).param, "tool_choice");
}

TEST(CompletionRequest, ReadsEveryFormOfPrompt) {
  const auto prompts = [](const char* prompt) {
    return read_completion_request(std::string("{\"prompt\": ") + prompt + "}", kLimits).prompts;
  };
  const std::vector<int32_t> ids = {1, 4095};
  EXPECT_THAT(prompts(R"("Hi")"), ElementsAre(Prompt("Hi")));
  EXPECT_THAT(prompts(R"(["Hi", ""])"), ElementsAre(Prompt("Hi"), Prompt("")));
  EXPECT_THAT(prompts(R"([1, 4095])"), ElementsAre(Prompt(ids)));
  EXPECT_THAT(prompts(R"([[1, 4095], [1, 4095]])"), ElementsAre(Prompt(ids), Prompt(ids)));
}

TEST(CompletionRequest, RefusesBadPrompts) {
  const struct {
    std::string body, param;
  } kCases[] = {
      {R"({})", "prompt"},
      {R"({"prompt": 3})", "prompt"},
      {R"({"prompt": []})", "prompt"},
      {R"({"prompt": [[]]})", "prompt"},
      {R"({"prompt": [1, 4096]})", "prompt[1]"},
      {R"({"prompt": [-1]})", "prompt[0]"},
      {R"({"prompt": [1, "a"]})", "prompt[1]"},
      {R"({"prompt": [1.5]})", "prompt[0]"},
      {R"({"prompt": ["a", 1]})", "prompt[1]"},
      {R"({"prompt": ["a", [1]]})", "prompt[1]"},
      {R"({"prompt": [[1], [2, 9999]]})", "prompt[1][1]"},
      {R"({"prompt": [{}]})", "prompt[0]"},
      {"{\"prompt\": [" + repeat("\"a\",", 64) + "\"a\"]}", "prompt"},
      {R"({"prompt": "a", "max_tokens": 0})", "max_tokens"},
      {R"({"prompt": "a", "logprobs": 21})", "logprobs"},
      {R"({"prompt": "a", "logprobs": true})", "logprobs"},
      {R"({"prompt": "a", "best_of": 2})", "best_of"},
  };
  for (const auto& c : kCases) EXPECT_EQ(refuse_completion(c.body).param, c.param) << c.body;
}

TEST(CompletionRequest, DefaultsAndEcho) {
  EXPECT_EQ(read_completion_request(completion_body(""), kLimits).common.sampling.max_tokens, 16);
  const auto r = read_completion_request(
      completion_body(R"("echo": true, "max_tokens": 0, "logprobs": 0, "n": 2, "best_of": 2)"), kLimits);
  EXPECT_TRUE(r.echo);
  EXPECT_EQ(r.common.sampling.max_tokens, 0);
  EXPECT_EQ(r.common.sampling.num_logprobs, 0);
}

TEST(TokenizeRequest, ReadsPromptOrMessages) {
  EXPECT_EQ(std::get<std::string>(read_tokenize_request(R"({"prompt": "Hi"})", kLimits).input), "Hi");
  const auto chat = read_tokenize_request(R"({"messages": [{"role": "user", "content": "Hi"}]})", kLimits);
  EXPECT_EQ(std::get<ChatRequest>(chat.input).messages.size(), 1u);
  EXPECT_THAT(read_detokenize_request(R"({"tokens": [1, 2]})", kLimits).tokens, ElementsAre(1, 2));
  EXPECT_EQ(refusal_of([] { read_detokenize_request(R"({"tokens": [4096]})", kLimits); }).param, "tokens[0]");
  EXPECT_EQ(refusal_of([] { read_tokenize_request(R"({})", kLimits); }).param, "prompt");
}

}  // namespace
}  // namespace moectl::api
