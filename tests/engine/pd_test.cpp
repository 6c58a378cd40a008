// Disaggregated prefill: whatever happens to a prompt in transit, tokens and logprobs are those of one engine that
// does everything, bit for bit, and every page is released on both sides.
#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <thread>

#include "core/base/error.h"
#include "core/pd/kv_link.h"
#include "tests/engine/pd_pair.h"
#include "tests/harness/model_runner.h"

namespace moectl::test {
namespace {

constexpr int64_t kPageBytes = 64 * 7 * 160 * 4;  // all layers of the demo model
const std::vector<int> kLengths = {1, 2, 64, 65, 66, 129, 700};

GenerateRequest request(int num_prompt, bool sampled = false, int max_tokens = 6) {
  GenerateRequest r{.id = "r", .prompt_ids = long_prompt(num_prompt), .prefill_workers = {"p"}};
  r.sampling = {.temperature = sampled ? 1.2f : 0.0f,
                .seed = 5u + unsigned(num_prompt),
                .max_tokens = max_tokens,
                .ignore_eos = true,
                .num_logprobs = 2};
  return r;
}

// Each request alone, in an engine without roles or prefix cache.
Answer expected(const GenerateRequest& r) {
  static const auto engine = [] {
    EngineConfig config = demo_config();
    config.enable_prefix_caching = false;
    config.max_num_seqs = 1;
    return Engine::create(config);
  }();
  return Client(*engine).ask(r);
}

void expect_right(const Answer& got, const GenerateRequest& r, const std::string& where) {
  EXPECT_EQ(got.error, "") << where;
  EXPECT_TRUE(got.same_text(expected(r))) << where << ", prompt of " << r.prompt_ids.size();
  EXPECT_EQ(got.num_prefill_stats, 1) << where;
}

void run_lengths(PdPair& pair, const std::string& where, bool sampled) {
  Client client(*pair.decode);
  for (int n : kLengths) expect_right(client.ask(request(n, sampled)), request(n, sampled), where);
}

// ------------------------------------------------------------------------------------------------ answers

TEST(Pd, ColdPromptsOfEveryLength) {
  PdPair pair;
  Client client(*pair.decode);
  for (int n : kLengths)
    for (bool sampled : {false, true}) {
      GenerateRequest r = request(n, sampled);
      r.cache_salt = std::to_string(2 * n + sampled);  // not cached anywhere
      const Answer a = client.ask(r);
      expect_right(a, r, "cold");
      EXPECT_EQ(a.prefill.worker, n == 1 ? "" : "p") << n;
      EXPECT_EQ(a.prefill.local_reason, n == 1 ? "short prompt" : "") << n;
      EXPECT_EQ(a.prefill.kv_bytes, (n - 1) * kPageBytes / 64) << n;
      EXPECT_EQ(a.num_cached_tokens, 0);
    }
  EXPECT_EQ(pair.source->started().size(), 2 * kLengths.size() - 2);
  pair.expect_baseline();
}

TEST(Pd, PrefixHitsOnTheDecodeSide) {
  PdPair pair;
  run_lengths(pair, "growing prompts", false);
  const auto started = pair.source->started();
  ASSERT_EQ(started.size(), 6u);
  EXPECT_EQ(started[3].prompt_ids.size(), 66u);
  EXPECT_EQ(started[3].into.first_page, 1) << "the prompt of 65 left its first page";
  EXPECT_EQ(started[5].into.first_page, 2);
  EXPECT_EQ(started[5].into.pages.size(), 9u) << "699 tokens are 11 pages";
  Client client(*pair.decode);
  const Answer again = client.ask(request(65));
  EXPECT_EQ(again.num_cached_tokens, 64);
  EXPECT_EQ(again.prefill.local_reason, "short prompt") << "only the last token is missing";
  run_lengths(pair, "everything cached", true);
  pair.expect_baseline();
}

TEST(Pd, PrefixHitsOnThePrefillSide) {
  PdPair pair;
  Client client(*pair.decode);
  for (int round = 0; round < 2; ++round) {
    const Answer a = client.ask(request(700, round == 1));
    expect_right(a, request(700, round == 1), "round");
    EXPECT_EQ(a.prefill.remote_cached_tokens, round * 640) << "10 full pages of 699 tokens";
    EXPECT_EQ(a.num_cached_tokens, 0);
    pair.decode->flush_prefix_cache();
  }
  const Answer whole = client.ask(request(129));  // both its pages are cached there: no step is needed
  expect_right(whole, request(129), "cached");
  EXPECT_EQ(whole.prefill.remote_cached_tokens, 128);
  pair.expect_baseline();
}

TEST(Pd, EpSizesMayDiffer) {
  for (auto [prefill_ep, decode_ep] : {std::pair{1, 2}, std::pair{2, 1}}) {
    EngineConfig p = prefill_config(), d = decode_config();
    p.parallelism = expert_parallel(prefill_ep);
    d.parallelism = expert_parallel(decode_ep);
    PdPair pair(p, d);
    Client client(*pair.decode);
    std::vector<size_t> sent;
    for (int n : kLengths) {
      GenerateRequest r = request(n, true);
      r.cache_salt = std::to_string(n);
      sent.push_back(client.send(r));
    }
    for (size_t i = 0; i < sent.size(); ++i)
      expect_right(client.wait(sent[i]), request(kLengths[i], true),
                   fmt::format("EP {} and {}", prefill_ep, decode_ep));
    pair.expect_baseline();
  }
}

TEST(Pd, WhoIsComputedHere) {
  EngineConfig d = decode_config();
  d.local_prefill_tokens = 64;
  PdPair pair(prefill_config(), d);
  Client client(*pair.decode);
  GenerateRequest none = request(70);
  none.prefill_workers.clear();
  GenerateRequest scored = request(70);
  scored.sampling.prompt_logprobs = true;
  EXPECT_EQ(client.ask(request(65)).prefill.local_reason, "short prompt");
  EXPECT_EQ(client.ask(none).prefill.local_reason, "no prefill worker");
  const Answer a = client.ask(scored);
  EXPECT_EQ(a.prefill.local_reason, "prompt logprobs");
  EXPECT_TRUE(a.same_text(expected(scored)));
  EXPECT_TRUE(pair.source->started().empty());
  pair.decode->flush_prefix_cache();
  EXPECT_EQ(client.ask(request(66)).prefill.worker, "p") << "65 tokens are over the limit";
  auto alone = Engine::create(demo_config());
  EXPECT_EQ(Client(*alone).ask(request(70)).prefill.local_reason, "aggregated");
}

// ------------------------------------------------------------------------------------------------ failures

TEST(Pd, AFailedTransferIsComputedHere) {
  for (int fail_at : {0, 1, 128, 699}) {
    PdPair pair;
    pair.source->fail_at_tokens = fail_at;
    Client client(*pair.decode);
    const Answer a = client.ask(request(700, true));
    expect_right(a, request(700, true), fmt::format("failed at {}", fail_at));
    EXPECT_EQ(a.prefill.worker, "");
    EXPECT_EQ(a.prefill.local_reason, fail_at == 0 ? "transfer failed: p: refused" : "transfer failed: p: lost");
    EXPECT_EQ(a.prefill.kv_bytes, 0);
    pair.expect_baseline();
  }
}

TEST(Pd, AFailureAfterAPrefixHit) {
  PdPair pair;
  Client client(*pair.decode);
  client.ask(request(129));
  pair.source->fail_at_tokens = 256;
  expect_right(client.ask(request(700)), request(700), "failed behind a cached prefix");
  EXPECT_EQ(pair.source->started().back().into.first_page, 2);
  pair.expect_baseline();
}

TEST(Pd, ASourceThatThrowsOrAPrefillEngineThatIsGone) {
  PdPair pair;
  Client client(*pair.decode);
  pair.source->throw_at_start = true;
  const Answer a = client.ask(request(129));
  expect_right(a, request(129), "throws");
  EXPECT_EQ(a.prefill.local_reason, "transfer failed: no route");
  pair.source->throw_at_start = false;
  pair.decode->flush_prefix_cache();
  pair.prefill->drain();  // takes no more jobs: start() throws what prefill() throws
  expect_right(client.ask(request(129)), request(129), "drained");
  pair.expect_baseline();
}

// ------------------------------------------------------------------------------------------------ ends

// The prefill engine stands still at its first, second or last report (the last: 699 tokens are six steps).
TEST(Pd, CancelWhileAnotherWorkerComputes) {
  for (int report : {1, 3, 7}) {
    PdPair pair;
    Gate gate;
    gate.open(report - 1);
    pair.source->at_report = [&](int n) { gate.arrive(n); };
    Client client(*pair.decode);
    const size_t index = client.send(request(700));
    gate.wait_until_arrived(report);
    pair.decode->cancel(client.handle(index));
    EXPECT_EQ(client.wait(index).finish, FinishReason::kCancelled);
    EXPECT_EQ(pair.source->num_cancelled(), 1);
    EXPECT_EQ(idle_stats(*pair.decode).kv_pages_used, 0) << "its pages return though the other side stands still";
    gate.open(Gate::kAll);
    pair.expect_baseline();
    expect_right(client.ask(request(700)), request(700), "after a cancel");
    pair.expect_baseline();
  }
}

TEST(Pd, CancelBeforeAndAfter) {
  EngineConfig d = decode_config();
  d.max_num_seqs = 1;
  PdPair pair(prefill_config(), d);
  Gate gate;
  pair.source->at_report = [&](int n) { gate.arrive(n); };
  Client client(*pair.decode);
  Gate third_token;
  const size_t first = client.send(request(200, false, 300), [&](const Answer& a) {
    if (a.ids.size() == 3) third_token.arrive(1);
  });
  gate.wait_until_arrived(1);
  const size_t queued = client.send(request(300));
  pair.decode->cancel(client.handle(queued));
  EXPECT_EQ(client.wait(queued).finish, FinishReason::kCancelled);
  gate.open(Gate::kAll);
  third_token.wait_until_arrived(1);
  pair.decode->cancel(client.handle(first));
  third_token.open(1);
  const Answer a = client.wait(first);
  EXPECT_EQ(a.finish, FinishReason::kCancelled);
  EXPECT_EQ(a.prefill.worker, "p");
  EXPECT_EQ(pair.source->started().size(), 1u);
  EXPECT_EQ(pair.source->num_cancelled(), 0);
  pair.expect_baseline();
}

TEST(Pd, OthersGoOnAndTheDeadlineCounts) {
  PdPair pair;
  Gate gate;
  pair.source->at_report = [&](int n) { gate.arrive(n); };
  Client client(*pair.decode);
  const size_t slow = client.send(request(700));
  gate.wait_until_arrived(1);
  EngineStats stats;
  do stats = pair.decode->stats();  // ends: waiting for others is no stall
  while (stats.num_remote_prefills != 1 || stats.seconds_since_progress != 0.0);
  EXPECT_EQ(stats.num_running, 1);
  GenerateRequest local = request(90);
  local.prefill_workers.clear();
  expect_right(client.ask(local), local, "during a remote prefill");
  GenerateRequest late = request(80);
  late.cache_salt = "late";
  late.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(30);
  const Answer a = client.ask(late);  // nothing else wakes the engine
  EXPECT_EQ(a.finish, FinishReason::kDeadline);
  gate.open(Gate::kAll);
  expect_right(client.wait(slow), request(700), "slow");
  pair.expect_baseline();
}

TEST(Pd, EnginesGoWhileWorkIsOutstanding) {
  for (bool decode_first : {true, false}) {
    PdPair pair;
    Gate gate;
    gate.open(2);
    pair.source->at_report = [&](int n) { gate.arrive(n); };
    Client client(*pair.decode);
    const size_t running = client.send(request(700)), behind = client.send(request(300));
    gate.wait_until_arrived(3);
    if (decode_first) {
      pair.decode.reset();
      EXPECT_EQ(client.wait(running).finish, FinishReason::kCancelled);
      EXPECT_EQ(client.wait(behind).finish, FinishReason::kCancelled);
      gate.open(Gate::kAll);
      EXPECT_EQ(idle_stats(*pair.prefill).kv_pages_used, 0);
    } else {
      gate.open(Gate::kAll);
      pair.prefill.reset();
      for (auto [index, n] : {std::pair{running, 700}, std::pair{behind, 300}})
        expect_right(client.wait(index), request(n), "without its prefill worker");
      EXPECT_EQ(idle_stats(*pair.decode).kv_pages_used, 0);
    }
  }
}

// ------------------------------------------------------------------------------------------------ pressure

TEST(Pd, SmallPools) {
  EngineConfig p = prefill_config(), d = decode_config();
  p.max_model_len = d.max_model_len = 512;
  p.kv_cache_bytes = 9 * kPageBytes;
  d.kv_cache_bytes = 12 * kPageBytes;
  PdPair pair(p, d);
  Client client(*pair.decode);
  std::vector<GenerateRequest> all;
  for (int i = 0; i < 24; ++i) {
    GenerateRequest r = request(40 + 97 * i % 400, i % 3 == 1, 10 + 7 * i % 50);
    if (i % 2) r.cache_salt = std::to_string(i);
    if (i % 5 == 4) r.prefill_workers.clear();
    all.push_back(r);
  }
  std::vector<size_t> sent;
  for (const GenerateRequest& r : all) sent.push_back(client.send(r));
  for (size_t i = 0; i < all.size(); ++i) expect_right(client.wait(sent[i]), all[i], fmt::format("request {}", i));
  pair.expect_baseline();
  GenerateRequest impossible = request(500, false, 5000);
  impossible.prompt_ids.resize(512);
  EXPECT_THROW(pair.decode->submit(impossible, [](GenerateOutput&&) {}), Error);
}

// An old request needs the pages that are reserved for a young one, whose prompt is still being computed elsewhere.
TEST(Pd, AnOlderRequestTakesThePages) {
  EngineConfig d = decode_config();
  d.max_model_len = 512;
  d.kv_cache_bytes = 8 * kPageBytes;
  d.enable_prefix_caching = false;
  PdPair pair(prefill_config(), d);
  Gate gate;
  pair.source->at_report = [&](int n) { gate.arrive(n); };
  Client client(*pair.decode);
  GenerateRequest old = request(120, false, 200), young = request(300, true, 20);
  old.prefill_workers.clear();
  Gate first_token;
  const size_t first = client.send(old, [&](const Answer& a) {
    if (a.ids.size() == 1) first_token.arrive(1);
  });
  first_token.wait_until_arrived(1);
  const size_t second = client.send(young);
  first_token.open(1);
  gate.wait_until_arrived(1);
  expect_right(client.wait(first), old, "the older one");
  EXPECT_GE(pair.source->num_cancelled(), 1);
  EXPECT_GE(pair.decode->stats().num_preemptions_total, 1);
  gate.open(Gate::kAll);
  expect_right(client.wait(second), young, "the younger one");
  pair.expect_baseline();
}

// ------------------------------------------------------------------------------------------------ the prefill role

struct JobLog {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<PrefillProgress> reports;
  PrefillSink sink(Gate* at_first = nullptr) {
    return [this, at_first](const PrefillProgress& p) {
      if (at_first) at_first->arrive(1);
      std::lock_guard lock(mutex);
      reports.push_back(p);
      changed.notify_all();
    };
  }
  const std::vector<PrefillProgress>& wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return !reports.empty() && reports.back().finished; });
    return reports;
  }
};

