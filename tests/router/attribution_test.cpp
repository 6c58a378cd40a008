// Who is to blame, as clients see it: a request's own error, workers that end, hang, or answer nonsense. The rules
// stand in router/verdict.h and docs/faults.md.
#include "tests/router/router_fixture.h"

namespace moectl::router {
namespace {

std::string error_answer(const api::ApiError& error) {
  const std::string body = api::error_body(error);
  return fmt::format(
      "HTTP/1.1 {} X\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
      error.status, body.size(), body);
}

TEST_F(RouterTest, ARequestsOwnErrorIsItsOwn) {
  api::ApiError error = api::from_status(400, "repetition_penalty is too small");
  error.param = "repetition_penalty";
  const std::vector<RawWorker::Behaviour> refusals = {
      [&](RawConnection& c, const std::string&, int) { c.send(error_answer(error)); },
      [&](RawConnection& c, const std::string&, int) {
        c.start_stream();
        c.chunk(kRole + ("data: " + api::error_body(error)) + "\n\n");
      }};
  for (const RawWorker::Behaviour& refusal : refusals) {
    RawWorker a(refusal), b(refusal);
    options.decode_urls = {a.url(), b.url()};
    options.dispatcher.breaker.failure_threshold = 1;
    start(2);
    for (int i = 0; i < 10; ++i) {
      const Answer answer = post(kStreamed);
      EXPECT_EQ(answer.status, 400);
      EXPECT_EQ(answer.error("param"), "repetition_penalty");
    }
    EXPECT_EQ(a.num_posts() + b.num_posts(), 10);
    EXPECT_THAT(ops("/workers").body, Not(HasSubstr("\"breaker_open\":true")));
    router.reset();
  }
}

TEST_F(RouterTest, AnInternalErrorIsTheRequestsWhenTwoWorkersSaySo) {
  const auto fails = [](RawConnection& c, const std::string&, int) {
    c.send(error_answer(api::from_status(500, "?")));
  };
  RawWorker a(fails), b(fails), c(fails);
  options.decode_urls = {a.url(), b.url(), c.url()};
  options.dispatcher.breaker.failure_threshold = 1;
  start(3);
  for (int i = 1; i <= 5; ++i) {
    EXPECT_EQ(post(kChat).status, 500);
    EXPECT_EQ(a.num_posts() + b.num_posts() + c.num_posts(), 2 * i);
  }
  EXPECT_THAT(ops("/workers").body, Not(HasSubstr("\"breaker_open\":true")));
}

TEST_F(RouterTest, AnInternalErrorIsTheWorkersWhenAnotherSucceeds) {
  RawWorker bad([](RawConnection& c, const std::string&, int) { c.send(error_answer(api::from_status(500, "?"))); });
  RawWorker good(answer_ok);
  options.decode_urls = {bad.url(), good.url()};
  options.dispatcher.decode_policy = "round-robin";
  options.dispatcher.breaker.failure_threshold = 2;
  start(2);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(post(kChat).status, 200);
  EXPECT_EQ(bad.num_posts(), 2);
  EXPECT_EQ(metric(fmt::format("moectl_router_breaker_open{{role=\"decode\",worker=\"{}\"}}", bad.url())), "1");
}

TEST_F(RouterTest, AnotherSecretIsTheWorkersAndNotTheClients) {
  api::ApiError error = api::from_status(400, "header x-moectl-cluster-signature: does not belong to this request");
  error.param = "x-moectl-cluster-signature";
  RawWorker bad([&](RawConnection& c, const std::string&, int) { c.send(error_answer(error)); });
  options.decode_urls = {bad.url()};
  options.probe_interval = seconds(3600);
  start(1);
  const Answer answer = post(kChat);
  EXPECT_EQ(answer.status, 503);
  EXPECT_THAT(answer.body, Not(HasSubstr("\"param\":\"x-moectl")));
}

TEST_F(RouterTest, NonsenseIsNoAnswer) {
  const std::vector<std::string> nonsense = {
      "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n",
      "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\ngarbage",
      "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
      "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/html\r\nContent-Length: 14\r\n\r\n{\"choices\":[]}",
      "HTTP/1.1 204 No Content\r\n\r\n"};
  for (const std::string& text : nonsense) {
    SCOPED_TRACE(text);
    RawWorker bad([&text](RawConnection& c, const std::string&, int) { c.send(text); });
    RawWorker good(answer_ok);
    options.decode_urls = {bad.url(), good.url()};
    options.dispatcher.decode_policy = "round-robin";
    start(2);
    EXPECT_EQ(post(kChat).body, R"({"choices":[]})");
    EXPECT_EQ(bad.num_posts(), 1);
    EXPECT_EQ(metric("moectl_router_retries_total{cause=\"nonsense\"}"), "1");
    router.reset();
  }
}

TEST_F(RouterTest, LargeAnswersPassThrough) {
  const std::string body = R"({"choices":[{"text":")" + std::string(70 << 20, 'x') + R"("}]})";
  RawWorker worker([&](RawConnection& c, const std::string&, int) { c.answer(body); });
  options.decode_urls = {worker.url()};
  start(1);
  const Answer answer = post(kChat);
  EXPECT_EQ(answer.status, 200);
  EXPECT_TRUE(answer.body == body);
  EXPECT_EQ(answer.header("content-length"), fmt::format("{}", body.size()));
  EXPECT_EQ(worker.num_posts(), 1);
  wait_for_metric("moectl_router_requests_total{outcome=\"success\"}", "1");
}

TEST_F(RouterTest, ALargeAnswerThatBreaksOffIsCut) {
  RawWorker worker([&](RawConnection& c, const std::string&, int) {
    c.send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000000\r\n\r\n{\"choices\":[\"" +
           std::string(3'000'000, 'x'));
  });
  RawWorker other(answer_ok);
  options.decode_urls = {worker.url(), other.url()};
  options.dispatcher.decode_policy = "round-robin";
  start(2);
  const Answer answer = post(kChat);
  EXPECT_EQ(answer.status, 200);
  EXPECT_NE(answer.broken, "");
  EXPECT_EQ(other.num_posts(), 0);
  wait_for_metric("moectl_router_requests_total{outcome=\"failed\"}", "1");
}

TEST_F(RouterTest, LargeEventsPassThrough) {
  const std::string event = "data: {\"text\":\"" + std::string(13 << 20, 'x') + "\"}\n\n";
  RawWorker worker([&](RawConnection& c, const std::string&, int) {
    c.start_stream();
    c.chunk(kRole + event + "data: [DONE]\n\n");
    c.send("0\r\n\r\n");
  });
  options.decode_urls = {worker.url()};
  start(1);
  const Answer answer = post(kStreamed);
  EXPECT_TRUE(answer.body == kRole + event + "data: [DONE]\n\n");
  EXPECT_EQ(answer.broken, "");
}

TEST_F(RouterTest, SeveralRolesAreNoTextYet) {
  RawWorker bad([](RawConnection& c, const std::string&, int) {
    c.start_stream();
    std::string second = kRole;
    second.replace(second.find("\"index\":0"), 9, "\"index\":1");
    c.chunk(kRole + second);
  });
  RawWorker good([](RawConnection& c, const std::string&, int) {
    c.start_stream();
    c.chunk(kRole + kText + "data: [DONE]\n\n");
    c.send("0\r\n\r\n");
  });
  options.decode_urls = {bad.url(), good.url()};
  options.dispatcher.decode_policy = "round-robin";
  start(2);
  const Answer answer = post(kStreamed);
  EXPECT_EQ(answer.body, kRole + kText + "data: [DONE]\n\n");
  EXPECT_EQ(good.num_posts(), 1);
}

TEST_F(RouterTest, OneEndOfAWorkerCountsOnceAndItsRestartClosesTheBreaker) {
  std::promise<void> kill;
  std::shared_future<void> killed = kill.get_future().share();
  std::atomic<int> running{0};
  RawWorker worker([&, killed](RawConnection& c, const std::string&, int number) {
    if (number > 12) return answer_ok(c, "", 0);
    c.start_stream();
    c.chunk(kRole + kText);
    ++running;
    killed.wait();
  });
  worker.instance_id = "1";
  options.decode_urls = {worker.url()};
  options.dispatcher.breaker.failure_threshold = 2;
  start(1);
  std::vector<std::thread> clients;
  for (int i = 0; i < 12; ++i)
    clients.emplace_back([this, i] {
      std::unique_ptr<http::Client> own = http::Client::create();
      Answer answer;
      const std::string body = fmt::format(R"({{"stream":true,"messages":[],"seed":{}}})", i);
      http::run_blocking(call(
          *own, request("POST", router->url() + "/v1/chat/completions", body, {{"content-type", "application/json"}}),
          answer));
      EXPECT_THAT(answer.body, HasSubstr("\"error\""));
    });
  while (running < 12) std::this_thread::yield();
  worker.instance_id = "2";
  kill.set_value();
  for (std::thread& client : clients) client.join();
  wait_for_metric("moectl_router_requests_total{outcome=\"failed\"}", "12");
  wait_for_workers(1);
  EXPECT_EQ(post(kChat).status, 200);
  EXPECT_THAT(ops("/workers").body, HasSubstr("\"breaker_open\":false"));
}

TEST_F(RouterTest, WhatWaitsForAnUnhealthyWorkerGoesElsewhere) {
  for (const bool whole : {true, false}) {
    SCOPED_TRACE(whole);
    RawWorker* self = nullptr;
    RawWorker hung([&](RawConnection& c, const std::string&, int) {
      if (!whole) {
        c.start_stream();
        c.chunk(std::string(kRole) + ": ping\n\n");
      }
      self->state = "stalled";
      c.wait_for_close();
    });
    self = &hung;
    RawWorker good([&](RawConnection& c, const std::string&, int) {
      if (whole) return answer_ok(c, "", 0);
      c.start_stream();
      c.chunk(kRole + kText + "data: [DONE]\n\n");
      c.send("0\r\n\r\n");
    });
    options.decode_urls = {hung.url(), good.url()};
    options.dispatcher.decode_policy = "round-robin";
    start(2);
    const Answer answer = post(whole ? kChat : kStreamed);
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.broken, "");
    EXPECT_THAT(answer.body, testing::EndsWith(whole ? R"({"choices":[]})" : kRole + kText + "data: [DONE]\n\n"));
    EXPECT_EQ(metric("moectl_router_retries_total{cause=\"unhealthy\"}"), "1");
    router.reset();
  }
}

TEST_F(RouterTest, AStreamFromAnUnhealthyWorkerEndsAtOnce) {
  RawWorker* self = nullptr;
  RawWorker hung([&](RawConnection& c, const std::string&, int) {
    c.start_stream();
    c.chunk(kRole + kText);
    self->silent = true;  // the process is stopped: nothing answers
    c.wait_for_close();
  });
  self = &hung;
  options.decode_urls = {hung.url()};
  options.probe_timeout = milliseconds(50);
  start(1);
  const Answer answer = post(kStreamed);
  EXPECT_THAT(answer.body,
              StartsWith(kRole + kText + "data: {\"error\":{\"message\":\"The decode worker became unhealthy"));
  EXPECT_NE(answer.broken, "");
}

TEST_F(RouterTest, SeriesOfAWorkerGoWithIt) {
  RawWorker a(answer_ok), b(answer_ok);
  const std::string path = testing::TempDir() + fmt::format("router_series_{}", ::getpid());
  std::ofstream(path) << a.url() << "\n" << b.url();
  options.workers_file = path;
  start(2);
  EXPECT_THAT(ops("/metrics").body, HasSubstr(a.url()));
  std::ofstream(path) << b.url() << "\n";
  wait_for_workers(1);
  EXPECT_THAT(ops("/metrics").body, Not(HasSubstr(a.url())));
  EXPECT_THAT(ops("/metrics").body, HasSubstr(b.url()));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace moectl::router
