// The engine's life on the demo checkpoint: answers, cancel in every phase, exhaustion, failing sinks, refusals,
// shutdown.
#include "core/engine/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <numeric>
#include <random>
#include <thread>

#include "core/base/error.h"
#include "core/engine/engine_setup.h"
#include "tests/engine/engine_client.h"

namespace moectl::test {
namespace {

GenerateRequest greedy(std::vector<int32_t> prompt, int max_tokens) {
  return {.id = "test", .prompt_ids = std::move(prompt), .sampling = {.temperature = 0.0f, .max_tokens = max_tokens}};
}

template <class F>
std::string error_of(F&& f, Code code) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(int(e.code()), int(code)) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

TEST(Engine, AnswersTheGoldenChats) {
  auto engine = Engine::create(demo_config());
  Client client(*engine);
  const auto cases = golden_cases();
  std::vector<size_t> sent;
  for (const GoldenCase& c : cases) sent.push_back(client.send(greedy(c.prompt_ids, 512)));
  for (size_t i = 0; i < cases.size(); ++i) {
    const Answer a = client.wait(sent[i]);
    const size_t n = std::min<size_t>(cases[i].output_ids.size(), a.ids.size());
    EXPECT_EQ(std::vector(a.ids.begin(), a.ids.begin() + long(n)),
              std::vector(cases[i].output_ids.begin(), cases[i].output_ids.begin() + long(n)))
        << i;
    if (cases[i].output_ids.back() == 1) {
      EXPECT_EQ(a.ids.size(), cases[i].output_ids.size());
      EXPECT_EQ(a.finish, FinishReason::kStop);
    }
  }
  const EngineStats s = idle_stats(*engine);
  EXPECT_EQ(s.kv_pages_used, 0);
  EXPECT_FALSE(s.failed);
  EXPECT_GT(s.num_steps_total, 0);
}

TEST(Engine, TellsWhatItLoaded) {
  auto engine = Engine::create(demo_config());
  const ModelInfo& info = engine->info();
  EXPECT_EQ(info.architecture, "deepseek_v3");
  EXPECT_EQ(info.vocab_size, 4096);
  EXPECT_EQ(info.max_model_len, 1024);
  EXPECT_EQ(info.eos_token_ids, std::vector<int32_t>{1});
  EXPECT_EQ(info.num_params, 25377216) << "the model card's number";
  EXPECT_EQ(info.kv_bytes_per_token, 7 * 160 * 4);
  EXPECT_EQ(info.kv_pool_tokens, (32 << 20) / (7 * 160 * 4 * 64) * 64);
  EXPECT_NE(info.exactness, "");
  EXPECT_GT(info.weight_bytes, 20 << 20);
  EXPECT_EQ(info.parallelism, Parallelism{});
  EXPECT_EQ(info.all2all_backend, std::nullopt) << "one rank exchanges nothing";
}

TEST(Engine, TellsItsRanksAndHowTheyExchange) {
  EngineConfig config = demo_config();
  config.parallelism = expert_parallel(2);
  config.kv_cache_bytes *= 2;
  EXPECT_EQ(Engine::create(config)->info().parallelism, expert_parallel(2));
  EXPECT_EQ(Engine::create(config)->info().all2all_backend, All2AllBackend::kNaive) << "auto, on the CPU";
}

TEST(Engine, CancelInEveryPhaseReturnsThePages) {
  EngineConfig config = demo_config();
  config.max_num_seqs = 2;
  config.max_num_batched_tokens = 16;
  config.enable_prefix_caching = false;
  auto engine = Engine::create(config);
  Client client(*engine);
  GenerateRequest endless = greedy(long_prompt(200), 800), first = endless;
  endless.sampling.ignore_eos = first.sampling.ignore_eos = true;
  first.prompt_ids.resize(10);

  Gate gate;  // the engine stands still in the first request's sink after each of its tokens
  const size_t decoding = client.send(first, [&](const Answer& a) {
    if (a.finish == FinishReason::kNone) gate.arrive(int(a.ids.size()));
  });
  gate.wait_until_arrived(1);
  const size_t prefilling = client.send(endless), queued = client.send(endless);
  gate.open(2);
  gate.wait_until_arrived(3);  // two steps: 30 of 200 prompt tokens computed
  EXPECT_EQ(engine->stats().num_running, 2);
  EXPECT_EQ(engine->stats().num_waiting, 1);
  for (size_t i : {prefilling, queued, decoding, prefilling}) engine->cancel(client.handle(i));
  engine->cancel(123456);
  gate.open(Gate::kAll);
  for (size_t i : {prefilling, queued, decoding}) {
    const Answer a = client.wait(i);
    EXPECT_EQ(a.finish, FinishReason::kCancelled);
    EXPECT_EQ(a.ids.size(), i == decoding ? 3u : 0u) << "within one step";
  }
  const EngineStats s = idle_stats(*engine);
  EXPECT_EQ(s.kv_pages_used, 0);
  EXPECT_EQ(s.kv_pages_cached, 0);
  EXPECT_EQ(client.ask(greedy(golden_cases()[0].prompt_ids, 99)).ids, golden_cases()[0].output_ids)
      << "and it serves on";
}

TEST(Engine, ASinkThatThrowsLosesItsRequestOnly) {
  auto engine = Engine::create(demo_config());
  Client client(*engine);
  GenerateRequest r = greedy(long_prompt(20), 100);
  r.sampling.ignore_eos = true;
  auto alive = std::make_shared<int>(0);
  std::atomic<int> calls{0};
  engine->submit(r, [&calls, alive](GenerateOutput&&) {
    if (++calls == 2) throw std::runtime_error("the client is gone");
  });
  engine->submit(r, [alive](GenerateOutput&&) { throw 7; });
  EXPECT_EQ(client.ask(r).ids.size(), 100u);
  const EngineStats s = idle_stats(*engine);
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(alive.use_count(), 1) << "sinks that ended are destroyed";
  EXPECT_EQ(s.kv_pages_used, 0);
  EXPECT_FALSE(s.failed);
}

TEST(Engine, PoolExhaustionPreemptsAndEverybodyFinishes) {
  EngineConfig config = demo_config();
  config.max_model_len = 256;
  config.kv_cache_bytes = 5 * 64 * 7 * 160 * 4;  // five pages: one full sequence and one page
  auto engine = Engine::create(config);
  Client client(*engine);
  std::vector<size_t> sent;
  for (int i = 0; i < 6; ++i) {
    GenerateRequest r = greedy(long_prompt(40 + i), 120);
    r.sampling.ignore_eos = true;
    sent.push_back(client.send(r));
  }
  for (size_t i : sent) {
    const Answer a = client.wait(i);
    EXPECT_EQ(a.finish, FinishReason::kLength);
    EXPECT_EQ(a.ids.size(), 120u);
  }
  const EngineStats s = idle_stats(*engine);
  EXPECT_GT(s.num_preemptions_total, 0);
  EXPECT_EQ(s.generation_tokens_total, 6 * 120);
  EXPECT_EQ(s.kv_pages_used, 0);
  EXPECT_EQ(s.kv_pages_total, 5);
}

TEST(Engine, CountsCachedTokensAndForgetsThemOnFlush) {
  auto engine = Engine::create(demo_config());
  Client client(*engine);
  const GenerateRequest r = greedy(long_prompt(200), 4);
  EXPECT_EQ(client.ask(r).num_cached_tokens, 0);
  EXPECT_EQ(client.ask(r).num_cached_tokens, 192);
  GenerateRequest salted = r;
  salted.cache_salt = "another tenant";
  EXPECT_EQ(client.ask(salted).num_cached_tokens, 0);
  GenerateRequest scored = r;
  scored.sampling.prompt_logprobs = true;
  scored.sampling.num_logprobs = 0;
  EXPECT_EQ(client.ask(scored).num_cached_tokens, 0);
  const EngineStats s = idle_stats(*engine);
  EXPECT_EQ(s.prefix_cache_queries, 600);
  EXPECT_EQ(s.prefix_cache_hits, 192);
  EXPECT_GT(s.kv_pages_cached, 0);
  engine->flush_prefix_cache();
  EXPECT_EQ(client.ask(r).num_cached_tokens, 0);
}

TEST(Engine, ManyShortRequestsFromManyThreads) {
  EngineConfig config = demo_config();
  config.parallelism = expert_parallel(2);
  auto engine = Engine::create(config);
  const auto cases = golden_cases();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      Client client(*engine);
      std::mt19937 rng{unsigned(t)};
      for (int i = 0; i < 12; ++i) {
        const GoldenCase& c = cases[rng() % cases.size()];
        const size_t n = std::min<size_t>(1 + rng() % 5, c.output_ids.size());
        const Answer a = client.ask(greedy(c.prompt_ids, int(n)));
        wrong += a.ids != std::vector(c.output_ids.begin(), c.output_ids.begin() + long(n)) || a.num_outputs_after_end;
      }
    });
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(idle_stats(*engine).kv_pages_used, 0);
}

