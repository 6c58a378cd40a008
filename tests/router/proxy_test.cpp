// The router as clients and workers see it, over loopback. The workers here answer as the protocol says, slowly,
// wrongly or not at all; the real ones are tested with the real binary.
#include <nlohmann/json.hpp>

#include "tests/router/router_fixture.h"

namespace moectl::router {
namespace {

http::Headers headers_of(const std::string& request) {
  http::Headers headers;
  for (size_t at = request.find("\r\n") + 2; request.compare(at, 2, "\r\n") != 0;) {
    const size_t end = request.find("\r\n", at), colon = request.find(": ", at);
    headers.emplace_back(request.substr(at, colon - at), request.substr(colon + 2, end - colon - 2));
    at = end + 2;
  }
  return headers;
}
std::string body_of(const std::string& request) {
  return request.substr(request.find("\r\n\r\n") + 4);
}
int64_t unix_ms() {
  return std::chrono::duration_cast<milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// ------------------------------------------------------------------------------------------------ passing through

TEST_F(RouterTest, PassesBodyAndHeadersOnWithASignature) {
  std::promise<std::string> seen;
  RawWorker prefill(die, "prefill");
  RawWorker worker([&seen](RawConnection& c, const std::string& request, int) {
    seen.set_value(request);
    c.answer(R"({"choices":[{"text":"h\u00e4"}]})");
  });
  options.decode_urls = {worker.url()};
  options.prefill_urls = {prefill.url()};
  start(1, 1);
  const Answer answer = post(kChat, {{"authorization", "Bearer k"},
                                     {"x-request-id", "my-id"},
                                     {"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
                                     {"x-unknown", "stays here"}});
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, R"({"choices":[{"text":"h\u00e4"}]})");
  EXPECT_EQ(answer.header("x-request-id"), "my-id");
  EXPECT_EQ(answer.header("x-moectl-timeline"), "");

  const std::string request = seen.get_future().get();
  EXPECT_THAT(request, StartsWith("POST /v1/chat/completions HTTP/1.1\r\n"));
  EXPECT_EQ(body_of(request), kChat);
  EXPECT_THAT(request, HasSubstr("authorization: Bearer k\r\n"));
  EXPECT_THAT(request, HasSubstr("x-request-id: my-id\r\n"));
  EXPECT_THAT(request, HasSubstr("traceparent: 00-0af7651916cd43dd8448eb211c80319c-"));
  EXPECT_THAT(request, Not(HasSubstr("b7ad6b7169203331")));
  EXPECT_THAT(request, Not(HasSubstr("x-unknown")));
  const auto cluster = api::verify_cluster_headers(headers_of(request), kChat, kSecret, unix_ms());
  ASSERT_TRUE(cluster);
  EXPECT_EQ(cluster->request_id, "my-id");
  EXPECT_EQ(cluster->attempt, 1);
  EXPECT_EQ(cluster->prefill, std::vector<std::string>{"127.0.0.1:9"});
  wait_for_metric("moectl_router_requests_total{outcome=\"success\"}", "1");
}

TEST_F(RouterTest, StreamsWithoutTheWorkersComments) {
  RawWorker worker([](RawConnection& c, const std::string&, int) {
    c.start_stream();
    for (const char* event : {kRole, ": ping\n\n", ": moectl {\"choice\":0,\"ids\":[1],\"pos\":1}\n\n",
                              "data: {\"text\":1}\n\n", ": moectl-timeline {\"role\":\"decode\"}\n\n"})
      c.chunk(event);
    c.chunk("data: [DONE]\n\n");
    c.send("0\r\n\r\n");
  });
  options.decode_urls = {worker.url()};
  start(1);
  const Answer plain = post(kStreamed);
  EXPECT_EQ(plain.body, ": ping\n\n" + (kRole + kText) + "data: [DONE]\n\n");
  EXPECT_EQ(plain.broken, "");
  EXPECT_THAT(plain.header("content-type"), StartsWith("text/event-stream"));

  const Answer debug = post(kStreamed, {{"x-moectl-debug", "1"}});
  const size_t at = debug.body.find(": moectl-timeline ");
  ASSERT_NE(at, std::string::npos);
  const auto timeline = nlohmann::json::parse(debug.body.substr(at + 18, debug.body.find('\n', at) - at - 18));
  EXPECT_EQ(timeline["role"], "router");
  EXPECT_EQ(timeline["inner"]["role"], "decode");
  EXPECT_EQ(timeline["decode_candidates"][0]["worker"], worker.url());
  EXPECT_EQ(timeline["decode_candidates"][0]["chosen"], true);
  EXPECT_TRUE(debug.body.ends_with("data: [DONE]\n\n"));
}

TEST_F(RouterTest, ErrorsOfTheWorkerAreTheClients) {
  RawWorker worker([](RawConnection& c, const std::string&, int) {
    c.send(
        "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: "
        "13\r\n\r\n{\"error\":{}}\n");
  });
  options.decode_urls = {worker.url()};
  start(1);
  const Answer answer = post(kChat);
  EXPECT_EQ(answer.status, 400);
  EXPECT_EQ(answer.body, "{\"error\":{}}\n");
  EXPECT_EQ(worker.num_posts(), 1);
  wait_for_metric("moectl_router_requests_total{outcome=\"refused\"}", "1");
}

TEST_F(RouterTest, OtherPathsAndTheEasPrefix) {
  std::mutex mutex;
  std::vector<std::string> lines;
  RawWorker worker([&](RawConnection& c, const std::string& request, int) {
    std::lock_guard lock(mutex);
    lines.push_back(request.substr(0, request.find("\r\n")));
    EXPECT_THAT(request, Not(HasSubstr("x-moectl-cluster")));
    c.answer("{}");
  });
  options.decode_urls = {worker.url()};
  start(1);
  const std::string base = router->url();
  const http::Headers json = {{"content-type", "application/json"}};
  EXPECT_EQ(get("/v1/models").status, 200);
  EXPECT_EQ(get("/v1/models/a%20b").status, 200);
  EXPECT_EQ(send("POST", base + "/tokenize", "{}", json).status, 200);
  EXPECT_EQ(send("POST", base + "/detokenize", "{}", json).status, 200);
  EXPECT_EQ(get("/api/predict/svc/v1/models").status, 200);
  EXPECT_EQ(get("/api/predict/svc/nothing").status, 404);
  EXPECT_EQ(get("/api/predict/svc/tokenize").status, 405);
  EXPECT_EQ(get("/v1/nothing").status, 404);
  EXPECT_EQ(get("/workers").status, 404);  // the operations port's
  EXPECT_EQ(send("POST", base + "/drain", "{}", json).status, 404);
  EXPECT_THAT(
      lines, testing::ElementsAre("GET /v1/models HTTP/1.1", "GET /v1/models/a%20b HTTP/1.1", "POST /tokenize HTTP/1.1",
                                  "POST /detokenize HTTP/1.1", "GET /v1/models HTTP/1.1"));
}

// ------------------------------------------------------------------------------------------------ refusals

TEST_F(RouterTest, RefusesWhatItCannotRead) {
  RawWorker worker(answer_ok);
  options.decode_urls = {worker.url()};
  options.api.api_keys = {"key"};
  router = std::make_unique<RouterService>(options);
  const http::Headers key = {{"authorization", "Bearer key"}, {"content-type", "application/json"}};
  const std::string url = router->url() + "/v1/chat/completions";
  while (send("GET", router->url() + "/readiness", "", {{"authorization", "Bearer key"}}).status != 200)
    std::this_thread::yield();

  for (const std::string& body : {std::string(""), std::string("hello"), std::string("[]"), std::string("{\"a\":1} x"),
                                  std::string(100'000, '['), std::string(R"({"model":"a","model":"b"})")}) {
    const Answer answer = send("POST", url, body, key);
    EXPECT_EQ(answer.status, 400) << body.substr(0, 50);
    EXPECT_EQ(answer.error("type"), "invalid_request_error") << body.substr(0, 50);
  }
  http::Headers forged = key;
  forged.emplace_back("x-moectl-cluster-prefill", "10.0.0.1:1");
  EXPECT_EQ(send("POST", url, kChat, forged).status, 400);
  EXPECT_EQ(send("POST", url, kChat, {{"authorization", "Bearer key"}, {"content-type", "text/plain"}}).status, 415);
  for (const char* wrong : {"Bearer other", "key2", ""}) {
    const Answer answer = send("POST", url, kChat, {{"authorization", wrong}, {"content-type", "application/json"}});
    EXPECT_EQ(answer.status, 401) << wrong;
    EXPECT_EQ(answer.error("code"), "invalid_api_key");
  }
  EXPECT_EQ(get("/metrics").status, 401);
  const Answer unknown = send("POST", url, R"({"model":"other","messages":[]})", key);
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(unknown.error("code"), "model_not_found");
  EXPECT_EQ(worker.num_posts(), 0);
  EXPECT_EQ(send("POST", url, kChat, key).status, 200);
}

TEST_F(RouterTest, NoWorkerIsSaidAtOnce) {
  options.decode_urls = {"http://127.0.0.1:1"};
  router = std::make_unique<RouterService>(options);
  while (ops("/workers").body.find("refused") == std::string::npos) std::this_thread::yield();
  const Answer answer = post(kChat);
  EXPECT_EQ(answer.status, 503);
  EXPECT_NE(answer.header("retry-after"), "");
  EXPECT_THAT(answer.error("message"), HasSubstr("http://127.0.0.1:1 is unhealthy: cannot connect"));
  EXPECT_EQ(get("/readiness").status, 503);
  EXPECT_EQ(get("/liveness").status, 200);
  EXPECT_EQ(get("/health").status, 200);
}

TEST_F(RouterTest, MissingConfigurationIsRefused) {
  options.decode_urls = {"http://127.0.0.1:1"};
  options.cluster_secret.clear();
  try {
    RouterService service(options);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(exit_code(e.code()), 78);
    EXPECT_THAT(e.what(), HasSubstr("--cluster-secret-file"));
  }
  options.cluster_secret = kSecret;
  options.decode_urls.clear();
  EXPECT_THROW(RouterService service(options), Error);
}

// ------------------------------------------------------------------------------------------------ failures

TEST_F(RouterTest, AnotherWorkerTakesOverBeforeTheFirstText) {
  // In each of these ways, nothing of the answer has reached the client.
  const std::vector<RawWorker::Behaviour> deaths = {
      die,
      [](RawConnection& c, const std::string&, int) {
        c.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"half\"");
      },
      [](RawConnection& c, const std::string&, int) { c.send("garbage\r\n\r\n"); },
      [](RawConnection& c, const std::string&, int) { c.start_stream(); },
      [](RawConnection& c, const std::string&, int) {
        c.start_stream();
        c.chunk(kRole);
      },
      [](RawConnection& c, const std::string&, int) {
        c.start_stream();
        c.chunk(": ping\n\n");
        c.chunk("zz");
      },
      [](RawConnection& c, const std::string&, int) {
        c.send(
            "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\nContent-Length: 2\r\n\r\n{}");
      }};
  for (size_t i = 0; i < deaths.size(); ++i) {
    SCOPED_TRACE(i);
    std::promise<std::string> second;
    RawWorker bad(deaths[i]);
    RawWorker good([&second](RawConnection& c, const std::string& request, int) {
      second.set_value(request);
      c.start_stream();
      c.chunk(kRole + kText + "data: [DONE]\n\n");
      c.send("0\r\n\r\n");
    });
    options.decode_urls = {bad.url(), good.url()};
    options.dispatcher.decode_policy = "round-robin";  // the bad one first
    start(2);
    const Answer answer = post(kStreamed);
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.broken, "");
    EXPECT_THAT(answer.body, testing::EndsWith(kRole + kText + "data: [DONE]\n\n"));
    EXPECT_EQ(bad.num_posts(), 1);
    const std::string request = second.get_future().get();
    EXPECT_EQ(api::verify_cluster_headers(headers_of(request), kStreamed, kSecret, unix_ms())->attempt, 2);
    router.reset();
  }
}

TEST_F(RouterTest, WorkerThatRefusesConnectionsIsAvoided) {
  auto gone = std::make_unique<RawWorker>(answer_ok);
  RawWorker good(answer_ok);
  options.decode_urls = {gone->url(), good.url()};
  options.dispatcher.decode_policy = "round-robin";
  options.probe_interval = seconds(3600);  // after the first round, requests alone find out
  router = std::make_unique<RouterService>(options);
  wait_for_workers(2);
  gone.reset();
  EXPECT_EQ(post(kChat).status, 200);
  EXPECT_EQ(metric("moectl_router_retries_total{cause=\"connect\"}"), "1");
  for (int i = 0; i < 5; ++i) EXPECT_EQ(post(kChat).status, 200);
  EXPECT_EQ(metric("moectl_router_retries_total{cause=\"connect\"}"), "1");
  EXPECT_THAT(ops("/workers").body, HasSubstr("refused"));
}

TEST_F(RouterTest, AfterTheFirstTextTheStreamBreaksOffWithAnError) {
  RawWorker other(answer_ok);
  const std::vector<RawWorker::Behaviour> deaths = {
      die, [](RawConnection& c, const std::string&, int) { c.chunk("data: {\"half"); },
      [](RawConnection& c, const std::string&, int) { c.send("0\r\n\r\n"); },  // a clean end without [DONE]
      [](RawConnection& c, const std::string&, int) {
        c.chunk("data: {\"error\":{\"message\":\"own words\"}}\n\n");
        c.send("0\r\n\r\n");
      }};
  for (size_t i = 0; i < deaths.size(); ++i) {
    SCOPED_TRACE(i);
    RawWorker worker([&deaths, i](RawConnection& c, const std::string& request, int number) {
      c.start_stream();
      c.chunk(kRole + (": moectl {}\n\n" + kText));
      deaths[i](c, request, number);
    });
    options.decode_urls = {worker.url(), other.url()};
    options.dispatcher.decode_policy = "round-robin";
    start(2);
    const Answer answer = post(kStreamed);
    EXPECT_EQ(answer.status, 200);
    EXPECT_THAT(answer.body, StartsWith(kRole + kText + "data: {\"error\":{\"message\":\""));
    EXPECT_THAT(answer.body, Not(HasSubstr("[DONE]")));
    EXPECT_THAT(answer.body, Not(HasSubstr("half")));
    EXPECT_EQ(answer.body.find("own words") != std::string::npos, i == 3);
    EXPECT_NE(answer.broken, "");  // no clean end
    EXPECT_EQ(other.num_posts(), 0);
    wait_for_metric("moectl_router_requests_total{outcome=\"failed\"}", "1");
    router.reset();
  }
}

// A worker whose engine fails says so before it ends: in the answer, or in the stream.
void fail_with_last_words(RawConnection& c, const std::string&, int) {
  const std::string body = api::error_body(api::engine_failed("the engine failed: on purpose"));
  c.send(
      fmt::format("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Type: "
                  "application/json\r\nContent-Length: {}\r\n\r\n{}",
                  body.size(), body));
}
void fail_amid_stream(RawConnection& c, const std::string&, int) {
  c.start_stream();
  c.chunk(std::string(kRole) + "data: " + api::error_body(api::engine_failed("the engine failed")) + "\n\n");
}

TEST_F(RouterTest, PromptThatKillsWorkersIsGivenToTwoAtMost) {
  for (const RawWorker::Behaviour& death : {RawWorker::Behaviour(die), RawWorker::Behaviour(fail_with_last_words),
                                            RawWorker::Behaviour(fail_amid_stream)}) {
    RawWorker a(death), b(death), c(death);
    options.decode_urls = {a.url(), b.url(), c.url()};
    start(3);
    const Answer answer = post(kChat);
    EXPECT_EQ(answer.status, 500);
    EXPECT_EQ(answer.error("code"), "worker_died");
    EXPECT_EQ(answer.header("x-should-retry"), "false");
    EXPECT_EQ(a.num_posts() + b.num_posts() + c.num_posts(), 2);
    EXPECT_EQ(post(kChat).status, 500);  // again: to nobody
    EXPECT_EQ(a.num_posts() + b.num_posts() + c.num_posts(), 2);
    router.reset();
  }
}

TEST_F(RouterTest, AnEngineThatFailedIsWorkedAround) {
  for (const RawWorker::Behaviour& death :
       {RawWorker::Behaviour(fail_with_last_words), RawWorker::Behaviour(fail_amid_stream)}) {
    RawWorker* self = nullptr;
    RawWorker failing([&](RawConnection& c, const std::string& request, int number) {
      self->state = "failed";
      death(c, request, number);
    });
    self = &failing;
    RawWorker other(answer_ok);
    options.decode_urls = {failing.url(), other.url()};
    options.dispatcher.decode_policy = "round-robin";
    start(2);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(post(kChat).status, 200);
    EXPECT_EQ(failing.num_posts(), 1);
    EXPECT_THAT(ops("/workers").body, HasSubstr("\"state\":\"unhealthy\""));
    EXPECT_EQ(metric("moectl_router_retries_total{cause=\"died\"}"), "1");
    router.reset();
  }
}

TEST_F(RouterTest, LastWordsOfAFailedEngineReachTheClient) {
  RawWorker* self = nullptr;
  RawWorker failing([&](RawConnection& c, const std::string& request, int number) {
    self->state = "failed";  // so that no probe finds it ready for a second attempt
    fail_with_last_words(c, request, number);
  });
  self = &failing;
  options.decode_urls = {failing.url()};
  start(1);
  const Answer answer = post(kChat);
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(answer.error("code"), "engine_failed");
  EXPECT_EQ(answer.header("retry-after"), "1");
}

TEST_F(RouterTest, LastWordsWhenNobodyIsLeft) {
  RawWorker worker([](RawConnection& c, const std::string&, int) {
    c.send(
        "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 7\r\nContent-Type: application/json\r\n"
        "Content-Length: 9\r\n\r\n{\"mine\":1");
  });
  options.decode_urls = {worker.url()};
  start(1);
  const Answer answer = post(kChat);
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(answer.body, "{\"mine\":1");
  EXPECT_EQ(metric("moectl_router_retries_total{cause=\"busy\"}"), "0");
  EXPECT_EQ(answer.header("retry-after"), "7");
}

TEST_F(RouterTest, RetriesAreBounded) {
  std::vector<std::unique_ptr<RawWorker>> workers;
  for (int i = 0; i < 4; ++i) {
    workers.push_back(std::make_unique<RawWorker>([](RawConnection& c, const std::string&, int) {
      c.send("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    }));
    options.decode_urls.push_back(workers.back()->url());
  }
  options.max_retries = 2;
  start(4);
  EXPECT_EQ(post(kChat).status, 503);
  int posts = 0;
  for (const auto& worker : workers) posts += worker->num_posts();
  EXPECT_EQ(posts, 3);
}

// ------------------------------------------------------------------------------------------------ clients that leave

TEST_F(RouterTest, ClientGoneClosesTheWorkersConnection) {
  for (const bool streaming : {false, true}) {
    SCOPED_TRACE(streaming);
    AsyncQueue<bool> arrived;
    std::promise<void> closed;
    RawWorker worker([&, arrived](RawConnection& c, const std::string&, int) mutable {
      if (streaming) {
        c.start_stream();
        c.chunk(kRole + kText);
      }
      arrived.push(true);
      c.wait_for_close();
      closed.set_value();
    });
    options.decode_urls = {worker.url()};
    start(1);
    http::ClientRequest leaving =
        request("POST", router->url() + "/v1/chat/completions", kStreamed, {{"content-type", "application/json"}});
    leaving.cancellation = std::make_shared<http::Cancellation>();
    auto leave = [](AsyncQueue<bool> seen, std::shared_ptr<http::Cancellation> cancellation) -> Task<void> {
      co_await seen.pop();
      cancellation->cancel();
    };
    Answer answer;
    std::vector<Task<void>> tasks;
    tasks.push_back(leave(arrived, leaving.cancellation));
    tasks.push_back(call(*client, std::move(leaving), answer));
    try {
      http::run_blocking(http::run_all(std::move(tasks)));
    } catch (const Error& e) {
      EXPECT_EQ(int(e.code()), int(Code::kCancelled));
    }
    closed.get_future().wait();
    wait_for_metric("moectl_router_requests_total{outcome=\"cancelled\"}", "1");
    EXPECT_THAT(ops("/workers").body, HasSubstr("\"requests\":0"));
    router.reset();
  }
}

// ------------------------------------------------------------------------------------------------ queue

TEST_F(RouterTest, QueueHoldsServesAndRefuses) {
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  RawWorker worker([released](RawConnection& c, const std::string&, int) {
    released.wait();
    answer_ok(c, "", 0);
  });
  options.decode_urls = {worker.url()};
  options.dispatcher.max_requests_per_worker = 1;
  options.dispatcher.max_queue_size = 2;
  start(1);
  std::vector<Answer> answers(3);
  std::thread clients([&] {
    std::vector<Task<void>> tasks;
    for (Answer& answer : answers)
      tasks.push_back(
          call(*client,
               request("POST", router->url() + "/v1/chat/completions", kChat, {{"content-type", "application/json"}}),
               answer));
    http::run_blocking(http::run_all(std::move(tasks)));
  });
  wait_for_metric("moectl_router_queue_depth", "2");
  const Answer refused = post(kChat);
  EXPECT_EQ(refused.status, 429);
  EXPECT_NE(refused.header("retry-after"), "");
  EXPECT_EQ(refused.error("type"), "rate_limit_error");
  release.set_value();
  clients.join();
  for (const Answer& answer : answers) EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(metric("moectl_router_queue_depth"), "0");
  EXPECT_EQ(metric("moectl_router_queue_seconds_count"), "2");
}

TEST_F(RouterTest, WaitingInTheQueueHasAnEnd) {
  AsyncQueue<bool> arrived;
  RawWorker worker([arrived](RawConnection& c, const std::string&, int) mutable {
    arrived.push(true);
    c.wait_for_close();
  });
  options.decode_urls = {worker.url()};
  options.dispatcher.max_requests_per_worker = 1;
  options.queue_timeout = seconds(0);
  start(1);
  const auto chat = [this] {
    return request("POST", router->url() + "/v1/chat/completions", kChat, {{"content-type", "application/json"}});
  };
  http::ClientRequest first = chat();
  first.cancellation = std::make_shared<http::Cancellation>();
  auto then = [](AsyncQueue<bool> seen, http::Client& c, http::ClientRequest second, Answer& answer,
                 std::shared_ptr<http::Cancellation> end) -> Task<void> {
    co_await seen.pop();
    co_await call(c, std::move(second), answer);
    end->cancel();
  };
  Answer blocked, timed_out;
  std::vector<Task<void>> tasks;
  tasks.push_back(then(arrived, *client, chat(), timed_out, first.cancellation));
  tasks.push_back(call(*client, std::move(first), blocked));
  EXPECT_THROW(http::run_blocking(http::run_all(std::move(tasks))), Error);
  EXPECT_EQ(timed_out.status, 503);
  EXPECT_NE(timed_out.header("retry-after"), "");
  EXPECT_THAT(timed_out.error("message"), HasSubstr("in the queue"));
}

// ------------------------------------------------------------------------------------------------ operations

TEST_F(RouterTest, WorkersFileIsReadAgainAndBadContentKeepsTheOld) {
  RawWorker a(answer_ok), b(answer_ok);
  const std::string path = testing::TempDir() + fmt::format("router_workers_{}", ::getpid());
  const auto write = [&](const std::string& text) {
    std::ofstream(path + ".new") << text;
    std::filesystem::rename(path + ".new", path);
  };
  write(a.url());
  options.workers_file = path;
  start(1);
  write(a.url() + "\n" + b.url());
  wait_for_workers(2);
  write("bad");
  EXPECT_EQ(get("/readiness").status, 200);
  write(b.url() + "\n");
  wait_for_workers(1);
  EXPECT_THAT(ops("/workers").body, Not(HasSubstr(a.url())));
  EXPECT_EQ(post(kChat).status, 200);
  EXPECT_EQ(b.num_posts(), 1);
  std::filesystem::remove(path);
}

TEST_F(RouterTest, DrainsInOrder) {
  RawWorker worker(answer_ok);
  options.decode_urls = {worker.url()};
  start(1);
  router->drain();
  EXPECT_EQ(get("/readiness").status, 503);
  EXPECT_EQ(get("/liveness").status, 200);
  EXPECT_EQ(post(kChat).status, 503);
  router->stop(milliseconds(100));
}

TEST_F(RouterTest, OperationsAreOnBothPorts) {
  RawWorker worker(answer_ok);
  options.decode_urls = {worker.url()};
  start(1);
  for (const char* path : {"/health", "/liveness", "/readiness", "/metrics", "/version", "/load"}) {
    EXPECT_EQ(get(path).status, 200) << path;
    EXPECT_EQ(ops(path).status, 200) << path;
  }
  EXPECT_EQ(metric(fmt::format("moectl_worker_state{{role=\"decode\",state=\"ready\",worker=\"{}\"}}", worker.url())),
            "1");
  EXPECT_THAT(ops("/workers").body, HasSubstr(worker.url()));
}

}  // namespace
}  // namespace moectl::router