PrefillJob job(int num_prompt) {
  return {.request_id = "j", .prompt_ids = long_prompt(num_prompt), .num_tokens = num_prompt - 1};
}

// The model itself, the whole prompt in one batch: what every page must hold, the MTP layer's included.
void expect_pages_of_the_model(const KvPool& pool, const std::vector<int32_t>& pages, int num_prompt) {
  ModelRunner runner(kDemoDir, {});
  const std::vector<int32_t> ids = long_prompt(num_prompt);
  runner.rank().model->forward(rows_of(ids, 0, num_prompt));
  const std::vector<int32_t> next(ids.begin() + 1, ids.end());
  runner.rank().model->forward_mtp(rows_of(next, 0, num_prompt - 1),
                                   runner.rank().model->hidden().first(num_prompt - 1));
  ASSERT_EQ(pool.num_lanes, int(runner.rank().cache->layers.size()));
  const size_t num_bytes = size_t(pool.page_bytes / pool.page_size) * size_t(num_prompt - 1);
  for (int layer = 0; layer < pool.num_lanes; ++layer) {
    const std::byte* want = runner.rank().cache->layers[size_t(layer)].get();  // pages 0, 1, 2, ...
    EXPECT_TRUE(token_bytes(pool, pages, layer, num_prompt - 1) == std::vector(want, want + num_bytes))
        << "layer " << layer;
  }
}

