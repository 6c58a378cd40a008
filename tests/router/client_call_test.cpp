#include "router/client_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/api/openai_response.h"
#include "core/base/error.h"
#include "router/context.h"
#include "router/prefix_index.h"
#include "router/sse_filter.h"

namespace moectl::router {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

std::string chat(const std::string& first, const std::string& second, const std::string& extra = "") {
  return R"({"model":"m",)" + extra + R"("messages":[{"role":"user","content":")" + first +
         R"("},{"role":"user","content":")" + second + R"("}]})";
}

TEST(ReadCall, ModelStreamAndPrompt) {
  const ClientCall call = read_call(chat(std::string(1000, 'a'), "b", R"("stream":true,)"));
  EXPECT_EQ(call.model, "m");
  EXPECT_TRUE(call.stream);
  EXPECT_EQ(call.prompt.size(), 3u);
  EXPECT_GT(call.tokens, 250);
  EXPECT_FALSE(read_call(R"({"prompt":"x","stream":null})").stream);
  EXPECT_EQ(read_call(R"({"prompt":[[1,2],[3]]})").model, "");
}

TEST(ReadCall, ChoicesAreCounted) {
  EXPECT_EQ(read_call(R"({"prompt":"x"})").choices, 1);
  EXPECT_EQ(read_call(R"({"messages":[],"n":4})").choices, 4);
  EXPECT_EQ(read_call(R"({"prompt":["a","b","c"],"n":4})").choices, 12);
  EXPECT_EQ(read_call(R"({"prompt":[[1,2],[3]],"n":4.0})").choices, 8);
  EXPECT_EQ(read_call(R"({"prompt":[1,2,3]})").choices, 1);
  EXPECT_EQ(read_call(R"({"prompt":[],"n":-5})").choices, 1);
  EXPECT_EQ(read_call(R"({"prompt":"x","n":9223372036854775807})").choices, 4096);
  EXPECT_EQ(read_call(R"({"prompt":"x","n":1e300})").choices, 4096);
  EXPECT_EQ(read_call(R"({"prompt":["a","b"],"n":"many"})").choices, 2);
}

TEST(ClientId, SaysNothingButWho) {
  EXPECT_EQ(client_id("key", "1.2.3.4:5"), client_id("key", "5.6.7.8:9"));
  EXPECT_NE(client_id("key", "1.2.3.4:5"), client_id("other", "1.2.3.4:5"));
  EXPECT_NE(client_id("", "1.2.3.4:5"), client_id("", "1.2.3.4:6"));
  EXPECT_THAT(client_id("key", ""), MatchesRegex("[0-9a-f]{16}"));
}

TEST(ReadCall, OneBeginningGivesTheSameFirstBlocks) {
  const std::string shared(1000, 'a');
  const ClientCall one = read_call(chat(shared, std::string(500, 'b')));
  const ClientCall two = read_call(chat(shared, std::string(500, 'c')));
  EXPECT_EQ(one.prompt[0], two.prompt[0]);
  EXPECT_EQ(one.prompt[2], two.prompt[2]);
  EXPECT_FALSE(one.prompt[4] == two.prompt[4]);
  const ClientCall salted = read_call(chat(shared, "b", R"("cache_salt":"s",)"));
  EXPECT_FALSE(one.prompt[0] == salted.prompt[0]);
}

