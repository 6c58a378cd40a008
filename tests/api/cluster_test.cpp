#include "core/api/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/error.h"

namespace moectl::api {
namespace {

using testing::HasSubstr;

constexpr int64_t kNow = 1'760'000'000'000;
constexpr std::string_view kSecret = "a secret of the cluster", kBody = R"({"model":"m"})";

ClusterHeaders some_headers() {
  return {"req-1.a_b", 2, kNow + 5000, {"10.0.0.1:8102", "[::1]:8103", "host-a.local:1"}};
}
HeaderList signed_list() {
  HeaderList list = sign_cluster_headers(some_headers(), kBody, kSecret, kNow);
  list.insert(list.begin(), {"content-type", "application/json"});
  return list;
}
std::string& value_of(HeaderList& list, std::string_view field) {
  const std::string name = std::string(kClusterHeaderPrefix) + std::string(field);
  auto it = std::find_if(list.begin(), list.end(), [&](const auto& h) { return h.first == name; });
  EXPECT_NE(it, list.end()) << name;
  return it->second;
}
// The message of the refusal; it must name a header.
std::string refusal(const HeaderList& list, std::string_view body = kBody, std::string_view secret = kSecret,
                    int64_t now = kNow) {
  try {
    verify_cluster_headers(list, body, secret, now);
  } catch (const Error& e) {
    EXPECT_EQ(int(e.code()), int(Code::kInvalidArgument));
    EXPECT_THAT(e.param(), HasSubstr(std::string(kClusterHeaderPrefix)));
    return e.what();
  }
  return "accepted";
}

TEST(ClusterHeaders, WhatIsSignedComesBack) {
  const auto headers = verify_cluster_headers(signed_list(), kBody, kSecret, kNow + 59'000);
  ASSERT_TRUE(headers);
  EXPECT_EQ(headers->request_id, "req-1.a_b");
  EXPECT_EQ(headers->attempt, 2);
  EXPECT_EQ(headers->deadline_unix_ms, kNow + 5000);
  EXPECT_EQ(headers->prefill, some_headers().prefill);

  ClusterHeaders none{"r", 1, 0, {}};
  const auto back = verify_cluster_headers(sign_cluster_headers(none, "", kSecret, kNow), "", kSecret, kNow);
  ASSERT_TRUE(back);
  EXPECT_TRUE(back->prefill.empty());
}

TEST(ClusterHeaders, AbsentIsNotRefused) {
  EXPECT_EQ(verify_cluster_headers({{"content-type", "application/json"}}, kBody, kSecret, kNow), std::nullopt);
  EXPECT_EQ(verify_cluster_headers({}, kBody, "", kNow), std::nullopt);
}

TEST(ClusterHeaders, EveryFieldIsCovered) {
  for (const char* field : {"request-id", "attempt", "deadline", "prefill", "time"}) {
    HeaderList list = signed_list();
    value_of(list, field) += "1";
    EXPECT_THAT(refusal(list), HasSubstr("signature: does not belong")) << field;
  }
  HeaderList list = signed_list();
  value_of(list, "signature").front() ^= 1;
  EXPECT_THAT(refusal(list), HasSubstr("does not belong"));
  value_of(list, "signature").clear();
  EXPECT_THAT(refusal(list), HasSubstr("does not belong"));
  list = signed_list();
  list.emplace_back("x-moectl-cluster-extra", "1");  // unknown fields are skipped only when they are signed
  EXPECT_THAT(refusal(list), HasSubstr("does not belong"));
}

TEST(ClusterHeaders, OtherBodyOrSecret) {
  EXPECT_THAT(refusal(signed_list(), R"({"model":"n"})"), HasSubstr("does not belong"));
  EXPECT_THAT(refusal(signed_list(), kBody, "another secret of a cluster"), HasSubstr("does not belong"));
}

TEST(ClusterHeaders, NoSecretConfigured) {
  EXPECT_THAT(refusal(signed_list(), kBody, ""), HasSubstr("--cluster-secret-file"));
  EXPECT_THAT(refusal({{"x-moectl-cluster-prefill", "10.0.0.1:1"}}, kBody, ""), HasSubstr("--cluster-secret-file"));
  EXPECT_THROW(sign_cluster_headers(some_headers(), kBody, "", kNow), Error);
}

TEST(ClusterHeaders, MissingOne) {
  for (const char* field : {"version", "request-id", "attempt", "deadline", "prefill", "time", "signature"}) {
    HeaderList list = signed_list();
    const std::string name = std::string(kClusterHeaderPrefix) + field;
    std::erase_if(list, [&](const auto& h) { return h.first == name; });
    EXPECT_EQ(refusal(list), "header " + name + ": is missing");
  }
}

TEST(ClusterHeaders, GivenTwice) {
  HeaderList list = signed_list();
  list.emplace_back("x-moectl-cluster-prefill", "10.6.6.6:1");
  EXPECT_THAT(refusal(list), HasSubstr("given twice"));
}

TEST(ClusterHeaders, TimeFarFromOurs) {
  EXPECT_THAT(refusal(signed_list(), kBody, kSecret, kNow + 60'001), HasSubstr("header x-moectl-cluster-time"));
  EXPECT_THAT(refusal(signed_list(), kBody, kSecret, kNow - 60'001), HasSubstr("header x-moectl-cluster-time"));
}

TEST(ClusterHeaders, SignedButMalformed) {
  const auto signed_with = [](auto change) {
    ClusterHeaders headers = some_headers();
    change(headers);
    return refusal(sign_cluster_headers(headers, kBody, kSecret, kNow));
  };
  EXPECT_THAT(signed_with([](auto& h) { h.attempt = 0; }), HasSubstr("attempt"));
  EXPECT_THAT(signed_with([](auto& h) { h.deadline_unix_ms = -1; }), HasSubstr("deadline"));
  EXPECT_THAT(signed_with([](auto& h) { h.request_id = "a b"; }), HasSubstr("request-id"));
  EXPECT_THAT(signed_with([](auto& h) { h.request_id.assign(129, 'a'); }), HasSubstr("request-id"));
  for (const char* bad : {"", "host", "host:", ":1", "host:0", "host:65536", "ho st:1", "host:1x", "a:1,b:2,c:3"})
    EXPECT_THAT(signed_with([&](auto& h) { h.prefill = {bad, "x:1"}; }), HasSubstr("prefill")) << bad;
}

TEST(TokenComment, IsOneSseComment) {
  EXPECT_EQ(token_comment(1, {5, 17}, 42), ": moectl {\"choice\":1,\"ids\":[5,17],\"pos\":42}\n\n");
  EXPECT_EQ(token_comment(0, {}, 0), ": moectl {\"choice\":0,\"ids\":[],\"pos\":0}\n\n");
}

TEST(Timeline, IsOneAsciiLineWithTheWorkersInside) {
  Timeline inner;
  inner.role = "decode";
  inner.worker = "http://w\n\xc3\xa9";
  inner.prefill_worker = "10.0.0.1:1";
  inner.kv_bytes = 7;
  inner.stages = {{"first_token", 1.23456, 2, "x"}};
  Timeline timeline;
  timeline.role = "router";
  timeline.request_id = "r\xff";
  timeline.decode_candidates = {{"http://w", 0.5, 3, true, "least tokens"}};
  timeline.inner_json = to_json(inner);
  const std::string line = to_json(timeline);
  for (unsigned char c : line) EXPECT_TRUE(c >= 0x20 && c < 0x7f);
  const auto parsed = nlohmann::json::parse(line);
  EXPECT_EQ(parsed["decode_candidates"][0]["cached_blocks"], 3);
  EXPECT_EQ(parsed["inner"]["prefill_worker"], "10.0.0.1:1");
  EXPECT_EQ(parsed["inner"]["worker"], "http://w\n\xc3\xa9");
  EXPECT_EQ(parsed["inner"]["stages"][0]["start_ms"], 1.235);
  timeline.inner_json = std::string(100'000, '[');
  EXPECT_EQ(nlohmann::json::parse(to_json(timeline))["inner"], nullptr);
  timeline.inner_json = "not json";
  EXPECT_EQ(nlohmann::json::parse(to_json(timeline))["inner"], "not json");
}

TEST(LoadReport, ComesBack) {
  const LoadReport report{"prefill", "demo", "ready", "127.0.0.1:8102", "avx512-f32-1", "f32-1", "abc", 1, 2, 3, 4, 5,
                          6,         "0f",   1.5,     "other secret"};
  const LoadReport back = parse_load_report(to_json(report));
  EXPECT_EQ(back.role, "prefill");
  EXPECT_EQ(back.model, "demo");
  EXPECT_EQ(back.state, "ready");
  EXPECT_EQ(back.kv_endpoint, "127.0.0.1:8102");
  EXPECT_EQ(back.exactness, "avx512-f32-1");
  EXPECT_EQ(back.kv_format, "f32-1");
  EXPECT_EQ(back.model_hash, "abc");
  EXPECT_EQ(back.num_running, 1);
  EXPECT_EQ(back.num_waiting, 2);
  EXPECT_EQ(back.num_tokens_in_flight, 3);
  EXPECT_EQ(back.kv_pages_total, 4);
  EXPECT_EQ(back.kv_pages_used, 5);
  EXPECT_EQ(back.max_model_len, 6);
  EXPECT_EQ(back.instance_id, "0f");
  EXPECT_EQ(back.seconds_since_progress, 1.5);
  EXPECT_EQ(back.cluster_problem, "other secret");
}

TEST(LoadReport, UnknownFieldsAreSkipped) {
  EXPECT_EQ(parse_load_report(R"({"role":"decode","model":"m","state":"loading","new":{"a":1}})").state, "loading");
}

TEST(LoadReport, AnythingElseIsRefused) {
  const std::string good = R"("role":"decode","model":"m","state":"ready")";
  for (const std::string& text :
       {std::string(), std::string("[]"), std::string("{"), std::string("{}"), "{" + good + "} x",
        "{" + good + R"(,"num_running":-1})", "{" + good + R"(,"num_running":1.5})",
        "{" + good + R"(,"num_running":"1"})", "{" + good + R"(,"num_running":9223372036854775808})",
        "{" + good + R"(,"num_running":9223372036854775807})", "{" + good + R"(,"seconds_since_progress":-1})",
        "{" + good + R"(,"kv_endpoint":"nowhere"})", "{" + good + R"(,"kv_endpoint":5})",
        std::string(R"({"role":"router","model":"m","state":"ready"})"),
        std::string(R"({"role":"decode","model":"m","state":"fine"})"),
        std::string(R"({"role":"decode","state":"ready"})"),
        "{" + good + R"(,"model_hash":")" + std::string(2000, 'a') + "\"}", std::string(100'000, '['),
        "{" + good + ",\"x\":\"\xff\"}"}) {
    try {
      parse_load_report(text);
      ADD_FAILURE() << text.substr(0, 100);
    } catch (const Error& e) {
      EXPECT_EQ(int(e.code()), int(Code::kBadData)) << text.substr(0, 100);
    }
  }
}

}  // namespace
}  // namespace moectl::api