TEST(Pd, PagesHoldTheModelsBytes) {
  PdPair pair;
  Client client(*pair.decode);
  std::vector<size_t> company;
  for (int i = 0; i < 4; ++i) {  // ordinary requests in the prefill engine's batches
    company.push_back(client.send(request(50 + 30 * i, true, 40)));
  }
  Client neighbours(*pair.prefill);
  GenerateRequest neighbour = request(100, true, 30);
  const size_t beside = neighbours.send(neighbour);
  JobLog log;
  PrefillJob cold = job(330);
  cold.cache_salt = "its own";
  const uint64_t handle = pair.prefill->prefill(std::move(cold), log.sink());
  const auto& reports = log.wait();
  int ready = 0;
  for (const PrefillProgress& p : reports) {
    EXPECT_EQ(p.error, "");
    EXPECT_GE(p.num_tokens_ready, ready);
    ready = p.num_tokens_ready;
    EXPECT_EQ(p.pages.pages.empty(), &p != &reports.front()) << "pages are told once";
  }
  EXPECT_EQ(ready, 329);
  EXPECT_GE(reports.size(), 4u) << "steps of 128 tokens";
  EXPECT_EQ(reports[0].pages.pages.size(), 6u);
  EXPECT_EQ(reports[0].pages.epochs.size(), 6u);
  expect_right(neighbours.wait(beside), neighbour, "together with jobs");
  for (size_t i = 0; i < company.size(); ++i)
    expect_right(client.wait(company[i]), request(50 + 30 * int(i), true, 40), "x");
  expect_pages_of_the_model(pair.prefill->kv_pools()[0], reports[0].pages.pages, 330);
  EXPECT_GE(pair.prefill->stats().kv_pages_used, 6) << "until the release";
  pair.prefill->release_prefill(handle);
  pair.expect_baseline();

  // The same over to the decode side, and computed there after a failure.
  for (int fail_at : {-1, 128}) {
    pair.source->fail_at_tokens = fail_at;
    pair.decode->flush_prefix_cache();
    client.ask(request(330, false, 1));
    idle_stats(*pair.decode);
    const KvPages into = pair.source->started().back().into;
    ASSERT_EQ(into.first_page, 0);
    expect_pages_of_the_model(pair.source->pool(into.rank), into.pages, 330);
  }
}

