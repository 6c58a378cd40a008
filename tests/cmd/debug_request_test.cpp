// The request that debug-request builds, the event stream it reads, and the timeline it draws.
#include "cmd/debug_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/base/error.h"

namespace moectl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

std::string no_stdin() {
  ADD_FAILURE() << "standard input is not asked for";
  return {};
}

Code code_of(const DebugRequestOptions& options) {
  try {
    build_debug_request(options, no_stdin);
  } catch (const Error& error) {
    return error.code();
  }
  ADD_FAILURE() << "expected an error";
  return Code::kInternal;
}

std::string header(const DebugRequest& request, std::string_view name) {
  std::string value;
  for (const auto& [key, text] : request.headers)
    if (key == name) value += value.empty() ? text : "," + text;
  return value;
}

// ---------------------------------------------------------------------------------------------- the request
TEST(DebugRequest, AMessageBecomesAChat) {
  DebugRequestOptions options;
  options.endpoint.url = "http://127.0.0.1:8080/";
  options.endpoint.model = "demo";
  options.endpoint.api_keys = {"secret"};
  options.message = "say \"hi\"";
  options.max_tokens = 7;
  const DebugRequest request = build_debug_request(options, no_stdin);
  EXPECT_EQ(request.method, "POST");
  EXPECT_EQ(request.url, "http://127.0.0.1:8080/v1/chat/completions");
  EXPECT_EQ(Json::parse(request.body),
            Json::parse(R"({"model":"demo","messages":[{"role":"user","content":"say \"hi\""}],
      "max_tokens":7,"stream":true,"stream_options":{"include_usage":true}})"));
  EXPECT_EQ(header(request, "x-moectl-debug"), "1");
  EXPECT_EQ(header(request, "authorization"), "Bearer secret");
  EXPECT_EQ(header(request, "content-type"), "application/json");
}

TEST(DebugRequest, ABodyIsSentAsItIsAndHeadersWin) {
  DebugRequestOptions options;
  options.body = "{ not json";
  options.path = "/tokenize?x=1";
  options.headers = {"Content-Type:text/plain", "X-A: b: c"};
  DebugRequest request = build_debug_request(options, no_stdin);
  EXPECT_EQ(request.body, "{ not json");
  EXPECT_EQ(header(request, "content-type"), "text/plain");
  EXPECT_EQ(header(request, "x-a"), "b: c");
  options.body = "-";
  request = build_debug_request(options, [] { return std::string("from stdin"); });
  EXPECT_EQ(request.body, "from stdin");
  const auto file = std::filesystem::temp_directory_path() / fmt::format("moectl-body-{}.json", ::getpid());
  std::ofstream(file) << "from a file";
  options.body = "@" + file.string();
  EXPECT_EQ(build_debug_request(options, no_stdin).body, "from a file");
  std::filesystem::remove(file);
  EXPECT_EQ(code_of(options), Code::kNotFound);
}

TEST(DebugRequest, WithoutABodyItGets) {
  DebugRequestOptions options;
  EXPECT_EQ(code_of(options), Code::kUsage) << "a chat needs something to say";
  options.path = "/metrics";
  EXPECT_EQ(build_debug_request(options, no_stdin).method, "GET");
  options.method = "DELETE";
  EXPECT_EQ(build_debug_request(options, no_stdin).method, "DELETE");
  options.path = "metrics";
  EXPECT_EQ(code_of(options), Code::kUsage);
  options.path = "/metrics";
  options.headers = {"no colon"};
  EXPECT_EQ(code_of(options), Code::kUsage);
  options.headers = {};
  options.body = "{}";
  options.message = "both";
  EXPECT_EQ(code_of(options), Code::kUsage);
}

// ---------------------------------------------------------------------------------------------- the stream
std::vector<std::string> read_all(std::string_view text, size_t piece) {
  SseReader reader;
  std::vector<std::string> result;
  for (size_t at = 0; at < text.size(); at += piece)
    for (const SseReader::Item& item : reader.feed(text.substr(at, piece)))
      result.push_back((item.is_comment ? "#" : "") + item.text);
  return result;
}

// The cases of the WHATWG's text on event streams: line ends of every kind, several data lines, fields without a value.
TEST(SseReader, EventsAndCommentsInPiecesOfAnySize) {
  const std::string text =
      "\n: ping\n\ndata: one\n\ndata:two\r\ndata: lines\r\n\r\ndata: cr\rdata\r\rid: 7\nevent: x\ndata: {\"a\": 1}\n\n"
      ":no blank\ndata:  kept\n\nid: no data\n\ndata: cut";
  for (size_t piece : {1, 2, 3, 7, 1000})
    EXPECT_THAT(read_all(text, piece),
                ElementsAre("#ping", "one", "two\nlines", "cr\n", "{\"a\": 1}", "#no blank", " kept"))
        << piece;
}

TEST(SseReader, ALineWithoutEndIsRefused) {
  SseReader reader;
  const std::string piece(1 << 20, 'x');
  EXPECT_THROW(
      {
        for (int i = 0; i < 20; ++i) reader.feed(piece);
      },
      Error);
}

