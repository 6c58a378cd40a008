// Data parallelism in the scheduler: which rank a request goes to, and how evenly the ranks of a step are filled.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "tests/engine/scheduler_simulation.h"

namespace moectl {
namespace {

constexpr int kPage = 64, kBudget = 2048;

SchedulerConfig config_of(int num_ranks) {
  return {.num_ranks = num_ranks,
          .num_pages = 4096,
          .page_size = kPage,
          .max_num_seqs = 64 * num_ranks,
          .max_num_batched_tokens = kBudget,
          .max_model_len = 16384,
          .vocab_size = 32000,
          .eos_token_ids = {1}};
}

// Tokens that no simulated client sends.
std::vector<int32_t> text_of(int num_tokens, int32_t salt) {
  std::vector<int32_t> ids;
  for (int i = 0; i < num_tokens; ++i) ids.push_back(int32_t((int64_t{i} * i * 31 + salt * 7 + i) % 32000));
  return ids;
}

// Conversations that share four system prompts, documents, and short questions with long answers, arriving within
// `horizon`.
void add_mixed_load(Simulation& simulation, int num_clients, int horizon, unsigned seed) {
  std::mt19937 rng(seed);
  for (int i = 0; i < num_clients; ++i) {
    SimulatedClient client{.next_time = horizon ? int64_t(rng() % unsigned(horizon)) : 0, .rng = std::mt19937(rng())};
    const unsigned kind = rng() % 10;
    if (kind < 4) {
      client.text = text_of(1024, int32_t(rng() % 4));
      client.num_requests = 1 + int(rng() % 6);
      client.min_new = 32, client.max_new = 512, client.min_output = 64, client.max_output = 384;
      client.think_time = 2000;
    } else if (kind < 6) {
      client.min_new = 2000, client.max_new = 12000, client.min_output = 16, client.max_output = 128;
    } else {
      client.min_new = 16, client.max_new = 256, client.min_output = 128, client.max_output = 512;
    }
    simulation.add(std::move(client));
  }
}

int longest(const Simulation& simulation) {
  int rows = 0;
  for (const RankRows& rank : simulation.rows) rows = std::max(rows, rank.total());
  return rows;
}

bool computes_prompts(const Simulation& simulation) {
  return std::ranges::any_of(simulation.rows, [](const RankRows& rank) { return rank.prompt > 0; });
}

// A rank has more rows than another one that works, and more than the decodes and the least that is left for prompts.
bool is_uneven(const Simulation& simulation) {
  const int num_parts = std::min(int(simulation.rows.size()), 8);
  int num_busy = 0, fewest = kBudget, max_decodes = 0;
  for (const RankRows& rank : simulation.rows) {
    if (rank.total() > 0) ++num_busy, fewest = std::min(fewest, rank.total());
    max_decodes = std::max(max_decodes, rank.decodes);
  }
  return num_busy > 1 && longest(simulation) > std::max(fewest, max_decodes + kBudget / num_parts);
}

TEST(SchedulerRanks, ARankAloneWithAPromptUsesTheWholeStep) {
  Simulation s(config_of(4));
  s.submit({}, 2000, 1);
  s.step();
  EXPECT_EQ(s.rows[0].prompt, 2000);
  s.submit({}, 5000, 1);
  s.step();
  EXPECT_EQ(longest(s), kBudget);
}

TEST(SchedulerRanks, AdmissionOrderDoesNotMakeOneRankLonger) {
  Simulation s(config_of(2));
  for (int n : {1900, 100, 1800}) s.submit({}, n, 1);
  s.step();
  EXPECT_EQ(s.rows[0].total(), 1900);
  EXPECT_EQ(s.rows[1].total(), 1900);
}

TEST(SchedulerRanks, ALongPromptDoesNotHoldUpShortOnesOfOtherRanks) {
  Simulation s(config_of(4));
  s.submit({}, 8000, 1);
  s.step();
  EXPECT_EQ(longest(s), kBudget);
  for (int i = 0; i < 3; ++i) s.submit({}, 800, 1);
  s.step();
  for (const RankRows& rank : s.rows) EXPECT_EQ(rank.total(), 800);
  s.step();
  EXPECT_EQ(longest(s), kBudget) << "alone again";
  s.submit({}, 20, 1);
  s.step();
  EXPECT_EQ(longest(s), kBudget / 4) << "a short prompt does not make the step shorter";
  s.run();
  s.expect_no_leak();
}

TEST(SchedulerRanks, TheLimitLeavesRoomBesideTheDecodesOfEveryRank) {
  auto config = config_of(2);
  config.max_num_batched_tokens = 64;
  Simulation s(config);
  for (int i = 0; i < 60; ++i) s.submit({}, 2, 300);
  while (s.scheduler.stats().num_waiting > 0 || longest(s) > 30) ASSERT_TRUE(s.step());
  s.submit({}, 500, 1);
  s.submit({}, 3, 1);
  s.step();
  EXPECT_EQ(std::max(s.rows[0].prompt, s.rows[1].prompt), 32) << "half of the budget on two ranks";
  EXPECT_EQ(longest(s), 62);
  s.run();
}

TEST(SchedulerRanks, LoadIsTokensNotSequences) {
  Simulation s(config_of(2));
  const uint64_t long_one = s.submit({}, 8000, 200);
  while (s.scheduler.stats().generation_tokens_total == 0) s.step();
  EXPECT_EQ(s.requests[long_one].rank, 0);
  for (int i = 0; i < 10; ++i) {
    const uint64_t short_one = s.submit({}, 100, 200);
    s.step();
    s.step();
    EXPECT_EQ(s.requests[short_one].rank, 1) << i;
  }
}

TEST(SchedulerRanks, AFullRankIsPassedOver) {
  auto config = config_of(2);
  config.num_pages = 20;
  config.max_model_len = 20 * kPage;
  Simulation s(config);
  s.submit(text_of(512, 1), 1, 1);
  s.run();  // rank 0 caches the prefix
  const uint64_t filler = s.submit(text_of(512, 1), 580, 100);
  s.step();
  EXPECT_EQ(s.requests[filler].rank, 0);
  s.step();
  const uint64_t next = s.submit(text_of(512, 1), 100, 1);
  s.step();
  EXPECT_EQ(s.requests[next].rank, 0) << "two pages beyond the prefix";
  const uint64_t last = s.submit(text_of(512, 1), 200, 1);
  s.step();
  EXPECT_EQ(s.requests[last].rank, 1) << "no pages";
  s.run();
  s.expect_no_leak();
}

TEST(SchedulerRanks, ARequestWaitsForTheRankWithItsPrefixWhenThatCostsLess) {
  for (const int num_prefix : {128, 3072}) {
    Simulation s(config_of(2));
    const std::vector<int32_t> prefix = text_of(num_prefix, 1);
    s.submit(prefix, 1, 1);
    s.run();
    s.submit({}, 2 * kBudget, 1);
    s.step();
    const uint64_t request = s.submit(prefix, 100, 1);
    s.step();
    EXPECT_EQ(s.rows[0].prompt, num_prefix < kBudget ? kBudget / 2 : kBudget);
    s.run();
    EXPECT_EQ(s.requests[request].rank, num_prefix < kBudget ? 1 : 0) << num_prefix;
    EXPECT_EQ(s.requests[request].num_cached, num_prefix < kBudget ? 0 : num_prefix);
    s.expect_no_leak();
  }
}

TEST(SchedulerRanks, ARequestThatWaitsLeavesThePagesOfThePromptsBeforeIt) {
  for (const int num_pages : {182, 200}) {  // prefix 80, the long prompt 96, the request 11 more
    auto config = config_of(2);
    config.num_pages = num_pages;
    Simulation s(config);
    const std::vector<int32_t> prefix = text_of(80 * kPage, 1);
    s.submit(prefix, 1, 1);
    s.run();
    s.submit({}, 3 * kBudget, 1);
    s.step();
    const uint64_t request = s.submit(prefix, 640, 1);
    s.run();
    EXPECT_EQ(s.requests[request].rank, num_pages == 200 ? 0 : 1) << num_pages;
    EXPECT_EQ(s.scheduler.stats().num_preemptions_total, 0);
    s.expect_no_leak();
  }
}

// Requests with one prefix, one after the other, on ranks that keep what they get: the prefix is followed to its rank
// until that is much fuller than another, and is then computed there too.
TEST(SchedulerRanks, PrefixHitsAreFollowedUnlessTheRankIsMuchFuller) {
  for (unsigned seed = 0; seed < 30; ++seed) {
    std::mt19937 rng(seed);
    const int num_ranks = 2 << seed % 3, num_prefix = kPage * (4 + int(rng() % 28));
    Simulation s(config_of(num_ranks));
    const std::vector<int32_t> prefix = text_of(num_prefix, int32_t(seed));
    s.submit(prefix, 1, 1);
    s.run();
    std::vector<int64_t> held(size_t(num_ranks), 0);
    int num_followed = 0, num_recomputed = 0;
    for (int i = 0; i < 12 * num_ranks; ++i) {
      const uint64_t handle = s.submit(prefix, 1 + int(rng() % 64), 4000);
      do s.step();
      while (computes_prompts(s));
      const SimulatedRequest& request = s.requests.at(handle);
      const int64_t emptiest = std::ranges::min(held), here = held[size_t(request.rank)];
      if (request.num_cached > 0) {
        EXPECT_EQ(request.num_cached, num_prefix);
        EXPECT_LT(here, emptiest + 16 * num_prefix) << "seed " << seed << ": a hit on a rank that is much fuller";
        num_followed += here > emptiest;
      } else {
        EXPECT_GT(std::ranges::max(held), here + 4 * num_prefix) << "seed " << seed << ": a prefix computed again";
        ++num_recomputed;
      }
      held[size_t(request.rank)] += request.num_prompt;
    }
    EXPECT_GT(num_followed, 0) << seed;
    EXPECT_EQ(num_recomputed, num_ranks - 1) << "seed " << seed << ": in the end every rank has the prefix";
    EXPECT_LT(double(std::ranges::max(held)), 1.5 * double(std::ranges::min(held))) << seed;
  }
}

// Simulation::step() checks that decodes and the oldest prompts of every rank advance in each step.
TEST(SchedulerRanks, RandomLoadsAreServedWithinBoundsAndLeakNothing) {
  int64_t num_preemptions = 0;
  for (unsigned seed = 0; seed < 9; ++seed) {
    const int num_ranks = 2 << seed % 3;
    auto config = config_of(num_ranks);
    if (seed % 2) config.num_pages = 300;  // preemption
    Simulation s(config);
    add_mixed_load(s, 40 * num_ranks, int(seed / 3) * 60000, seed);
    s.run();
    s.expect_no_leak();
    num_preemptions += s.scheduler.stats().num_preemptions_total;
  }
  EXPECT_GT(num_preemptions, 50) << "the test must reach preemption";
}

// A step is as long as its longest rank. The table of docs/performance.md, "Scheduling over DP ranks".
TEST(SchedulerRanks, MixedLoadIsBalanced) {
  struct Case {
    int num_ranks, horizon;
    double row_ratio, kv_ratio;  // bounds of longest rank / mean
  };
  std::printf("ranks horizon steps  rows: longest  mean ratio  kv: ratio  cached  first token  answer  total time\n");
  for (const Case& c : {Case{2, 0, 1.5, 1.15}, Case{2, 600000, 1.5, 1.15}, Case{2, 1200000, 1.65, 1.15},  //
                        Case{4, 0, 1.75, 1.2}, Case{4, 600000, 1.95, 1.2}, Case{4, 1200000, 2.4, 1.2},
                        Case{8, 0, 1.75, 1.25}, Case{8, 600000, 1.9, 1.25}, Case{8, 1200000, 2.5, 1.3}}) {
    Simulation s(config_of(c.num_ranks));
    add_mixed_load(s, 120 * c.num_ranks, c.horizon, 7);
    int num_uneven = 0;
    while (s.step()) num_uneven += is_uneven(s);
    const SimulationTotals& t = s.totals;
    const double row_ratio = double(t.max_rows) / t.mean_rows, kv_ratio = double(t.max_kv_tokens) / t.mean_kv_tokens;
    EXPECT_LT(row_ratio, c.row_ratio) << c.num_ranks << " " << c.horizon;
    EXPECT_LT(num_uneven, t.num_steps / 20) << "the queue's prefix hits are not known when the limit is set";
    EXPECT_LT(kv_ratio, c.kv_ratio) << c.num_ranks << " " << c.horizon;
    std::printf("%5d %7d %5ld %14ld %5.0f %5.2f %10.2f %7ld %12ld %7ld %11ld\n", c.num_ranks, c.horizon,
                long(t.num_steps), long(t.max_rows), t.mean_rows, row_ratio, kv_ratio,
                long(s.scheduler.stats().prefix_cache_hits), long(t.first_token_time / t.num_requests),
                long(t.answer_time / t.num_requests), long(t.time));
  }
}

}  // namespace
}  // namespace moectl