TEST(Engine, RefusesBadRequests) {
  auto engine = Engine::create(demo_config());
  const auto submit = [&](GenerateRequest r) { engine->submit(std::move(r), [](GenerateOutput&&) {}); };
  error_of([&] { submit(greedy({}, 5)); }, Code::kInvalidArgument);
  error_of([&] { submit(greedy({0, 4096}, 5)); }, Code::kInvalidArgument);
  error_of([&] { submit(greedy({0, -1}, 5)); }, Code::kInvalidArgument);
  const std::string too_long = error_of([&] { submit(greedy(long_prompt(1024), 5)); }, Code::kInvalidArgument);
  EXPECT_NE(too_long.find("1024"), std::string::npos) << too_long;
  EXPECT_NE(too_long.find("1023"), std::string::npos) << too_long;
  GenerateRequest r = greedy({0, 3}, 5);
  r.sampling.temperature = std::numeric_limits<float>::quiet_NaN();
  error_of([&] { submit(r); }, Code::kInvalidArgument);
  EXPECT_EQ(engine->stats().num_steps_total, 0);

  Client client(*engine);
  GenerateRequest endless = greedy({0, 3}, 900);
  endless.sampling.ignore_eos = true;
  const size_t running = client.send(endless);
  engine->drain();
  error_of([&] { submit(greedy({0, 3}, 5)); }, Code::kUnavailable);
  EXPECT_EQ(client.wait(running).ids.size(), 900u) << "draining lets it finish";
}