TEST(ParseAnswer, ChunksBodiesAndErrors) {
  AnswerEvent event =
      parse_answer(R"({"id":"c-1","choices":[{"index":1,"delta":{"reasoning_content":"r","reasoning":"r"},
      "token_ids":[4,5],"finish_reason":null}],"usage":null})");
  ASSERT_EQ(event.deltas.size(), 1u);
  EXPECT_EQ(event.deltas[0].index, 1);
  EXPECT_EQ(event.deltas[0].reasoning, "r");
  EXPECT_EQ(event.deltas[0].num_token_ids, 2);
  EXPECT_FALSE(event.usage);
  event = parse_answer(R"({"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],
      "usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}})");
  EXPECT_EQ(event.deltas[0].content, "hi");
  EXPECT_EQ(event.deltas[0].finish_reason, "stop");
  EXPECT_EQ(event.usage->prompt_tokens + 10 * event.usage->completion_tokens + 100 * event.usage->cached_tokens, 123);
  EXPECT_FALSE(
      parse_answer(R"({"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]})").deltas[0].has_tokens());
  // Tool calls are tokens as well: name first, then pieces of the arguments; a second call on a line of its own.
  std::string calls;
  for (const char* piece :
       {R"([{"index":0,"id":"a","function":{"name":"f","arguments":""}}])",
        R"([{"index":0,"function":{"arguments":"{\"x\":"}}])",
        R"([{"index":0,"function":{"arguments":"1}"}},{"index":1,"function":{"name":"g","arguments":"{}"}}])"}) {
    const AnswerEvent e =
        parse_answer(std::string(R"({"choices":[{"index":0,"delta":{"tool_calls":)") + piece + "}}]}");
    EXPECT_TRUE(e.deltas[0].has_tokens()) << piece;
    calls += e.deltas[0].tool_calls;
  }
  EXPECT_EQ(calls, "f {\"x\":1}\ng {}");
  EXPECT_EQ(parse_answer(R"({"error":{"message":"worker gone"}})").error, "worker gone");
  EXPECT_TRUE(parse_answer(R"({"error":"plain"})").is_error);
  EXPECT_TRUE(parse_answer("[DONE]").done);
  for (const std::string& bad : {std::string("[1]"), std::string("{"), std::string(100000, '['), std::string()})
    EXPECT_THROW(parse_answer(bad), Error);
  for (const char* odd :
       {R"({"choices":7})", R"({"choices":[7]})", R"({"usage":[]})", R"({"choices":[{"delta":3,"index":"x"}]})",
        R"({"usage":{"prompt_tokens":"x"}})", R"({"choices":[{"index":-9223372036854775808}]})"})
    EXPECT_NO_THROW(parse_answer(odd)) << odd;
}