// A page with generated tokens lacks the MTP layer's KV: it must not be found again.
TEST(Pd, PagesWithoutMtpKvAreNotCached) {
  for (bool mtp : {true, false}) {
    EngineConfig config = prefill_config();
    config.compute_mtp_kv = mtp;
    auto engine = Engine::create(config);
    Client client(*engine);
    GenerateRequest r = request(70, false, 100);
    const Answer first = client.ask(r);
    r.prompt_ids.insert(r.prompt_ids.end(), first.ids.begin(), first.ids.end());
    const Answer second = client.ask(r);
    EXPECT_EQ(second.num_cached_tokens, mtp ? 64 : 128);
    EXPECT_TRUE(second.same_text(expected(r)));
  }
}

TEST(Pd, JobsEndOnceAndKeepTheirPages) {
  auto engine = Engine::create(prefill_config());
  JobLog finished, cancelled, released;
  const uint64_t a = engine->prefill(job(300), finished.sink());
  EXPECT_EQ(finished.wait().back().error, "");
  engine->cancel(a);  // too late: nothing happens
  Gate begins, begins_too;
  const uint64_t b = engine->prefill(job(900), cancelled.sink(&begins));
  begins.wait_until_arrived(1);
  engine->cancel(b);
  begins.open(1);
  EXPECT_EQ(cancelled.wait().back().error, "cancelled");
  const uint64_t c = engine->prefill(job(901), released.sink(&begins_too));
  begins_too.wait_until_arrived(1);
  engine->release_prefill(c);
  begins_too.open(1);
  EXPECT_EQ(released.wait().back().error, "its pages were released before it was finished");
  engine->release_prefill(b);
  while (engine->stats().num_running + engine->stats().num_waiting != 1) std::this_thread::yield();
  EXPECT_EQ(engine->stats().kv_pages_used, 5) << "those of the first job";
  engine->release_prefill(a);
  engine->release_prefill(a);
  EXPECT_EQ(idle_stats(*engine).kv_pages_used, 0);
  EXPECT_EQ(finished.reports.size(),
            size_t(std::ranges::count(finished.reports, false, &PrefillProgress::finished)) + 1);
  JobLog last;
  engine->prefill(job(900), last.sink());
  engine.reset();
  EXPECT_TRUE(last.wait().back().finished);
}