TEST(Engine, AnExpiredDeadlineEndsInTheQueue) {
  EngineConfig config = demo_config();
  config.max_num_seqs = 1;
  auto engine = Engine::create(config);
  Client client(*engine);
  GenerateRequest first = greedy(long_prompt(20), 100);
  first.sampling.ignore_eos = true;
  const size_t running = client.send(first);
  client.wait_for_tokens(running, 1);
  GenerateRequest late = greedy(long_prompt(20), 5);
  late.deadline = std::chrono::steady_clock::now();
  const Answer a = client.ask(late);
  EXPECT_EQ(a.finish, FinishReason::kDeadline);
  EXPECT_EQ(client.wait(running).ids.size(), 100u);
}

TEST(Engine, DestructionCancelsWhatRuns) {
  auto engine = Engine::create(demo_config());
  Client client(*engine);
  GenerateRequest endless = greedy(long_prompt(20), 900);
  endless.sampling.ignore_eos = true;
  Gate gate;
  const size_t running = client.send(endless, [&](const Answer& a) {
    if (a.finish == FinishReason::kNone) gate.arrive(int(a.ids.size()));
  });
  gate.wait_until_arrived(1);
  const size_t unseen = client.send(endless);  // still in the inbox when the engine goes
  std::thread opener([&] { gate.open(Gate::kAll); });
  engine.reset();
  opener.join();
  EXPECT_EQ(client.wait(running).finish, FinishReason::kCancelled);
  EXPECT_EQ(client.wait(unseen).finish, FinishReason::kCancelled);
}

