// The dispatcher and what it is made of, with a time that the tests move: no socket, no thread, no wait.
#include "router/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/error.h"
#include "router/prefix_index.h"
#include "router/quarantine.h"

namespace moectl::router {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const TimePoint kStart = TimePoint{} + std::chrono::hours(1);

ProbeResult ready(Role role, std::string model = "demo", std::string hash = "h1", std::string kv_format = "f32-1",
                  std::string exactness = "e1") {
  ProbeResult probe;
  probe.ok = true;
  probe.report.role = name_of(role);
  probe.report.state = "ready";
  probe.report.model = std::move(model);
  probe.report.model_hash = std::move(hash);
  probe.report.kv_format = std::move(kv_format);
  probe.report.exactness = std::move(exactness);
  return probe;
}
ProbeResult prefill_at(std::string endpoint, std::string hash = "h1", std::string kv_format = "f32-1",
                       std::string exactness = "e1") {
  ProbeResult probe = ready(Role::kPrefill, "demo", std::move(hash), std::move(kv_format), std::move(exactness));
  probe.report.kv_endpoint = std::move(endpoint);
  return probe;
}
ProbeResult failed(std::string error, bool refused = false) {
  ProbeResult probe;
  probe.error = std::move(error);
  probe.refused = refused;
  return probe;
}

class DispatcherTest : public testing::Test {
 protected:
  // Workers 1..d are decode, the rest prefill; all ready.
  void start(int num_decode, int num_prefill, DispatcherOptions options = {}) {
    dispatcher = std::make_unique<Dispatcher>(options);
    std::vector<WorkerAddress> addresses;
    for (int i = 1; i <= num_decode; ++i) addresses.push_back({Role::kDecode, fmt::format("http://d{}", i)});
    for (int i = 1; i <= num_prefill; ++i) addresses.push_back({Role::kPrefill, fmt::format("http://p{}", i)});
    dispatcher->set_workers(addresses, now);
    for (int i = 1; i <= num_decode; ++i) dispatcher->on_probe(i, ready(Role::kDecode), now);
    for (int i = 1; i <= num_prefill; ++i)
      dispatcher->on_probe(num_decode + i, prefill_at(fmt::format("p{}:1", i)), now);
  }
  // Submits and expects a decision at once.
  RouteResult submit(RouteRequest request = {}) {
    auto result = dispatcher->submit(
        std::move(request), [](RouteResult) { ADD_FAILURE() << "decided later"; }, now);
    if (auto* assignment = std::get_if<Assignment>(&result)) return *assignment;
    if (auto* refusal = std::get_if<RouteRefusal>(&result)) return *refusal;
    ADD_FAILURE() << "it waits";
    return RouteRefusal{};
  }
  Assignment assigned(RouteRequest request = {}) {
    RouteResult result = submit(std::move(request));
    if (auto* refusal = std::get_if<RouteRefusal>(&result)) ADD_FAILURE() << refusal->message;
    return std::holds_alternative<Assignment>(result) ? std::get<Assignment>(result) : Assignment{};
  }
  RouteRefusal refused(RouteRequest request = {}) {
    RouteResult result = submit(std::move(request));
    EXPECT_TRUE(std::holds_alternative<RouteRefusal>(result));
    return std::holds_alternative<RouteRefusal>(result) ? std::get<RouteRefusal>(result) : RouteRefusal{};
  }
  // Submits and expects to wait; the decision appears in `decisions` under `name`.
  Ticket wait(const std::string& name, RouteRequest request = {}) {
    auto result = dispatcher->submit(
        std::move(request),
        [this, name](RouteResult r) {
          const auto* refusal = std::get_if<RouteRefusal>(&r);
          decisions.push_back(name + (refusal ? ": " + refusal->message : ""));
          if (auto* assignment = std::get_if<Assignment>(&r)) granted.push_back(*assignment);
        },
        now);
    EXPECT_TRUE(std::holds_alternative<Ticket>(result));
    return std::holds_alternative<Ticket>(result) ? std::get<Ticket>(result) : 0;
  }
  WorkerView view(int id) {
    for (const WorkerView& w : dispatcher->view(now))
      if (w.id == id) return w;
    ADD_FAILURE() << "no worker " << id;
    return {};
  }