// Finished jobs hold the whole pool: a request waits for a release, and the engine does not count as stuck.
TEST(Pd, HeldPagesMakeOthersWait) {
  EngineConfig config = prefill_config();
  config.max_model_len = 256;
  config.kv_cache_bytes = 4 * kPageBytes;
  auto engine = Engine::create(config);
  JobLog log, next;
  const uint64_t holder = engine->prefill(job(250), log.sink());
  log.wait();
  Client client(*engine);
  const size_t waiting = client.send(request(100));
  while (engine->stats().num_waiting != 1 || engine->stats().seconds_since_progress != 0.0) std::this_thread::yield();
  engine->release_prefill(holder);
  expect_right(client.wait(waiting), request(100), "after the release");
}

TEST(Pd, WhatPeersAgreeOn) {
  EngineConfig d = decode_config();
  d.parallelism = expert_parallel(2);
  PdPair pair(prefill_config(), d);
  const KvLayout layout = pair.prefill->kv_layout();
  EXPECT_TRUE(layout == pair.decode->kv_layout() && layout == pair.source->layout());
  EXPECT_EQ(layout.num_lanes * layout.page_bytes, kPageBytes);
  EXPECT_EQ(layout.model_hash, pair.decode->info().model_hash);
  EXPECT_EQ(layout.kv_format, pair.decode->info().kv_format);
  EXPECT_FALSE(layout.model_hash.empty() || layout.kv_format.empty());
  const auto pools = pair.decode->kv_pools();
  ASSERT_EQ(pools.size(), 2u);
  EXPECT_EQ(pools[0].num_pages + pools[1].num_pages, pair.decode->stats().kv_pages_total);
  EXPECT_NE(pools[0].lanes[0], pools[1].lanes[0]);
}

