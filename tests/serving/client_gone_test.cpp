// A client that leaves: from the moment its connection is down the engine computes at most the step that is in
// progress, on the decode worker and on the prefill worker that computes its prompt. Real engines, HTTP and KV protocol
// over loopback; the engines only stand still at chosen outputs, so that steps can be counted, not timed.
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <nlohmann/json.hpp>

#include "core/api/cluster.h"
#include "core/serving/info_handlers.h"
#include "core/serving/kv_role.h"
#include "core/serving/request_context.h"
#include "tests/engine/gate.h"
#include "tests/http/test_client.h"

namespace moectl::test {
namespace {

const std::string kDemoDir = MOECTL_SOURCE_DIR "/models/demo";
const std::string kClusterSecret = "0123456789abcdef0123456789abcdef";

// The real engine. It passes `gate` before each output or report goes on to its sink, and tells who was cancelled.
class WatchedEngine final : public Engine {
 public:
  explicit WatchedEngine(std::unique_ptr<Engine> real) : real_(std::move(real)) {}
  ~WatchedEngine() override { gate.open(Gate::kAll); }

  const ModelInfo& info() const override { return real_->info(); }
  uint64_t submit(GenerateRequest request, OutputSink sink) override {
    return real_->submit(std::move(request), [this, sink = std::move(sink)](GenerateOutput&& output) {
      gate.arrive(++num_passed_);
      sink(std::move(output));
    });
  }
  void cancel(uint64_t handle) override {
    real_->cancel(handle);
    std::lock_guard lock(mutex_);
    ++num_cancels_;
    cancelled_.notify_all();
  }
  EngineStats stats() const override { return real_->stats(); }
  void read_expert_load(ExpertLoadSink sink) override { real_->read_expert_load(std::move(sink)); }
  void drain() override { real_->drain(); }
  void flush_prefix_cache() override { real_->flush_prefix_cache(); }
  uint64_t prefill(PrefillJob job, PrefillSink sink) override {
    return real_->prefill(std::move(job), [this, sink = std::move(sink)](const PrefillProgress& progress) {
      gate.arrive(++num_passed_);
      sink(progress);
    });
  }
  void release_prefill(uint64_t handle) override { real_->release_prefill(handle); }
  KvLayout kv_layout() const override { return real_->kv_layout(); }
  std::vector<KvPool> kv_pools() const override { return real_->kv_pools(); }

  // False: nobody was cancelled for a minute, so nobody will be.
  bool wait_for_cancel() {
    std::unique_lock lock(mutex_);
    return cancelled_.wait_for(lock, std::chrono::minutes(1), [&] { return num_cancels_ > 0; });
  }

  Gate gate;

 private:
  const std::unique_ptr<Engine> real_;
  int num_passed_ = 0;  // engine's thread
  std::mutex mutex_;
  std::condition_variable cancelled_;
  int num_cancels_ = 0;
};

// A worker as WorkerService makes it, around an engine of the test's choice.
struct Worker {
  Worker(Role role, EngineConfig config) {
    instance.options = {.role = role, .served_model_name = "demo", .cluster_secret = kClusterSecret};
    config.model_dir = kDemoDir;
    config.num_threads = 1;
    config.max_model_len = 1024;
    config.kv_cache_bytes = 32 << 20;
    config.prefill_role = role == Role::kPrefill;
    if (role == Role::kDecode) {
      instance.text = ModelText::load(kDemoDir, false, "auto");
      instance.prefill_source = std::make_shared<RemotePrefillSource>(KvClientOptions{.secret = kClusterSecret});
      config.prefill_source = instance.prefill_source;
    }
    auto watched = std::make_unique<WatchedEngine>(Engine::create(std::move(config)));
    engine = watched.get();
    instance.engine = std::move(watched);
    if (role == Role::kPrefill) instance.kv_server = start_kv_server(instance);
    server = http::Server::create({}, http::plain_error);
    for (Route& route : data_routes(instance)) server->route(route.method, route.path, std::move(route.handler));
    instance.phase = InstancePhase::kReady;
    server->start();
  }
  ~Worker() {
    engine->gate.open(Gate::kAll);
    server->stop(std::chrono::milliseconds(0));
    instance.pool.join();
    server.reset();
    instance.kv_server.reset();
    instance.engine.reset();
  }

  EngineStats idle_stats() const {
    for (;;) {
      const EngineStats s = engine->stats();
      if (s.num_running + s.num_waiting == 0 && s.seconds_since_progress == 0.0) return s;
      std::this_thread::yield();
    }
  }

