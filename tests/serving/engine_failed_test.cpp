// A step that fails while requests are in flight, as a CUDA error makes it: each of them ends with an error that says
// so, in a stream as an event and without a clean end; nothing new is taken, and health tells why.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/serving/info_handlers.h"
#include "tests/harness/tampered_engine.h"
#include "tests/http/test_client.h"

namespace moectl::test {
namespace {

using testing::HasSubstr;
using testing::Not;

const std::string kDemoDir = MOECTL_SOURCE_DIR "/models/demo";
constexpr const char* kWhy = "GPU 0: an illegal memory access was encountered, in a recorded step";

struct Worker {
  explicit Worker(TamperedOps::Tamper tamper) {
    instance.options = {.served_model_name = "demo"};
    instance.text = ModelText::load(kDemoDir, false, "auto");
    instance.engine =
        tampered_engine({.model_dir = kDemoDir, .num_threads = 1, .max_model_len = 1024, .kv_cache_bytes = 32 << 20},
                        std::move(tamper));
    server = http::Server::create({}, http::plain_error);
    for (Route& route : data_routes(instance)) server->route(route.method, route.path, std::move(route.handler));
    instance.phase = InstancePhase::kReady;
    server->start();
  }
  ~Worker() {
    server->stop(std::chrono::milliseconds(0));
    instance.pool.join();
    server.reset();
    instance.engine.reset();
  }

  Instance instance;
  std::unique_ptr<http::Server> server;
};

std::string request(std::string_view method, std::string_view path, const std::string& body = "") {
  return fmt::format("{} {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}", method, path,
                     body.size(), body);
}

std::string completion(bool stream, int n) {
  return request("POST", "/v1/completions",
                 nlohmann::json{{"prompt", {5, 6, 7}},
                                {"max_tokens", 900},
                                {"ignore_eos", true},
                                {"temperature", 0},
                                {"stream", stream},
                                {"n", n},
                                {"model", "demo"}}
                     .dump());
}

TEST(EngineFailed, EveryRequestInFlightEndsWithAnError) {
  std::atomic<bool> broken{false};
  Worker worker([&](const LinearArgs&) {
    if (broken) throw Error(Code::kUnavailable, kWhy);
  });
  const uint16_t port = worker.server->port();
  http::RawClient stream(port), choices(port), whole(port);
  stream.send(completion(true, 1));
  choices.send(completion(true, 3));
  whole.send(completion(false, 2));
  while (worker.instance.engine->stats().num_running < 6) std::this_thread::yield();
  broken = true;

  for (http::RawClient* client : {&stream, &choices}) {
    const std::string answer = client->until_eof();
    EXPECT_THAT(answer, HasSubstr("HTTP/1.1 200"));
    EXPECT_THAT(answer, HasSubstr(fmt::format("data: {{\"error\":{{\"message\":\"the engine failed: {}\"", kWhy)));
    EXPECT_THAT(answer, HasSubstr("\"code\":\"engine_failed\""));
    EXPECT_THAT(answer, Not(HasSubstr("[DONE]")));
    EXPECT_THAT(answer, Not(HasSubstr("\"finish_reason\":\"")));
    EXPECT_FALSE(answer.ends_with("0\r\n\r\n")) << "a clean end";
  }
  const std::string answer = whole.until_eof();
  EXPECT_THAT(answer, HasSubstr("HTTP/1.1 503"));
  EXPECT_THAT(answer, HasSubstr("\"code\":\"engine_failed\""));

  const auto ask = [&](const std::string& text) {
    http::RawClient client(port);
    client.send(text);
    return client.until_eof();
  };
  // Refused, but it did not fail on this one: another worker may have it at once.
  EXPECT_THAT(ask(completion(false, 1)),
              testing::AllOf(HasSubstr("HTTP/1.1 503"), Not(HasSubstr("\"engine_failed\""))));
  for (const char* path : {"/health", "/readiness"})
    EXPECT_THAT(ask(request("GET", path)), testing::AllOf(HasSubstr("HTTP/1.1 503"), HasSubstr(kWhy)));
  EXPECT_THAT(ask(request("GET", "/load")), HasSubstr("\"state\":\"failed\""));
  EXPECT_THAT(ask(request("GET", "/liveness")), HasSubstr("HTTP/1.1 200"));
}

}  // namespace
}  // namespace moectl::test