TEST(ReadCall, RefusesWhatIsNotOneJsonObject) {
  for (const std::string& body :
       {std::string(), std::string("hello"), std::string("[]"), std::string("{} {}"), std::string(R"({"a":NaN})"),
        std::string(R"({"model":"a","model":"b"})"), std::string("{\"a\":\"\xff\"}"), std::string(100'000, '['),
        R"({"a":)" + std::string(65, '[') + std::string(65, ']') + "}"}) {
    try {
      read_call(body);
      ADD_FAILURE() << body.substr(0, 60);
    } catch (const Error& e) {
      EXPECT_EQ(int(e.code()), int(Code::kInvalidArgument)) << body.substr(0, 60);
    }
  }
}

TEST(ReadCall, OddTypesAreLeftToTheWorker) {
  EXPECT_EQ(read_call(R"({"model":5,"messages":"x","stream":"yes"})").model, "");
  EXPECT_NO_THROW(read_call(R"({"messages":[1,null,{"content":[{"type":"text","text":"x"}]}]})"));
}

TEST(ClientHeaders, ClusterHeadersAreTheRoutersOwn) {
  EXPECT_NO_THROW(check_client_headers({{"x-request-id", "1"}, {"x-moectl-debug", "1"}}));
  try {
    check_client_headers({{"x-moectl-cluster-prefill", "10.0.0.1:1"}});
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(int(e.code()), int(Code::kInvalidArgument));
  }
}

TEST(Traceparent, IsContinuedOrBegun) {
  const std::string given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
  const std::string next = next_traceparent(given);
  EXPECT_THAT(next, MatchesRegex("00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-00"));
  EXPECT_NE(next, given);
  for (const char* bad : {"", "x", "00-00000000000000000000000000000000-b7ad6b7169203331-01",
                          "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
                          "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}) {
    const std::string fresh = next_traceparent(bad);
    EXPECT_THAT(fresh, MatchesRegex("00-[0-9a-f]{32}-[0-9a-f]{16}-01"));
    EXPECT_NE(fresh, next_traceparent(bad));
  }
}

TEST(UrlTarget, EncodesWhatAPathMayNotHold) {
  EXPECT_EQ(url_target("/v1/models/a b?c#d%e", ""), "/v1/models/a%20b%3Fc%23d%25e");
  EXPECT_EQ(url_target("/v1/models/org/name:v1", "x=%20"), "/v1/models/org/name:v1?x=%20");
  EXPECT_EQ(url_target("/\xc3\xa4", ""), "/%C3%A4");
}

TEST(WorkerUrl, IsNormalised) {
  EXPECT_EQ(worker_url("http://127.0.0.1:8000/"), "http://127.0.0.1:8000");
  EXPECT_EQ(worker_url("127.0.0.1:8000"), "http://127.0.0.1:8000");
  EXPECT_EQ(worker_url("https://[::1]:1"), "https://[::1]:1");
  for (const char* bad : {"", "http://", "http://host/path", "http://host:99999", "http://u:p@host"})
    EXPECT_THROW(worker_url(bad), Error) << bad;
}

// ------------------------------------------------------------------------------------------------ SSE

// The same stream in pieces of every size gives the same text.
std::string filtered(std::string_view stream, SseFilter& filter, size_t piece) {
  std::string out;
  for (size_t i = 0; i < stream.size(); i += piece) filter.feed(stream.substr(i, piece), out);
  return out;
}

TEST(SseFilter, StripsTheWorkersCommentsAndKeepsPings) {
  const std::string stream =
      ": moectl {\"choice\":0,\"ids\":[1],\"pos\":1}\n\ndata: {\"a\":1}\n\n: ping\n\n: moectl {}\ndata: {\"b\":2}\n\n"
      ": moectl-timeline {\"role\":\"decode\"}\n\ndata: [DONE]\n\n";
  for (size_t piece = 1; piece <= stream.size(); ++piece) {
    SseFilter filter;
    EXPECT_EQ(filtered(stream, filter, piece), "data: {\"a\":1}\n\n: ping\n\ndata: {\"b\":2}\n\n") << piece;
    EXPECT_TRUE(filter.done());
    EXPECT_EQ(filter.error(), "");
    EXPECT_EQ(filter.num_events(), 2);
    EXPECT_EQ(filter.timeline(), "{\"role\":\"decode\"}");
  }
}

TEST(SseFilter, HalfAnEventIsNotPassedOn) {
  SseFilter filter;
  std::string out;
  filter.feed("data: {\"a\":1}\n\ndata: {\"b\":2}\n\ndata: {\"c\"", out);
  EXPECT_EQ(out, "data: {\"a\":1}\n\ndata: {\"b\":2}\n\n");
  EXPECT_FALSE(filter.done());
}

std::string role_chunk(int index, bool tools = false) {
  const api::AnswerHead head{.id = "i", .model = "m", .tools = tools};
  return "data: " + api::chat_role_chunk(head, index, {}) + "\n\n";
}

TEST(SseFilter, RolesWaitForText) {
  for (const bool tools : {false, true}) {
    SseFilter filter;
    std::string out;
    const std::string roles = role_chunk(0, tools) + role_chunk(1, tools) + role_chunk(2, tools);
    filter.feed(roles + ": ping\n\n", out);
    EXPECT_EQ(out, ": ping\n\n");
    EXPECT_EQ(filter.num_events(), 0);
    out.clear();
    filter.feed(": moectl {}\n\ndata: {\"text\":1}\n\n", out);
    EXPECT_EQ(out, roles + "data: {\"text\":1}\n\n");
    EXPECT_EQ(filter.num_events(), 4);
  }
}

TEST(SseFilter, TextThatLooksLikeARoleIsText) {
  SseFilter filter;
  std::string out;
  const api::AnswerHead head{.id = "i", .model = "m"};
  const api::Choice delta{.content = R"("delta":{"role":"assistant","content":""} "finish_reason":null)"};
  const std::string event = "data: " + api::chat_chunk(head, delta).all() + "\n\n";
  filter.feed(event, out);
  EXPECT_EQ(out, event);
}

TEST(SseFilter, RolesWithoutTextComeAtTheEnd) {
  SseFilter filter;
  std::string out;
  filter.feed(role_chunk(0) + "data: [DONE]\n\n", out);
  EXPECT_EQ(out, role_chunk(0));
}

TEST(SseFilter, AVeryLargeEventPassesInPieces) {
  const std::string large = "data: {\"x\":\"" + std::string(3 << 20, 'x') + "\"}\n\n";
  const std::string stream = role_chunk(0) + large + ": moectl {}\n\ndata: {\"b\":2}\n\ndata: [DONE]\n\n";
  for (const size_t piece : {size_t(1000), size_t(65536), stream.size()}) {
    SseFilter filter;
    std::string out;
    size_t most_kept = 0;
    for (size_t i = 0; i < stream.size(); i += piece) {
      const size_t before = out.size(), given = std::min(stream.size(), i + piece);
      filter.feed(std::string_view(stream).substr(i, piece), out);
      most_kept = std::max(most_kept, given - std::min(given, out.size()));
      if (out.size() > before && given < role_chunk(0).size() + large.size()) {
        EXPECT_TRUE(filter.amid_event());
      }
    }
    EXPECT_TRUE(out == role_chunk(0) + large + "data: {\"b\":2}\n\n") << piece;
    EXPECT_TRUE(filter.done());
    EXPECT_FALSE(filter.amid_event());
    EXPECT_EQ(filter.num_events(), 3);
    if (piece < stream.size()) {
      EXPECT_LE(most_kept, SseFilter::kMaxWholeEvent + 2 * piece + 100);
    }
  }
}

TEST(SseFilter, AnAnswerOfOneEvent) {
  SseFilter filter;
  std::string out;
  filter.feed("data: {\"a\":1}\n\ndata: [DONE]\n\n", out);
  EXPECT_EQ(out, "data: {\"a\":1}\n\n");
  EXPECT_EQ(filter.num_events(), 1);
}

TEST(SseFilter, KnowsAnErrorEvent) {
  SseFilter filter;
  std::string out;
  filter.feed("data: {\"a\":1}\n\ndata: {\"b\":1}\n\ndata: {\"error\":{\"message\":\"x\"}}\n\n", out);
  EXPECT_EQ(filter.error(), "{\"error\":{\"message\":\"x\"}}");
  EXPECT_EQ(out, "data: {\"a\":1}\n\ndata: {\"b\":1}\n\n");
}

TEST(SseFilter, NothingAfterTheEndCounts) {
  SseFilter filter;
  std::string out;
  filter.feed("data: [DONE]\n\ndata: {\"evil\":1}\n\n", out);
  filter.feed("data: {\"evil\":1}\n\n", out);
  EXPECT_EQ(out, "");
}

TEST(SseFilter, WhatIsNoEventIsBounded) {
  for (const char* begin : {"x", ": moectl ", "data: {\"error\":"}) {
    SseFilter filter;
    std::string out;
    filter.feed(begin, out);
    const std::string piece(64 << 10, 'x');
    for (int i = 0; i < 1000 && !filter.nonsense(); ++i) filter.feed(piece, out);
    EXPECT_TRUE(filter.nonsense());
    EXPECT_EQ(out, "");
  }
}

}  // namespace
}  // namespace moectl::router