  Instance instance;
  WatchedEngine* engine = nullptr;
  std::unique_ptr<http::Server> server;
};

std::string completion(int num_prompt, int max_tokens, bool stream) {
  std::vector<int> ids;
  for (int i = 0; i < num_prompt; ++i) ids.push_back(2 + i * 7 % 4000);
  return nlohmann::json{{"prompt", ids},    {"max_tokens", max_tokens}, {"ignore_eos", true},
                        {"temperature", 0}, {"stream", stream},         {"model", "demo"}}
      .dump();
}

// A request with the router's headers: `prefill` may compute its prompt.
std::string routed(const std::string& body, const std::vector<std::string>& prefill = {}) {
  std::string text = fmt::format("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n", body.size());
  const api::ClusterHeaders headers{"router-1", 1, 0, prefill};
  for (const auto& [name, value] : api::sign_cluster_headers(headers, body, kClusterSecret, read_clocks().unix_ms))
    text += fmt::format("{}: {}\r\n", name, value);
  return text + "\r\n" + body;
}

class ClientGone : public testing::TestWithParam<bool> {};

// The engine stands still behind its fifth token: the connection's end must reach it without any help of a token.
TEST_P(ClientGone, WhileDecodingNoFurtherStepIsComputed) {
  Worker decode(Role::kDecode, {});
  decode.engine->gate.open(4);
  http::RawClient client(decode.server->port());
  client.send(routed(completion(20, 900, GetParam())));
  decode.engine->gate.wait_until_arrived(5);
  client.close();
  ASSERT_TRUE(decode.engine->wait_for_cancel());
  decode.engine->gate.open(Gate::kAll);
  const EngineStats end = decode.idle_stats();
  EXPECT_EQ(end.num_steps_total, 5) << "the prompt gave the first token, four steps the others";
  EXPECT_EQ(end.generation_tokens_total, 5);
  EXPECT_EQ(end.kv_pages_used, 0);
}

TEST_P(ClientGone, WhileQueuedNoStepIsComputed) {
  Worker decode(Role::kDecode, {.max_num_seqs = 1});
  http::RawClient running(decode.server->port()), queued(decode.server->port());
  running.send(routed(completion(20, 30, false)));
  decode.engine->gate.wait_until_arrived(1);
  queued.send(routed(completion(30, 900, GetParam())));
  while (decode.engine->stats().num_waiting != 1) std::this_thread::yield();
  queued.close();
  ASSERT_TRUE(decode.engine->wait_for_cancel());
  decode.engine->gate.open(Gate::kAll);
  EXPECT_EQ(running.answer().status, 200) << "nobody else is affected";
  const EngineStats end = decode.idle_stats();
  EXPECT_EQ(end.num_steps_total, 30);
  EXPECT_EQ(end.generation_tokens_total, 30);
  EXPECT_EQ(end.kv_pages_used, 0);
}

// 699 tokens of the prompt are six chunks. The first report comes while the first chunk is computed, report n + 1 when
// chunk n is final.
TEST_P(ClientGone, WhileAnotherWorkerPrefillsTheChunkInProgressIsItsLast) {
  for (const int report : {1, 2, 4}) {
    Worker prefill(Role::kPrefill, {.max_num_batched_tokens = 128});
    Worker decode(Role::kDecode, {});
    decode.engine->gate.open(Gate::kAll);
    prefill.engine->gate.open(report - 1);
    http::RawClient client(decode.server->port());
    client.send(
        routed(completion(700, 50, GetParam()), {fmt::format("127.0.0.1:{}", prefill.instance.kv_server->port())}));
    prefill.engine->gate.wait_until_arrived(report);
    client.close();
    ASSERT_TRUE(prefill.engine->wait_for_cancel());
    prefill.engine->gate.open(Gate::kAll);
    const EngineStats here = decode.idle_stats(), there = prefill.idle_stats();
    EXPECT_EQ(there.num_steps_total, std::max(1, report - 1)) << "at report " << report;
    EXPECT_EQ(here.num_steps_total, 0);
    EXPECT_EQ(here.kv_pages_used + there.kv_pages_used, 0);
    EXPECT_EQ(prefill.instance.kv_server->stats().num_cancelled, 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Answers, ClientGone, testing::Bool(),
                         [](const auto& info) { return info.param ? "streamed" : "whole"; });

}  // namespace
}  // namespace moectl::test