// Compressed KV is the same on all TP ranks: it travels once, and every rank of the group gets it.
TEST(Pd, TpGroupsOfEqualSize) {
  EngineConfig p = prefill_config(), d = decode_config();
  p.parallelism = {.tp_size = 2, .ep_size = 2};
  d.parallelism = {.tp_size = 2, .dp_size = 2, .ep_size = 4};
  PdPair pair(p, d);
  const KvLayout layout = pair.prefill->kv_layout();
  EXPECT_TRUE(layout == pair.decode->kv_layout());
  EXPECT_EQ(layout.num_lanes * layout.page_bytes, kPageBytes);
  const auto pools = pair.decode->kv_pools();
  ASSERT_EQ(pools.size(), 2u) << "one per TP group";
  for (const KvPool& pool : pools)
    for (const auto& places : pool.lanes) EXPECT_EQ(places.size(), 2u);
  EngineConfig alone = demo_config();
  alone.parallelism = p.parallelism;
  auto engine = Engine::create(alone);
  Client plain(*engine), client(*pair.decode);
  for (int n : kLengths) {
    const GenerateRequest r = request(n, true);
    const Answer got = client.ask(r);
    EXPECT_TRUE(got.same_text(plain.ask(r))) << n;
    if (n > 1) {
      EXPECT_EQ(got.prefill.worker, r.prefill_workers[0]) << n;
    }
  }
  pair.expect_baseline();
}