TEST(Engine, RefusesWhatABackendCannotDo) {
  EngineConfig config = demo_config();
  config.device = "cuda";
  config.prefill_role = true;
  const std::string message =
      error_of([&] { check_capabilities(config, {.device = "cuda", .kv_transfer = false}); }, Code::kBadConfig);
  EXPECT_NE(message.find("--device cuda: KV transfer between GPU workers is not in this version"), std::string::npos)
      << message;
  EXPECT_NO_THROW(check_capabilities(config, {}));
  config.prefill_role = false;
  EXPECT_NO_THROW(check_capabilities(config, {.device = "cuda", .kv_transfer = false}));
}

TEST(Engine, RefusesConfigurationsThatCannotWork) {
  const auto refuse = [](auto change, const std::string& expected) {
    EngineConfig config = demo_config();
    change(config);
    const std::string message = error_of([&] { Engine::create(config); }, Code::kBadConfig);
    EXPECT_NE(message.find(expected), std::string::npos) << message;
  };
  const auto redundant = [](int ep_size, int num) {
    return [=](EngineConfig& c) {
      c.parallelism = expert_parallel(ep_size);
      c.num_redundant_experts = num;
    };
  };
  refuse(redundant(3, 0), "--num-redundant-experts 0: 32 experts and 0 redundant experts do not divide evenly over 3");
  refuse(redundant(4, 6), "give 4 or 8 redundant experts");
  refuse(redundant(2, -2), "--num-redundant-experts -2");
  refuse([](EngineConfig& c) { c.parallelism.ep_size = 0; }, "--ep-size");
  refuse([](EngineConfig& c) { c.parallelism.ep_size = 2; }, "--ep-size 2 must be TP x DP");
  refuse([](EngineConfig& c) { c.parallelism = {.tp_size = 3, .ep_size = 3}; },
         "--tensor-parallel-size 3: it does not divide the model's 8 attention heads; use 2 or 4");
  refuse([](EngineConfig& c) { c.parallelism = {.dp_size = 2, .ep_size = 2, .num_nodes = 2}; }, "not in this version");
  refuse([](EngineConfig& c) { c.max_model_len = 4096; }, "2048");
  refuse([](EngineConfig& c) { c.max_model_len = 1; }, "--max-model-len");
  refuse([](EngineConfig& c) { c.kv_cache_bytes = 1 << 20; }, "--kv-cache-memory-bytes 1048576");
  refuse([](EngineConfig& c) { c.kv_cache_bytes = -1; }, "--kv-cache-memory-bytes");
  refuse([](EngineConfig& c) { c.parallelism = expert_parallel(8); }, "8 rank(s)");
  refuse([](EngineConfig& c) { c.max_num_batched_tokens = 8; }, "--max-num-batched-tokens 8");
  refuse([](EngineConfig& c) { c.max_num_seqs = 0; }, "--max-num-seqs");
  refuse([](EngineConfig& c) { c.num_threads = -1; }, "--threads");
  refuse([](EngineConfig& c) { c.kv_cache_dtype = "fp8"; }, "--kv-cache-dtype fp8");
  refuse([](EngineConfig& c) { c.cpu_path = "abacus"; }, "abacus");
  EngineConfig missing = demo_config();
  missing.model_dir = MOECTL_SOURCE_DIR "/no-such-model";
  error_of([&] { Engine::create(missing); }, Code::kNotFound);
}

}  // namespace
}  // namespace moectl::test
