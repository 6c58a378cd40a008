// Which headers of a request a worker trusts, and the stages of its timeline.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/api/cluster.h"
#include "core/base/error.h"
#include "core/serving/request_context.h"
#include "core/serving/request_record.h"

namespace moectl {
namespace {

using ::testing::ElementsAre;
using namespace std::chrono_literals;

constexpr const char* kSecret = "0123456789abcdef0123456789abcdef";
constexpr int64_t kNowMs = 1'700'000'000'000;

const Now& now() {
  static const Now now{Clock::now(), kNowMs};
  return now;
}

http::Request routed(const api::ClusterHeaders& headers) {
  http::Request request{.method = "POST", .path = "/v1/completions", .body = "{}", .id = "from-the-client"};
  request.headers = api::sign_cluster_headers(headers, request.body, kSecret, kNowMs);
  return request;
}

TEST(RequestContext, WithoutARouter) {
  const http::Request request{.body = "{}", .id = "from-the-client"};
  const RequestContext context = read_context(request, "", now());
  EXPECT_EQ(context.id, "from-the-client");
  EXPECT_FALSE(context.from_router);
  EXPECT_FALSE(context.debug);
  EXPECT_TRUE(context.prefill_workers.empty());
  EXPECT_FALSE(context.deadline_passed(Clock::time_point::max()));
}

TEST(RequestContext, ClientsAreKeysElseConnections) {
  http::Request request{.headers = {{"authorization", "Bearer a key"}}, .body = "{}", .peer = "127.0.0.1:5000"};
  EXPECT_EQ(read_context(request, "", now()).client, "connection 127.0.0.1:5000");
  const std::string with_key = read_context(request, "", now(), true).client;
  EXPECT_EQ(with_key.find("a key"), std::string::npos);
  request.headers = {{"authorization", "a key"}};
  request.peer = "127.0.0.1:5001";
  EXPECT_EQ(read_context(request, "", now(), true).client, with_key);
  request.headers = {{"authorization", "Bearer another"}};
  EXPECT_NE(read_context(request, "", now(), true).client, with_key);

  http::Request from_router = routed({.request_id = "r", .client = "abc"});
  EXPECT_EQ(read_context(from_router, kSecret, now(), true).client, "router abc");
  from_router = routed({.request_id = "r"});
  from_router.peer = "10.0.0.1:7";
  EXPECT_EQ(read_context(from_router, kSecret, now(), true).client, "connection 10.0.0.1:7");
}

TEST(RequestContext, TheRoutersWordCountsWhenItIsSigned) {
  http::Request request = routed({"router.7", 2, kNowMs + 1500, {"10.0.0.1:9100", "10.0.0.2:9100"}});
  request.headers.emplace_back("x-moectl-debug", "1");
  const RequestContext context = read_context(request, kSecret, now());
  EXPECT_EQ(context.id, "router.7");
  EXPECT_EQ(context.attempt, 2);
  EXPECT_TRUE(context.from_router);
  EXPECT_TRUE(context.debug);
  EXPECT_THAT(context.prefill_workers, ElementsAre("10.0.0.1:9100", "10.0.0.2:9100"));
  ASSERT_TRUE(context.deadline);
  EXPECT_EQ(*context.deadline - now().steady, 1500ms);
  EXPECT_FALSE(context.deadline_passed(now().steady + 1499ms));
  EXPECT_TRUE(context.deadline_passed(now().steady + 1500ms));
}

TEST(RequestContext, DeadlinesInThePastAndFarAway) {
  EXPECT_TRUE(read_context(routed({"r", 1, 1, {}}), kSecret, now()).deadline_passed(now().steady));
  const auto far = read_context(routed({"r", 1, INT64_MAX, {}}), kSecret, now());
  EXPECT_FALSE(far.deadline_passed(now().steady + 24h));
  EXPECT_FALSE(read_context(routed({"r", 1, 0, {}}), kSecret, now()).deadline);
}

TEST(RequestContext, ForgedHeadersAreRefused) {
  http::Request request = routed({"r", 1, 0, {"10.0.0.1:9100"}});
  EXPECT_THROW(read_context(request, "", now()), Error) << "no secret, no router";
  EXPECT_THROW(read_context(request, "another secret of some length", now()), Error);
  request.body = "{ }";
  EXPECT_THROW(read_context(request, kSecret, now()), Error);
}

TEST(RequestContext, TraceIds) {
  const std::string id = "4bf92f3577b34da6a3ce929d0e0e4736";
  EXPECT_EQ(trace_id_of("00-" + id + "-00f067aa0ba902b7-01"), id);
  EXPECT_EQ(trace_id_of("cc-" + id + "-00f067aa0ba902b7-01-what-the-future-adds"), id);
  const std::vector<std::string> not_one = {"",
                                            "00",
                                            "00-" + id,
                                            "00-" + id + "-00f067aa0ba902b7-0",
                                            "00-" + id + "-00f067aa0ba902b7-01x",
                                            "00-" + std::string(32, '0') + "-00f067aa0ba902b7-01",
                                            "00-4BF92F3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                                            "00-" + std::string(32, '\n') + "-00f067aa0ba902b7-01"};
  for (const std::string& bad : not_one) EXPECT_EQ(trace_id_of(bad), "") << bad;
}

// Stages follow each other without gaps, whatever the measurements of two machines say.
void expect_in_order(const std::vector<api::Stage>& stages) {
  for (const api::Stage& stage : stages) {
    EXPECT_GE(stage.start_ms, 0) << stage.name;
    EXPECT_GE(stage.duration_ms, 0) << stage.name;
  }
  for (size_t i = 1; i < stages.size(); ++i) EXPECT_GE(stages[i].start_ms, stages[i - 1].start_ms) << stages[i].name;
}

TEST(Stages, OfAPromptComputedHere) {
  const auto t = Clock::time_point{} + 1h;
  const PrefillStats stats{.local_reason = "short prompt", .queue_seconds = 0.010};
  const auto stages = stages_of({t, t + 2ms, t + 30ms, t + 130ms}, stats, 11);
  ASSERT_EQ(stages.size(), 4u);
  expect_in_order(stages);
  EXPECT_EQ(stages[2].name, "prefill");
  EXPECT_EQ(stages[2].detail, "here: short prompt");
  EXPECT_NEAR(stages[2].start_ms, 12, 1e-6);
  EXPECT_NEAR(stages[2].duration_ms, 18, 1e-6);
  EXPECT_EQ(stages[3].detail, "11 tokens, 100.0 a second");
}

TEST(Stages, OfAPromptComputedElsewhere) {
  const auto t = Clock::time_point{} + 1h;
  const PrefillStats stats{.worker = "10.0.0.1:9100",
                           .kv_bytes = 2'000'000,
                           .queue_seconds = 0.001,
                           .remote_queue_seconds = 0.002,
                           .remote_compute_seconds = 0.050,
                           .transfer_seconds = 0.040};
  const auto stages = stages_of({t, t + 1ms, t + 60ms, t + 100ms}, stats, 5);
  ASSERT_EQ(stages.size(), 7u);
  EXPECT_EQ(stages[2].name, "prefill.queue");
  EXPECT_EQ(stages[4].name, "kv.transfer");
  EXPECT_EQ(stages[4].detail, "2.00 MB, 0.05 GB/s");
  expect_in_order(stages);
}

TEST(Stages, OfMeasurementsThatContradictEachOther) {
  const auto t = Clock::time_point{} + 1h;
  PrefillStats stats{
      .worker = "10.0.0.1:9100", .queue_seconds = 9, .remote_compute_seconds = 9, .transfer_seconds = 90};
  expect_in_order(stages_of({t, t + 1ms, t + 2ms, t + 3ms}, stats, 5));
  stats.worker = "";
  expect_in_order(stages_of({t, t + 1ms, t + 2ms, t + 3ms}, stats, 5));
  expect_in_order(stages_of({t, t, t, t}, {}, 0));
}

}  // namespace
}  // namespace moectl