// Pages are the whole model's, whatever the TP size: peers agree, and say that they are not exact.
TEST(Pd, TpSizesMayDiffer) {
  for (const auto& [prefill_size, decode_size] : {std::pair{2, 1}, {1, 2}}) {
    EngineConfig p = prefill_config(), d = decode_config();
    p.parallelism = {.tp_size = prefill_size, .ep_size = prefill_size};
    d.parallelism = {.tp_size = decode_size, .ep_size = decode_size};
    PdPair pair(p, d);
    EXPECT_TRUE(pair.prefill->kv_layout() == pair.decode->kv_layout());
    EXPECT_EQ(pair.prefill->info().kv_format, pair.decode->info().kv_format);
    const std::string &at_prefill = pair.prefill->info().exactness, &at_decode = pair.decode->info().exactness;
    EXPECT_EQ(prefill_size == 2 ? at_prefill : at_decode, (prefill_size == 2 ? at_decode : at_prefill) + "-tp2");
    Client client(*pair.decode);
    for (const GoldenCase& c : golden_cases()) {
      const Answer got = client.ask({.prompt_ids = c.prompt_ids,
                                     .sampling = {.temperature = 0.0f, .max_tokens = int(c.output_ids.size())},
                                     .prefill_workers = {"p"}});
      EXPECT_EQ(got.ids, c.output_ids);
      EXPECT_EQ(got.prefill.worker, "p");
    }
    pair.expect_baseline();
  }
}

TEST(Pd, ExactnessNamesHowLayersAreSplit) {
  const auto info = [](const Parallelism& parallelism) {
    EngineConfig c = prefill_config();
    c.parallelism = parallelism;
    return Engine::create(c)->info();
  };
  const std::string one = info({}).exactness;
  EXPECT_EQ(info({.tp_size = 2, .ep_size = 2}).exactness, one + "-tp2");
  EXPECT_EQ(info({.tp_size = 2}).exactness, one + "-tp2-ep1");
  EXPECT_EQ(info({.dp_size = 2, .ep_size = 2}).exactness, one);
}

TEST(Pd, RefusedJobs) {
  auto engine = Engine::create(prefill_config());
  const auto sink = [](const PrefillProgress&) {};
  PrefillJob all = job(10);
  all.num_tokens = 10;
  EXPECT_THROW(engine->prefill(all, sink), Error) << "the last token is the decode worker's";
  PrefillJob none = job(10);
  none.num_tokens = 0;
  EXPECT_THROW(engine->prefill(none, sink), Error);
  PrefillJob negative = job(10);
  negative.num_tokens = std::numeric_limits<int>::min();
  EXPECT_THROW(engine->prefill(negative, sink), Error);
  PrefillJob foreign = job(10);
  foreign.prompt_ids[3] = 4096;
  EXPECT_THROW(engine->prefill(foreign, sink), Error);
  EXPECT_THROW(engine->prefill(job(1024), sink), Error);
  engine->release_prefill(77);
  engine->cancel(77);
  auto other_role = Engine::create(demo_config());
  EXPECT_THROW(other_role->prefill(job(10), sink), Error);
}

}  // namespace
}  // namespace moectl::test