TEST(DebugOutcome, SucceedsOnlyWhenCompleteAndWithoutError) {
  DebugOutcome outcome;
  outcome.status = 200;
  EXPECT_FALSE(outcome.succeeded());
  outcome.complete = true;
  EXPECT_TRUE(outcome.succeeded());
  outcome.status = 404;
  EXPECT_FALSE(outcome.succeeded());
  outcome.status = 200;
  add_to_outcome(outcome, parse_answer(R"({"error":{"message":"decode worker http://d:1 went away"}})"));
  EXPECT_FALSE(outcome.succeeded());
  const Json json = Json::parse(outcome_json({"POST", "http://h", {}, ""}, outcome));
  EXPECT_EQ(json["error"], "decode worker http://d:1 went away");
  EXPECT_EQ(json["ok"], false);
}

// ---------------------------------------------------------------------------------------------- the timeline
api::Timeline router_timeline() {
  api::Timeline inner;
  inner.role = "decode";
  inner.worker = "http://127.0.0.1:8000";
  inner.stages = {{"queue", 0, 0.1, ""},
                  {"prefill.compute", 1, 39, "512 tokens"},
                  {"kv.transfer", 10, 30, "8 pages, 1.9 MB, 2.4 GB/s"},
                  {"decode", 45, 55, ""}};
  inner.prefill_worker = "127.0.0.1:8200";
  inner.kv_bytes = 1'900'000;
  inner.prompt_tokens = 512;
  inner.output_tokens = 64;
  inner.ttft_ms = 45;
  inner.tokens_per_second = 1163.6;
  inner.expert_balance = {0.625, 0.25, 17};
  api::Timeline outer;
  outer.role = "router";
  outer.worker = "http://127.0.0.1:8080";
  outer.request_id = "req-1";
  outer.stages = {{"queue", 0, 5, ""}, {"route", 5, 5, ""}};
  outer.prefill_candidates = {{"http://127.0.0.1:8100", 0.5, 7, true, "longest prefix"},
                              {"http://127.0.0.1:8101", 0, 0, false, "unhealthy: connection refused"}};
  outer.decode_candidates = {{"http://127.0.0.1:8000", 3, 0, true, "least tokens"}};
  outer.inner_json = to_json(inner);
  return outer;
}

std::string line_with(const std::string& text, const std::string& part) {
  const size_t at = text.find(part);
  if (at == text.npos) return {};
  const size_t begin = text.rfind('\n', at) + 1;
  return text.substr(begin, text.find('\n', at) - begin);
}

// Columns of a line: code points, without colours.
int columns(const std::string& line) {
  int count = 0;
  for (char c : line) count += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  return count;
}

int bar_begin(const std::string& line) {
  const size_t at = std::min(line.find("█"), line.find("▏"));
  return at == line.npos ? -1 : columns(line.substr(0, at));
}

TEST(Timeline, WhatTheServerWritesIsRead) {
  const api::Timeline read = parse_timeline(to_json(router_timeline()));
  EXPECT_EQ(read.role, "router");
  EXPECT_EQ(read.request_id, "req-1");
  ASSERT_EQ(read.prefill_candidates.size(), 2u);
  EXPECT_EQ(read.prefill_candidates[0].cached_blocks, 7);
  EXPECT_TRUE(read.prefill_candidates[0].chosen);
  EXPECT_EQ(read.prefill_candidates[1].why, "unhealthy: connection refused");
  const api::Timeline inner = parse_timeline(read.inner_json);
  EXPECT_EQ(inner.prefill_worker, "127.0.0.1:8200");
  EXPECT_EQ(inner.kv_bytes, 1'900'000);
  EXPECT_EQ(inner.stages.size(), 4u);
  EXPECT_DOUBLE_EQ(inner.stages[1].duration_ms, 39);
  ASSERT_TRUE(inner.expert_balance);
  EXPECT_DOUBLE_EQ(inner.expert_balance->mean, 0.625);
  EXPECT_DOUBLE_EQ(inner.expert_balance->lowest, 0.25);
  EXPECT_EQ(inner.expert_balance->lowest_layer, 17);
  EXPECT_FALSE(read.expert_balance) << "the router's";
}

TEST(Timeline, IsDrawnOnOneAxisWithTheInnerOneNested) {
  ClientTimes client;
  client.ttft_ms = 60;
  client.total_ms = 120;
  const std::string text = timeline_text(router_timeline(), client, false);
  SCOPED_TRACE(text);
  size_t begin = 0;
  for (size_t end; (end = text.find('\n', begin)) != text.npos; begin = end + 1)
    EXPECT_LE(columns(text.substr(begin, end - begin)), 100);
  const int origin = bar_begin(line_with(text, "whole answer"));
  EXPECT_EQ(bar_begin(line_with(text, "  queue")), origin);
  // The decode worker's clock starts where the router's stages end, 10 of 120 ms: 3 of 36 columns.
  EXPECT_EQ(bar_begin(line_with(text, "    queue")), origin + 3);
  EXPECT_EQ(bar_begin(line_with(text, "    kv.transfer")), origin + 6);
  EXPECT_THAT(line_with(text, "experts"), HasSubstr("balancedness 0.62, lowest 0.25 in layer 17"));
  EXPECT_THAT(line_with(text, "->"), HasSubstr("longest prefix"));
  EXPECT_THAT(text, HasSubstr("unhealthy: connection refused"));
  EXPECT_THAT(text, HasSubstr("by 127.0.0.1:8200"));
  EXPECT_THAT(text, HasSubstr("1.9 MB"));
  EXPECT_THAT(text, HasSubstr("1163.6 tokens/s"));
  EXPECT_THAT(text, HasSubstr("req-1"));
  EXPECT_THAT(text, Not(HasSubstr("\033")));
}

TEST(Timeline, HostileOnesAreReadOrRefused) {
  for (const std::string& bad : {std::string(), std::string("[]"), std::string("{"), std::string(100000, '[')})
    EXPECT_THROW(parse_timeline(bad), Error);
  std::string many = R"({"role":"\u001b[2J","stages":[)";
  for (int i = 0; i < 5000; ++i) many += R"({"name":"a\nb","start_ms":-1e300,"duration_ms":1e308,"detail":"\u0007"},)";
  many += R"({"name":1,"start_ms":"x"},3],"inner":{"inner":{"inner":{}}},"kv_bytes":1e300,"prompt_tokens":-5})";
  const std::string text = timeline_text(parse_timeline(many), {}, false);
  EXPECT_THAT(text, Not(HasSubstr("\033")));
  EXPECT_THAT(text, Not(HasSubstr("\a")));
  EXPECT_LT(text.size(), 200'000u);
}

TEST(Printable, ControlCharactersAreWrittenOut) {
  EXPECT_EQ(printable("a\tb\nc"), "a\tb\nc");
  EXPECT_EQ(printable("\033]0;x\a\x7f"), "\\x1b]0;x\\x07\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\x9b31m")
      << "the one-character form of ESC [";
  EXPECT_EQ(printable("é 漢 \xc2\xa0"), "é 漢 \xc2\xa0");
}

}  // namespace
}  // namespace moectl