  TimePoint now = kStart;
  std::unique_ptr<Dispatcher> dispatcher;
  std::vector<std::string> decisions;
  std::vector<Assignment> granted;
};

// ------------------------------------------------------------------------------------------------ states

TEST_F(DispatcherTest, NothingIsReadyBeforeItsFirstProbe) {
  Dispatcher fresh({});
  fresh.set_workers({{Role::kDecode, "http://d1"}}, now);
  EXPECT_EQ(fresh.num_ready(Role::kDecode, now), 0);
  auto result = fresh.submit(
      {}, [](RouteResult) {}, now);
  ASSERT_TRUE(std::holds_alternative<RouteRefusal>(result));
  EXPECT_EQ(std::get<RouteRefusal>(result).kind, RefusalKind::kNoWorker);
  EXPECT_THAT(std::get<RouteRefusal>(result).message, HasSubstr("http://d1 is unknown: not probed yet"));
}

TEST_F(DispatcherTest, StatesFollowTheProbes) {
  start(1, 0);
  EXPECT_THAT(dispatcher->on_probe(1, failed("no answer"), now), IsEmpty());  // one is forgiven
  EXPECT_EQ(view(1).state, WorkerState::kReady);
  EXPECT_THAT(dispatcher->on_probe(1, failed("no answer"), now),
              ElementsAre("decode worker http://d1 is unhealthy: no answer"));
  EXPECT_EQ(view(1).state, WorkerState::kUnhealthy);
  EXPECT_THAT(dispatcher->on_probe(1, ready(Role::kDecode), now), ElementsAre("decode worker http://d1 is ready"));
  dispatcher->on_probe(1, failed("cannot connect: refused", true), now);  // believed at once
  EXPECT_EQ(view(1).state, WorkerState::kUnhealthy);
  ProbeResult draining = ready(Role::kDecode);
  draining.report.state = "draining";
  dispatcher->on_probe(1, draining, now);
  EXPECT_EQ(view(1).state, WorkerState::kDraining);
  EXPECT_EQ(refused().kind, RefusalKind::kNoWorker);
  ProbeResult loading = ready(Role::kDecode);
  loading.report.state = "loading";
  dispatcher->on_probe(1, loading, now);
  EXPECT_EQ(view(1).state, WorkerState::kUnknown);
  ProbeResult broken = ready(Role::kDecode);
  broken.report.state = "failed";
  dispatcher->on_probe(1, broken, now);
  EXPECT_EQ(view(1).state, WorkerState::kUnhealthy);
}

TEST_F(DispatcherTest, WorkerOfTheOtherRoleTakesNothing) {
  start(1, 0);
  dispatcher->on_probe(1, ready(Role::kPrefill), now);
  EXPECT_THAT(refused().message, HasSubstr("it is a prefill worker and was given as --decode"));
}

TEST_F(DispatcherTest, RefusedRequestMakesAWorkerUnhealthyUntilTheNextProbe) {
  start(1, 0);
  Assignment a = assigned();
  dispatcher->finished(a, Outcome::kFailure, "connection refused", now);
  EXPECT_EQ(refused().kind, RefusalKind::kNoWorker);
  dispatcher->on_probe(1, ready(Role::kDecode), now);
  assigned();
}

TEST_F(DispatcherTest, ReloadKeepsAddsAndRemoves) {
  start(2, 1);
  Assignment running = assigned();
  dispatcher->set_workers({{Role::kDecode, "http://d2"}, {Role::kDecode, "http://d3"}}, now);
  EXPECT_FALSE(dispatcher->has_worker(1));
  EXPECT_TRUE(dispatcher->has_worker(2));
  EXPECT_EQ(view(2).state, WorkerState::kReady);
  EXPECT_EQ(dispatcher->workers().back().second.url, "http://d3");
  EXPECT_EQ(dispatcher->workers().back().first, 4);           // ids are not used again
  dispatcher->finished(running, Outcome::kSuccess, "", now);  // of a worker that is gone
  EXPECT_EQ(assigned().decode_url, "http://d2");
}

// ------------------------------------------------------------------------------------------------ choosing

TEST_F(DispatcherTest, DecodeByLeastTokensWithReasons) {
  start(2, 0);
  RouteRequest request;
  request.tokens = 100;
  EXPECT_EQ(assigned(request).decode.id, 1);
  const Assignment second = assigned(request);
  EXPECT_EQ(second.decode.id, 2);
  ASSERT_EQ(second.decode_candidates.size(), 2u);
  EXPECT_FALSE(second.decode_candidates[0].chosen);
  EXPECT_EQ(second.decode_candidates[0].load, 100);
  EXPECT_TRUE(second.decode_candidates[1].chosen);
  EXPECT_EQ(second.decode_candidates[1].why, "least tokens: 0");
}

TEST_F(DispatcherTest, LoadIsTheReportAndWhatWasSentSince) {
  start(1, 0);
  RouteRequest request;
  request.tokens = 10;
  Assignment first = assigned(request);
  ProbeResult probe = ready(Role::kDecode);
  probe.report.num_running = 3;  // ours and two of another router
  probe.report.num_tokens_in_flight = 500;
  dispatcher->on_probe(1, probe, now);
  EXPECT_EQ(view(1).load_requests, 3);
  Assignment second = assigned(request);
  EXPECT_EQ(view(1).load_requests, 4);
  EXPECT_EQ(view(1).load_tokens, 510);
  dispatcher->finished(first, Outcome::kSuccess, "", now);
  dispatcher->finished(second, Outcome::kSuccess, "", now);
  EXPECT_EQ(view(1).in_flight, 0);
  EXPECT_EQ(view(1).load_requests, 2);
  EXPECT_NEAR(view(1).load_tokens, 500. * 2 / 3, 1e-9);
  dispatcher->finished(second, Outcome::kSuccess, "", now);  // given back once only
  EXPECT_EQ(view(1).in_flight, 0);
}

TEST_F(DispatcherTest, LoadThatWasOursIsGoneWhenItEnds) {
  start(1, 0);
  RouteRequest request;
  request.tokens = 10;
  Assignment running = assigned(request);
  ProbeResult probe = ready(Role::kDecode);
  probe.report.num_running = 1;
  probe.report.num_tokens_in_flight = 500;  // more than was estimated
  dispatcher->on_probe(1, probe, now);
  EXPECT_EQ(view(1).load_tokens, 500);
  dispatcher->finished(running, Outcome::kSuccess, "", now);
  EXPECT_EQ(view(1).load_tokens, 0);
  EXPECT_EQ(view(1).load_requests, 0);
}

TEST_F(DispatcherTest, UpToThreePrefillWorkersBestFirst) {
  start(1, 5);
  RouteRequest request;
  request.prompt = prompt_blocks("m", std::string(2000, 'x'));
  const Assignment first = assigned(request);
  ASSERT_EQ(first.prefill_endpoints.size(), 3u);
  EXPECT_EQ(std::set<std::string>(first.prefill_endpoints.begin(), first.prefill_endpoints.end()).size(), 3u);
  Assignment again = assigned(request);
  dispatcher->first_text(again, now);
  EXPECT_EQ(first.prefill_candidates.size(), 5u);
}

TEST_F(DispatcherTest, PrefillGoesWhereThePrefixIsOnceItIsFree) {
  start(1, 3);
  RouteRequest request;
  request.tokens = 100;
  request.prompt = prompt_blocks("m", std::string(2000, 'x'));
  Assignment first = assigned(request);
  const std::string endpoint = first.prefill_endpoints[0];
  EXPECT_NE(assigned(request).prefill_endpoints[0], endpoint);  // it computes that very prompt: too much load
  dispatcher->first_text(first, now);
  const Assignment third = assigned(request);
  EXPECT_EQ(third.prefill_endpoints[0], endpoint);
}

TEST_F(DispatcherTest, NoPrefillWorkerIsNoObstacle) {
  start(1, 1);
  dispatcher->on_probe(2, failed("gone", true), now);
  const Assignment a = assigned();
  EXPECT_THAT(a.prefill_endpoints, IsEmpty());
  EXPECT_EQ(a.prefill_candidates[0].why, "unhealthy: gone");
}

TEST_F(DispatcherTest, PairsThatDoNotFitAreLoggedOnceAndNotUsed) {
  start(1, 1);
  EXPECT_THAT(
      dispatcher->on_probe(2, prefill_at("p:1", "h2"), now),
      ElementsAre("prefill worker http://p1 cannot serve decode worker http://d1: another model: h2 is not h1"));
  EXPECT_THAT(dispatcher->on_probe(2, prefill_at("p:1", "h2"), now), IsEmpty());
  EXPECT_THAT(assigned().prefill_endpoints, IsEmpty());
  EXPECT_THAT(dispatcher->on_probe(2, prefill_at("p:1", "h1", "bf16-1"), now),
              ElementsAre("prefill worker http://p1 cannot serve decode worker http://d1: another KV format: bf16-1 is "
                          "not f32-1"));
  EXPECT_EQ(assigned().prefill_candidates[0].why, "another KV format: bf16-1 is not f32-1");
  dispatcher->on_probe(2, prefill_at("p:1"), now);
  EXPECT_THAT(assigned().prefill_endpoints, ElementsAre("p:1"));
  EXPECT_EQ(dispatcher->on_probe(2, prefill_at("p:1", "h3"), now).size(), 1u);
}

// Pages fit, bits differ (another TP size, another device): it serves when no exact one does, and both logs say so.
TEST_F(DispatcherTest, PrefillWorkersThatAreNotExactComeLast) {
  start(1, 2);
  EXPECT_THAT(dispatcher->on_probe(2, prefill_at("p:1", "h1", "f32-1", "e2"), now),
              ElementsAre("prefill worker http://p1 serves decode worker http://d1, but not to the bit: it computes as "
                          "e2, not as e1"));
  dispatcher->on_probe(3, prefill_at("p:2"), now);
  EXPECT_THAT(dispatcher->on_probe(2, prefill_at("p:1", "h1", "f32-1", "e2"), now), IsEmpty());
  for (int i = 0; i < 3; ++i) EXPECT_THAT(assigned().prefill_endpoints, ElementsAre("p:2", "p:1"));
  dispatcher->on_probe(3, failed("gone", true), now);
  const Assignment a = assigned();
  EXPECT_THAT(a.prefill_endpoints, ElementsAre("p:1"));
  EXPECT_THAT(a.prefill_candidates[0].why, HasSubstr("not exact to the bit with the decode worker"));
}

TEST_F(DispatcherTest, UnknownModel) {
  start(1, 0);
  RouteRequest request;
  request.model = "gpt-17";
  const RouteRefusal refusal = refused(request);
  EXPECT_EQ(refusal.kind, RefusalKind::kUnknownModel);
  EXPECT_EQ(refusal.message, "demo");
  request.model = "demo";
  assigned(request);
}

TEST_F(DispatcherTest, TriedWorkersAreNotTriedAgain) {
  start(2, 0);
  RouteRequest request;
  request.tried = {{1, 1}};
  EXPECT_EQ(assigned(request).decode.id, 2);
  request.tried = {{1, 1}, {2, 1}};
  EXPECT_THAT(refused(request).message, HasSubstr("failed this request already"));
}

// ------------------------------------------------------------------------------------------------ circuit breaker

TEST_F(DispatcherTest, BreakerOpensHalfOpensAndCloses) {
  DispatcherOptions options;
  options.breaker = {3, 2, seconds(60)};
  start(1, 0, options);
  for (int i = 0; i < 3; ++i) {
    Assignment a = assigned();
    dispatcher->finished(a, Outcome::kFailure, "", now);
  }
  EXPECT_THAT(refused().message, HasSubstr("circuit breaker"));
  EXPECT_EQ(dispatcher->num_ready(Role::kDecode, now), 0);
  now += seconds(59);
  EXPECT_THAT(refused().message, HasSubstr("circuit breaker"));
  now += seconds(1);
  EXPECT_EQ(dispatcher->num_ready(Role::kDecode, now), 1);
  Assignment trial = assigned();
  EXPECT_THAT(refused().message, HasSubstr("circuit breaker"));  // one at a time
  dispatcher->finished(trial, Outcome::kSuccess, "", now);
  trial = assigned();
  dispatcher->finished(trial, Outcome::kFailure, "", now);  // open again
  EXPECT_THAT(refused().message, HasSubstr("circuit breaker"));
  now += seconds(60);
  for (int i = 0; i < 2; ++i) {
    trial = assigned();
    dispatcher->finished(trial, Outcome::kSuccess, "", now);
  }
  assigned();
  assigned();  // closed: several at a time
}

TEST_F(DispatcherTest, OnlyFailuresInARowOpenTheBreaker) {
  DispatcherOptions options;
  options.breaker = {2, 1, seconds(60)};
  start(1, 0, options);
  for (const Outcome outcome : {Outcome::kFailure, Outcome::kSuccess, Outcome::kFailure, Outcome::kNeutral}) {
    Assignment a = assigned();
    dispatcher->finished(a, outcome, "", now);
  }
  Assignment a = assigned();
  dispatcher->finished(a, Outcome::kFailure, "", now);
  refused();
}

// ------------------------------------------------------------------------------------------------ queue

class QueueTest : public DispatcherTest {
 protected:
  void SetUp() override {
    DispatcherOptions options;
    options.max_requests_per_worker = 1;
    options.max_queue_size = 3;
    start(1, 0, options);
    running = assigned();
  }
  Assignment running;
};

TEST_F(QueueTest, ServedInOrderWhenCapacityReturns) {
  wait("a");
  wait("b");
  EXPECT_EQ(dispatcher->num_waiting(), 2u);
  dispatcher->finished(running, Outcome::kSuccess, "", now);
  EXPECT_THAT(decisions, ElementsAre("a"));
  dispatcher->finished(granted[0], Outcome::kSuccess, "", now);
  EXPECT_THAT(decisions, ElementsAre("a", "b"));
  EXPECT_EQ(dispatcher->num_waiting(), 0u);
}

TEST_F(QueueTest, NoRequestOvertakesThoseOfItsClient) {
  wait("a");
  dispatcher->set_workers({{Role::kDecode, "http://d1"}, {Role::kDecode, "http://d2"}}, now);
  wait("b");
  dispatcher->on_probe(2, ready(Role::kDecode), now);  // capacity for one
  EXPECT_THAT(decisions, ElementsAre("a"));
  wait("c");
  dispatcher->finished(running, Outcome::kSuccess, "", now);
  EXPECT_THAT(decisions, ElementsAre("a", "b"));
}

TEST_F(QueueTest, FullQueueRefuses) {
  for (const char* name : {"a", "b", "c"}) wait(name);
  const RouteRefusal refusal = refused();
  EXPECT_EQ(refusal.kind, RefusalKind::kQueueFull);
  EXPECT_THAT(refusal.message, HasSubstr("3 requests are waiting"));
}

TEST_F(QueueTest, WithdrawnRequestsAreSkipped) {
  const Ticket a = wait("a");
  wait("b");
  EXPECT_TRUE(dispatcher->withdraw(a));
  EXPECT_FALSE(dispatcher->withdraw(a));
  dispatcher->finished(running, Outcome::kSuccess, "", now);
  EXPECT_THAT(decisions, ElementsAre("b"));
}

TEST_F(QueueTest, WhenTheLastWorkerGoesTheWaitingAreRefused) {
  wait("a");
  wait("b");
  dispatcher->on_probe(1, failed("gone", true), now);
  EXPECT_THAT(decisions, ElementsAre("a: http://d1 is unhealthy: gone", "b: http://d1 is unhealthy: gone"));
}

TEST_F(QueueTest, OneThatLostItsWorkerDoesNotQueueAgainWhenAnotherIsFree) {
  wait("a");
  RouteRequest retry;
  retry.tried = {{7, 1}};
  wait("retry, nobody is free", retry);
  EXPECT_TRUE(decisions.empty());
}

TEST_F(QueueTest, ClientsTakeTurns) {
  const auto of = [](const char* client) {
    RouteRequest request;
    request.client = client;
    return request;
  };
  wait("a1", of("a"));
  wait("a2", of("a"));
  wait("b1", of("b"));
  dispatcher->finished(running, Outcome::kSuccess, "", now);
  for (size_t i = 0; i < 2; ++i) dispatcher->finished(granted[i], Outcome::kSuccess, "", now);
  EXPECT_THAT(decisions, ElementsAre("a1", "b1", "a2"));
}

TEST_F(QueueTest, WhoHasMostInAFullQueueGivesWay) {
  const auto of = [](const char* client) {
    RouteRequest request;
    request.client = client;
    return request;
  };
  for (const char* name : {"a1", "a2", "a3"}) wait(name, of("a"));
  EXPECT_EQ(refused(of("a")).kind, RefusalKind::kQueueFull);
  wait("b1", of("b"));
  EXPECT_THAT(decisions, ElementsAre(HasSubstr("a3: this client has most")));
  EXPECT_EQ(refused(of("b")).kind, RefusalKind::kQueueFull);  // more than its share of 3 / 2
  wait("c1", of("c"));
  EXPECT_THAT(decisions, ElementsAre(HasSubstr("a3:"), HasSubstr("a2:")));
  EXPECT_EQ(dispatcher->num_waiting(), 3u);
}

TEST_F(DispatcherTest, AClientLeavesRoomForOthers) {
  DispatcherOptions options;
  options.max_requests_per_worker = 256;
  start(1, 0, options);
  const auto of = [](const char* client, int choices) {
    RouteRequest request;
    request.client = client;
    request.choices = choices;
    return request;
  };
  assigned(of("a", 128));
  wait("a2", of("a", 128));  // 256 of 256 would leave nothing
  wait("b", of("b", 128));
  for (int i = 0; i < 50; ++i) assigned(of("c", 1));  // past those who wait for more room
  assigned(of("d", 1));
  EXPECT_EQ(view(1).in_flight, 179);
}

TEST_F(QueueTest, ChoicesCount) {
  RouteRequest many;
  many.choices = 2;
  wait("two", many);
  EXPECT_EQ(refused(many).kind, RefusalKind::kQueueFull);  // 2 + 2 > 3
  wait("one");
  dispatcher->finished(running, Outcome::kSuccess, "", now);
  EXPECT_THAT(decisions, ElementsAre("two"));  // more than a worker may have, but it has nothing else
  EXPECT_EQ(view(1).in_flight, 2);
  dispatcher->finished(granted[0], Outcome::kSuccess, "", now);
  EXPECT_THAT(decisions, ElementsAre("two", "one"));
  EXPECT_EQ(view(1).in_flight, 1);
}

// ------------------------------------------------------------------------------------------------ lives of workers

TEST_F(DispatcherTest, TheEndOfAWorkerCountsOnce) {
  DispatcherOptions options;
  options.breaker = {2, 1, seconds(60)};
  start(1, 0, options);
  std::vector<Assignment> running;
  for (int i = 0; i < 12; ++i) running.push_back(assigned());
  for (Assignment& a : running) EXPECT_FALSE(dispatcher->finished(a, Outcome::kEnded, "it broke off", now));
  EXPECT_THAT(refused().message, HasSubstr("unhealthy: it broke off"));
  dispatcher->on_probe(1, ready(Role::kDecode), now);
  Assignment next = assigned();  // one failure of two
  EXPECT_TRUE(dispatcher->finished(next, Outcome::kEnded, "", now));
  EXPECT_THAT(refused().message, HasSubstr("circuit breaker"));
}

TEST_F(DispatcherTest, ARestartedWorkerStartsAnew) {
  DispatcherOptions options;
  options.breaker = {1, 3, seconds(60)};
  start(1, 0, options);
  ProbeResult first = ready(Role::kDecode), second = first;
  first.report.instance_id = "1";
  second.report.instance_id = "2";
  dispatcher->on_probe(1, first, now);
  Assignment late = assigned();
  Assignment a = assigned();
  dispatcher->finished(a, Outcome::kFailure, "", now);
  EXPECT_THAT(refused().message, HasSubstr("circuit breaker"));
  dispatcher->on_probe(1, first, now);
  EXPECT_THAT(refused().message, HasSubstr("circuit breaker"));
  dispatcher->on_probe(1, second, now);
  assigned();
  dispatcher->finished(late, Outcome::kEnded, "connection refused", now);  // of the process that is gone
  RouteRequest request;
  request.tried = {{1, 1}};  // it failed there, in its former life
  assigned(request);
}

TEST_F(DispatcherTest, RequestsHearOfAnUnhealthyWorker) {
  start(2, 0);
  std::vector<std::string> told;
  Assignment a = assigned(), b = assigned(), c = assigned();
  for (const auto& [name, assignment] : {std::pair("a", &a), std::pair("b", &b), std::pair("c", &c)})
    dispatcher->watch(*assignment,
                      [&told, name = std::string(name)](const std::string& why) { told.push_back(name + " " + why); });
  dispatcher->finished(c, Outcome::kSuccess, "", now);
  ProbeResult ending = ready(Role::kDecode);
  ending.report.state = "failed";
  dispatcher->on_probe(1, ending, now);
  EXPECT_THAT(told, IsEmpty());  // it says more itself
  ProbeResult stalled = ready(Role::kDecode);
  stalled.report.state = "stalled";
  stalled.report.seconds_since_progress = 31;
  dispatcher->on_probe(1, stalled, now);
  EXPECT_THAT(told, ElementsAre("a stalled: nothing computed for 31 s"));
  EXPECT_EQ(b.decode.id, 2);
  RouteRequest rest;
  EXPECT_EQ(assigned(rest).decode.id, 2);
}

TEST_F(DispatcherTest, ProbesGoUnansweredWhileAnswersFlow) {
  start(1, 0);
  Assignment a = assigned();
  ProbeResult probe = failed("no answer");
  probe.started = now;
  a.pulse->last_bytes = (now + seconds(1)).time_since_epoch().count();
  for (int i = 0; i < 5; ++i) dispatcher->on_probe(1, probe, now + seconds(2));
  EXPECT_EQ(view(1).state, WorkerState::kReady);
  probe.started = now + seconds(2);
  for (int i = 0; i < 2; ++i) dispatcher->on_probe(1, probe, now + seconds(4));
  EXPECT_EQ(view(1).state, WorkerState::kUnhealthy);
}

TEST_F(DispatcherTest, WhatAWorkerDoesNotAcceptMakesItUnhealthy) {
  start(1, 0);
  ProbeResult probe = ready(Role::kDecode);
  probe.report.cluster_problem = "other secret";
  EXPECT_THAT(dispatcher->on_probe(1, probe, now), ElementsAre("decode worker http://d1 is unhealthy: other secret"));
}

TEST_F(DispatcherTest, ARequestThatMustBeAloneIs) {
  start(2, 0);
  Assignment one = assigned(), two = assigned();
  RouteRequest alone;
  alone.alone = true;
  wait("alone", alone);
  dispatcher->finished(one, Outcome::kSuccess, "", now);
  EXPECT_THAT(decisions, ElementsAre("alone"));
  EXPECT_EQ(granted[0].decode.id, 1);
  EXPECT_EQ(assigned().decode.id, 2);  // although it has more to do
  dispatcher->first_text(granted[0], now);
  EXPECT_EQ(assigned().decode.id, 1);
}

TEST_F(DispatcherTest, ARequestThatWaitsToBeAloneHoldsUpNoOther) {
  DispatcherOptions options;
  options.max_requests_per_worker = 2;
  start(1, 0, options);
  Assignment one = assigned(), two = assigned();
  RouteRequest alone;
  alone.alone = true;
  alone.client = "x";
  wait("alone", alone);
  wait("other");
  dispatcher->finished(one, Outcome::kSuccess, "", now);
  EXPECT_THAT(decisions, ElementsAre("other"));
}

// ------------------------------------------------------------------------------------------------ quarantine

using Standing = Quarantine::Standing;

TEST(Quarantine, NeedsEvidence) {
  Quarantine quarantine;
  const BlockHash key = Quarantine::key_of("body"), other = Quarantine::key_of("other");
  quarantine.on_worker_ended(key, {1, 1}, false, kStart);
  quarantine.on_worker_ended(key, {1, 1}, false, kStart);  // the same worker, with another request of the same body
  EXPECT_EQ(quarantine.standing(key, kStart), Standing::kClear);
  quarantine.on_worker_ended(key, {2, 1}, false, kStart);
  quarantine.on_worker_ended(key, {1, 2}, false, kStart);
  EXPECT_EQ(quarantine.standing(key, kStart), Standing::kSuspect);  // with neighbors: no proof
  quarantine.on_worker_ended(key, {2, 2}, true, kStart);
  EXPECT_EQ(quarantine.standing(key, kStart), Standing::kQuarantined);
  EXPECT_EQ(quarantine.standing(other, kStart), Standing::kClear);
  EXPECT_EQ(quarantine.standing(key, kStart + seconds(59)), Standing::kQuarantined);
  EXPECT_EQ(quarantine.standing(key, kStart + seconds(60)), Standing::kSuspect);
  quarantine.on_worker_ended(key, {3, 1}, true, kStart + seconds(61));  // one more end is enough
  EXPECT_EQ(quarantine.standing(key, kStart + seconds(61)), Standing::kQuarantined);
}

TEST(Quarantine, AloneTwiceIsEnough) {
  Quarantine quarantine;
  const BlockHash key = Quarantine::key_of("body");
  quarantine.on_worker_ended(key, {1, 1}, true, kStart);
  EXPECT_EQ(quarantine.standing(key, kStart), Standing::kClear);
  quarantine.on_worker_ended(key, {2, 1}, true, kStart);
  EXPECT_EQ(quarantine.standing(key, kStart), Standing::kQuarantined);
}

TEST(Quarantine, WhatHasSucceededNever) {
  Quarantine quarantine;
  const BlockHash key = Quarantine::key_of("health check");
  quarantine.on_success(key);
  for (int i = 0; i < 10; ++i) quarantine.on_worker_ended(key, {i, 1}, true, kStart);
  EXPECT_EQ(quarantine.standing(key, kStart), Standing::kClear);
}

TEST(Quarantine, SizeIsBounded) {
  Quarantine quarantine;
  const BlockHash key = Quarantine::key_of("body");
  for (int i = 0; i < 2; ++i) quarantine.on_worker_ended(key, {i, 1}, true, kStart);
  EXPECT_EQ(quarantine.standing(key, kStart), Standing::kQuarantined);
  for (size_t i = 0; i < Quarantine::kMaxEntries; ++i)
    quarantine.on_worker_ended(Quarantine::key_of(fmt::format("{}", i)), {1, 1}, true, kStart);
  EXPECT_EQ(quarantine.standing(key, kStart), Standing::kClear);
}

}  // namespace
}  // namespace moectl::router
