// Scheduler under a model of the ranks: each keeps mirrors of its sequences from the plans alone. Every step writes the
// ids of its rows to the pages of its mirrors and reads each sequence's whole text back from them, so a page that is
// shared, lost or assigned twice, or a delta that is missing, shows as a wrong text.
#include "core/engine/scheduler.h"

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <map>
#include <random>
#include <set>

#include "core/base/error.h"
#include "core/engine/sequence_mirror.h"

namespace moectl {
namespace {

using TimePoint = Scheduler::TimePoint;
constexpr int kVocab = 50;
constexpr int32_t kEos = 1;

SchedulerConfig small_config() {
  return {.num_ranks = 1,
          .num_pages = 16,
          .page_size = 4,
          .max_num_seqs = 4,
          .max_num_batched_tokens = 16,
          .max_prompt_logits = 5,
          .max_model_len = 40,
          .vocab_size = kVocab,
          .eos_token_ids = {kEos}};
}

// The token that the pretended model gives after a text: any function of all of it.
int32_t next_token(std::span<const int32_t> text, uint64_t seed) {
  uint64_t h = seed * 0x9e3779b97f4a7c15u + 1;
  for (int32_t id : text) h = (h ^ uint64_t(id)) * 0x100000001b3u;
  return int32_t((h >> 20) % kVocab);
}

GenerateRequest request(std::vector<int32_t> prompt, int max_tokens, uint64_t seed = 0) {
  return {.prompt_ids = std::move(prompt), .sampling = {.seed = seed, .max_tokens = max_tokens}};
}

struct Answer {
  std::vector<int32_t> ids, prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
  std::string error;
  int num_cached = 0;
  int32_t stop_token = -1;
};

Answer expected_answer(const GenerateRequest& r, const SchedulerConfig& config) {
  Answer a;
  std::vector<int32_t> text = r.prompt_ids;
  while (a.finish == FinishReason::kNone) {
    if (r.sampling.max_tokens == 0) {
      a.finish = FinishReason::kLength;
      break;
    }
    const int32_t id = next_token(text, r.sampling.seed);
    text.push_back(id);
    a.ids.push_back(id);
    if (id == kEos && !r.sampling.ignore_eos)
      a.finish = FinishReason::kStop;
    else if (int(a.ids.size()) >= r.sampling.max_tokens || int(text.size()) >= config.max_model_len)
      a.finish = FinishReason::kLength;
  }
  if (r.sampling.prompt_logprobs) a.prompt_logprobs.assign(r.prompt_ids.begin() + 1, r.prompt_ids.end());
  return a;
}

// Plays the ranks: executes plans on model caches, in order and as soon as they are made, feeds sampled tokens back as
// a device does, and collects the answers when the maximum number of steps is in flight.
class Player {
 public:
  explicit Player(SchedulerConfig config) : scheduler(config), config_(std::move(config)) {
    for (int i = 0; i < config_.num_ranks; ++i) ranks_.emplace_back(config_);
  }

  uint64_t submit(GenerateRequest r) {
    check_request(r, config_);
    const uint64_t handle = next_handle_++;
    requests_[handle] = r;
    scheduler.submit(handle, std::move(r));
    return handle;
  }

  bool has_work() const { return scheduler.has_work() || !in_flight_.empty(); }

  bool step(TimePoint now = {}) {
    StepPlan plan = scheduler.plan(now);
    collect();
    const bool launches = !plan.empty();
    if (launches) execute(std::move(plan));
    if (in_flight_.empty() || (launches && int(in_flight_.size()) < config_.max_steps_in_flight)) return launches;
    scheduler.complete(in_flight_.front().plan, std::move(in_flight_.front().result));
    in_flight_.pop_front();
    collect();
    check_pages();
    return true;
  }

  void execute(StepPlan plan) {
    StepResult result;
    for (size_t r = 0; r < plan.ranks.size(); ++r) result.ranks.push_back(execute(ranks_[r], plan.ranks[r]));
    std::set<uint64_t> seen;
    for (const RankStepPlan& rank : plan.ranks)
      for (const Chunk& chunk : rank.chunks)
        EXPECT_TRUE(seen.insert(chunk.seq).second) << "a sequence twice in one step";
    in_flight_.push_back({std::move(plan), std::move(result)});
  }

  void run(int limit = 10000) {
    while (has_work()) {
      ASSERT_TRUE(step()) << "work that nothing advances";
      ASSERT_GT(--limit, 0) << "no end";
    }
  }

  void collect() {
    for (Emission& e : scheduler.take_emissions()) {
      Answer& a = answers[e.handle];
      EXPECT_EQ(a.finish, FinishReason::kNone) << "an output after the last";
      for (auto& t : e.output.tokens) a.ids.push_back(t.id);
      for (auto& t : e.output.prompt_tokens) a.prompt_logprobs.push_back(t.id);
      a.finish = e.output.finish;
      a.error = e.output.error;
      a.num_cached = e.output.num_cached_tokens;
      a.stop_token = e.output.stop_token;
    }
  }

  Scheduler scheduler;
  std::map<uint64_t, Answer> answers;
  std::function<bool(const std::vector<int32_t>&)> breaks;  // texts whose sampling fails

 private:
  struct PlayedRank {
    explicit PlayedRank(const SchedulerConfig& config)
        : page_size(config.page_size),
          cache(size_t(config.num_pages * config.page_size), -1),
          mirrors(config.num_pages, config.page_size, config.vocab_size) {}
    int32_t& at(const SequenceMirror& mirror, int position) {
      return cache.at(size_t(mirror.pages.at(size_t(position / page_size)) * page_size + position % page_size));
    }
    int page_size;
    std::vector<int32_t> cache;  // [num_pages * page_size]
    SequenceMirrors mirrors;
    std::vector<int32_t> sampled;  // by the last step, by row of logits
  };

  RankStepResult execute(PlayedRank& rank, const RankStepPlan& plan) {
    check_limits(plan);
    const ChunkMirrors mirrors = rank.mirrors.apply(plan);
    EXPECT_LE(rank.mirrors.size(), config_.max_seqs_per_rank());
    for (size_t c = 0; c < mirrors.size(); ++c)
      for (int i = plan.chunks[c].begin; i < plan.chunks[c].end(); ++i) {
        const int32_t id = plan.chunks[c].token_at(i);
        rank.at(*mirrors[c], i) = id < 0 ? rank.sampled.at(size_t(-1 - id)) : id;
      }
    rank.sampled.clear();
    RankStepResult result;
    for (size_t c = 0; c < mirrors.size(); ++c) {
      const Chunk& chunk = plan.chunks[c];
      result.chunks.push_back(read(rank, *mirrors[c], chunk));
      rank.sampled.resize(rank.sampled.size() + size_t(chunk.num_logits()), -1);
      if (chunk.sample) rank.sampled.back() = result.chunks.back().tokens.at(0).id;
    }
    return result;
  }

  void check_limits(const RankStepPlan& plan) {
    int tokens = 0, prompt_logits = 0, logits = 0;
    for (const Chunk& c : plan.chunks) {
      EXPECT_GT(c.num_tokens(), 0);
      EXPECT_TRUE(c.prompt_logits_begin >= c.begin && c.prompt_logits_end <= c.end());
      tokens += c.num_tokens();
      prompt_logits += c.num_prompt_logits();
      logits += c.num_logits();
    }
    EXPECT_LE(tokens, config_.max_num_batched_tokens);
    EXPECT_LE(prompt_logits, config_.max_prompt_logits);
    EXPECT_LE(logits, config_.max_logits_per_rank());
    EXPECT_LE(int(plan.chunks.size()), config_.max_seqs_per_rank());
  }

  ChunkResult read(PlayedRank& rank, const SequenceMirror& mirror, const Chunk& chunk) {
    const GenerateRequest& request = requests_.at(chunk.seq);
    std::vector<int32_t> text;
    for (int i = 0; i < chunk.end(); ++i) text.push_back(rank.at(mirror, i));
    // The cache holds the prompt and the known output; at most one token after them is the device's own.
    std::vector<int32_t> known = request.prompt_ids;
    EXPECT_EQ(mirror.start.num_prompt_tokens, int(known.size()));
    EXPECT_EQ(mirror.start.sampling, request.sampling);
    known.insert(known.end(), mirror.output_ids.begin(), mirror.output_ids.end());
    if (known.size() > text.size()) known.resize(text.size());
    EXPECT_LE(int(text.size() - known.size()), config_.max_steps_in_flight - 1);
    EXPECT_EQ(std::vector(text.begin(), text.begin() + long(known.size())), known) << "the cache holds another text";
    ChunkResult result;
    for (int i = chunk.prompt_logits_begin; i < chunk.prompt_logits_end; ++i)
      result.prompt_logprobs.push_back({.id = chunk.token_at(i + 1)});
    if (chunk.sample) result.tokens = {{.id = next_token(text, mirror.start.sampling.seed)}};
    if (breaks && breaks(text)) result.error = Error(Code::kInternal, "broken row");
    return result;
  }

  void check_pages() {
    for (int r = 0; r < config_.num_ranks; ++r) {
      const PagePool& pool = scheduler.pool(r);
      EXPECT_EQ(pool.num_used() + pool.num_cached() + pool.num_free(), config_.num_pages);
    }
    const EngineStats s = scheduler.stats();
    if (s.num_running == 0) {
      EXPECT_EQ(s.kv_pages_used, 0);
    }
    EXPECT_LE(s.num_running, config_.max_num_seqs);
  }

  const SchedulerConfig config_;
  std::vector<PlayedRank> ranks_;
  std::map<uint64_t, GenerateRequest> requests_;
  struct InFlight {
    StepPlan plan;
    StepResult result;
  };
  std::deque<InFlight> in_flight_;
  uint64_t next_handle_ = 1;
};

std::vector<int32_t> prompt_of(int n, int32_t first = 10) {
  std::vector<int32_t> ids;
  for (int i = 0; i < n; ++i) ids.push_back((first + i) % kVocab);
  return ids;
}

TEST(Scheduler, ChunksALongPrompt) {
  Player p(small_config());
  const auto r = request(prompt_of(36), 2);
  const uint64_t h = p.submit(r);
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(p.step());
  EXPECT_TRUE(p.answers[h].ids.empty()) << "32 of 36 tokens computed";
  p.step();
  EXPECT_EQ(p.answers[h].ids.size(), 1u);
  p.run();
  EXPECT_EQ(p.answers[h].ids, expected_answer(r, small_config()).ids);
}

TEST(Scheduler, DecodesGoBeforePrefills) {
  Player p(small_config());
  auto early = request(prompt_of(3), 30);
  early.sampling.ignore_eos = true;
  p.submit(early);
  p.step();
  p.submit(request(prompt_of(30, 20), 3));
  const StepPlan plan = p.scheduler.plan({});
  ASSERT_EQ(plan.ranks[0].chunks.size(), 2u);
  EXPECT_EQ(plan.ranks[0].chunks[0].num_tokens(), 1);
  EXPECT_EQ(plan.ranks[0].chunks[1].num_tokens(), 15) << "the rest of the budget";
  p.scheduler.end_all(FinishReason::kCancelled, "");
}

TEST(Scheduler, ReusesAPrefixButComputesTheLastToken) {
  Player p(small_config());
  const auto r = request(prompt_of(16), 2);
  const uint64_t cold = p.submit(r);
  p.run();
  const uint64_t warm = p.submit(r);
  p.run();
  EXPECT_EQ(p.answers[cold].num_cached, 0);
  EXPECT_EQ(p.answers[warm].num_cached, 12) << "four full pages of four; the last one is computed again";
  EXPECT_EQ(p.answers[warm].ids, p.answers[cold].ids);
  EXPECT_EQ(p.scheduler.stats().prefix_cache_hits, 12);
  EXPECT_EQ(p.scheduler.stats().prefix_cache_queries, 32);
  p.scheduler.flush_prefix_cache();
  EXPECT_EQ(p.scheduler.stats().kv_pages_cached, 0);
}

TEST(Scheduler, GeneratedTokensAreCachedToo) {
  Player p(small_config());
  auto r = request(prompt_of(6), 12);
  r.sampling.ignore_eos = true;
  const uint64_t first = p.submit(r);
  p.run();
  auto next_turn = r;
  next_turn.prompt_ids.insert(next_turn.prompt_ids.end(), p.answers[first].ids.begin(), p.answers[first].ids.end());
  next_turn.prompt_ids.push_back(5);
  const uint64_t second = p.submit(next_turn);
  p.run();
  EXPECT_EQ(p.answers[second].num_cached, 16) << "17 of 18 tokens were computed: four pages";
}

TEST(Scheduler, PromptLogprobsReadNoCacheAndCoverThePromptOnce) {
  Player p(small_config());
  p.submit(request(prompt_of(20), 1));
  p.run();
  auto r = request(prompt_of(20), 3);
  r.sampling.prompt_logprobs = true;
  const uint64_t h = p.submit(r);
  p.run();
  EXPECT_EQ(p.answers[h].num_cached, 0);
  EXPECT_EQ(p.answers[h].prompt_logprobs, expected_answer(r, small_config()).prompt_logprobs);
  EXPECT_EQ(p.answers[h].ids, expected_answer(r, small_config()).ids);
}

TEST(Scheduler, MaxTokensZeroScoresThePromptOnly) {
  Player p(small_config());
  auto r = request(prompt_of(9), 0);
  r.sampling.prompt_logprobs = true;
  const uint64_t h = p.submit(r);
  p.run();
  EXPECT_TRUE(p.answers[h].ids.empty());
  EXPECT_EQ(p.answers[h].prompt_logprobs.size(), 8u);
  EXPECT_EQ(p.answers[h].finish, FinishReason::kLength);
}

TEST(Scheduler, StopsForEosStopIdsAndLength) {
  const auto config = small_config();
  Player p(config);
  GenerateRequest r = request(prompt_of(5), 35);
  r.sampling.ignore_eos = true;
  const auto all = expected_answer(r, config).ids;
  const uint64_t longest = p.submit(r);
  r.sampling.stop_token_ids = {all[3]};
  const uint64_t stopped = p.submit(r);
  p.run();
  EXPECT_EQ(p.answers[longest].ids.size(), 35u) << "prompt and answer fill the context";
  EXPECT_EQ(p.answers[longest].finish, FinishReason::kLength);
  EXPECT_EQ(p.answers[stopped].finish, FinishReason::kStop);
  EXPECT_EQ(p.answers[stopped].stop_token, all[3]);
  EXPECT_LE(p.answers[stopped].ids.size(), 4u);
}

TEST(Scheduler, PreemptsTheYoungestWhenPagesRunOutAndRepeatsNothing) {
  auto config = small_config();
  config.num_pages = 11;  // one sequence of 40 tokens and a little
  Player p(config);
  std::vector<GenerateRequest> requests;
  std::vector<uint64_t> handles;
  for (int i = 0; i < 4; ++i) {
    auto r = request(prompt_of(4, int32_t(3 * i)), 30, uint64_t(i));
    r.sampling.ignore_eos = true;
    r.sampling.prompt_logprobs = i % 2;
    requests.push_back(r);
    handles.push_back(p.submit(r));
  }
  p.run();
  EXPECT_GT(p.scheduler.stats().num_preemptions_total, 0);
  for (size_t i = 0; i < requests.size(); ++i) {
    const Answer expected = expected_answer(requests[i], config);
    EXPECT_EQ(p.answers[handles[i]].ids, expected.ids) << i;
    EXPECT_EQ(p.answers[handles[i]].prompt_logprobs, expected.prompt_logprobs) << i;
  }
  EXPECT_EQ(p.scheduler.stats().generation_tokens_total, 120);
  EXPECT_EQ(p.scheduler.stats().prompt_tokens_total, 16);
}

TEST(Scheduler, CancelInEveryPhaseReturnsThePages) {
  for (int steps = 0; steps < 12; ++steps) {
    Player p(small_config());
    auto r = request(prompt_of(30), 9);
    r.sampling.ignore_eos = true;
    const uint64_t h = p.submit(r);
    for (int i = 0; i < steps && p.scheduler.has_work(); ++i) p.step();
    p.scheduler.cancel(h);
    p.scheduler.cancel(h);
    p.scheduler.cancel(999);
    p.collect();
    EXPECT_EQ(p.answers[h].finish, steps < 10 ? FinishReason::kCancelled : FinishReason::kLength) << steps;
    EXPECT_FALSE(p.scheduler.has_work());
    EXPECT_EQ(p.scheduler.stats().kv_pages_used, 0);
    p.scheduler.flush_prefix_cache();
    EXPECT_EQ(p.scheduler.pool(0).num_free(), 16);
  }
}

TEST(Scheduler, DeadlineEndsWaitingRequestsOnly) {
  auto config = small_config();
  config.max_num_seqs = 1;
  Player p(config);
  const TimePoint start{};
  auto r = request(prompt_of(4), 20);
  r.sampling.ignore_eos = true;
  r.deadline = start + std::chrono::seconds(5);
  const uint64_t running = p.submit(r), waiting = p.submit(r);
  p.step(start);
  p.step(start + std::chrono::seconds(5));
  EXPECT_EQ(p.answers[waiting].finish, FinishReason::kDeadline);
  EXPECT_EQ(p.answers[running].finish, FinishReason::kNone);
  p.run();
  EXPECT_EQ(p.answers[running].ids.size(), 20u);
}

TEST(Scheduler, ABrokenRowEndsItsRequestAlone) {
  Player p(small_config());
  auto r = request(prompt_of(4), 10);
  r.sampling.ignore_eos = true;
  const uint64_t good = p.submit(r);
  r.prompt_ids = prompt_of(4, 30);
  const uint64_t bad = p.submit(r);
  p.breaks = [](const std::vector<int32_t>& text) { return text[0] == 30 && text.size() == 7; };
  p.run();
  EXPECT_EQ(p.answers[bad].finish, FinishReason::kError);
  EXPECT_EQ(p.answers[bad].error, "broken row");
  EXPECT_EQ(p.answers[bad].ids.size(), 3u);
  EXPECT_EQ(p.answers[good].ids.size(), 10u);
}

SchedulerConfig overlapping_config() {
  auto config = small_config();
  config.max_steps_in_flight = 2;
  return config;
}

TEST(Scheduler, WithTwoStepsInFlightASequenceGoesOnFromATokenThatIsNotKnown) {
  Player p(overlapping_config());
  auto r = request(prompt_of(3), 9);
  r.sampling.ignore_eos = true;
  const uint64_t h = p.submit(r);
  ASSERT_TRUE(p.step());
  EXPECT_TRUE(p.answers[h].ids.empty()) << "the first step is launched, nothing collected";
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(p.step());
    EXPECT_EQ(p.answers[h].ids.size(), size_t(i + 1)) << "one token per step";
  }
  ASSERT_TRUE(p.step());
  EXPECT_EQ(p.answers[h].ids, expected_answer(r, small_config()).ids);
  EXPECT_EQ(p.scheduler.stats().num_steps_total, 9) << "no step after the one that gives the ninth token";
  EXPECT_FALSE(p.has_work());
}

TEST(Scheduler, WhatASequenceComputedBeyondItsEndIsDropped) {
  Player p(overlapping_config());
  auto r = request(prompt_of(3), 30);
  r.sampling.ignore_eos = true;
  r.sampling.stop_token_ids = {expected_answer(r, small_config()).ids[4]};
  const uint64_t h = p.submit(r);
  p.run();
  EXPECT_EQ(p.answers[h].finish, FinishReason::kStop);
  EXPECT_LE(p.answers[h].ids.size(), 5u);
  EXPECT_EQ(p.scheduler.stats().generation_tokens_total, int64_t(p.answers[h].ids.size()));
  EXPECT_EQ(p.scheduler.stats().num_steps_total, int64_t(p.answers[h].ids.size()) + 1) << "one step too many";
}

TEST(Scheduler, CancelWithStepsInFlightReturnsThePages) {
  for (int steps = 0; steps < 12; ++steps) {
    Player p(overlapping_config());
    auto r = request(prompt_of(30), 9);
    r.sampling.ignore_eos = true;
    const uint64_t h = p.submit(r);
    for (int i = 0; i < steps; ++i) p.step();
    p.scheduler.cancel(h);
    p.collect();
    EXPECT_EQ(p.answers[h].finish, steps < 11 ? FinishReason::kCancelled : FinishReason::kLength) << steps;
    EXPECT_EQ(p.scheduler.stats().kv_pages_used, 0);
    const uint64_t next = p.submit(request(prompt_of(20, 3), 4));  // takes the pages while they are still written
    p.run();
    EXPECT_EQ(p.answers[next].ids, expected_answer(request(prompt_of(20, 3), 4), small_config()).ids);
    p.scheduler.flush_prefix_cache();
    EXPECT_EQ(p.scheduler.pool(0).num_free(), 16);
  }
}

TEST(Scheduler, SpreadsOverRanksAndFollowsPrefixes) {
  auto config = small_config();
  config.num_ranks = 2;
  auto a = request(prompt_of(12), 4), b = request(prompt_of(12, 30), 4);
  a.sampling.ignore_eos = b.sampling.ignore_eos = true;
  {
    Player two(config);
    two.submit(a);
    two.submit(b);
    const StepPlan plan = two.scheduler.plan({});
    EXPECT_EQ(plan.ranks[0].chunks.size(), 1u);
    EXPECT_EQ(plan.ranks[1].chunks.size(), 1u);
  }
  Player p(config);
  p.submit(b);
  p.run();  // on rank 0, the first of equals
  a.prompt_ids = prompt_of(30);
  p.submit(a);
  p.step();
  const uint64_t again = p.submit(b);
  p.step();
  p.run();
  EXPECT_EQ(p.answers[again].num_cached, 0) << "rank 0 is much fuller: a short prefix is not worth it";
  const uint64_t alone = p.submit(a);
  p.run();
  EXPECT_EQ(p.answers[alone].num_cached, 28) << "an idle rank with the prefix is taken";
}

TEST(Scheduler, RefusesWhatCanNeverRun) {
  const auto config = small_config();
  const auto code = [&](GenerateRequest r, SchedulerConfig c) -> std::string {
    try {
      check_request(r, c);
      return "accepted";
    } catch (const Error& e) {
      return fmt::format("{} {}", int(e.code()), e.param());
    }
  };
  const std::string invalid = fmt::format("{} prompt", int(Code::kInvalidArgument));
  EXPECT_EQ(code(request({}, 1), config), invalid);
  EXPECT_EQ(code(request({kVocab}, 1), config), invalid);
  EXPECT_EQ(code(request({-1}, 1), config), invalid);
  EXPECT_EQ(code(request(prompt_of(40), 1), config), invalid);
  EXPECT_EQ(code(request(prompt_of(39), 1), config), "accepted");
  EXPECT_EQ(code(request(prompt_of(3), 2147483647), config), "accepted") << "the context bounds it";
  auto tiny = config;
  tiny.num_pages = 3;
  EXPECT_EQ(code(request(prompt_of(3), 10), tiny), fmt::format("{} max_tokens", int(Code::kResourceExhausted)));
}

// Everything at once, at random; every answer must be the one the request would get alone.
TEST(Scheduler, RandomLifeGivesEveryRequestItsOwnAnswer) {
  int64_t preemptions = 0, hits = 0;
  for (unsigned seed = 0; seed < 80; ++seed) {
    std::mt19937 rng(seed);
    auto config = small_config();
    config.num_ranks = 1 + int(rng() % 3);
    if (seed >= 60) config.num_ranks = 4 << seed % 2;
    config.num_pages = 10 + int(rng() % 12);
    config.max_num_seqs = 1 + int(rng() % 8);
    config.max_num_batched_tokens = std::max(config.max_seqs_per_rank(), 1 + int(rng() % 20));
    config.max_prompt_logits = 1 + int(rng() % 6);
    config.enable_prefix_caching = rng() % 4 != 0;
    config.max_steps_in_flight = 1 + int(seed / 2 % 2);
    Player p(config);
    std::map<uint64_t, GenerateRequest> sent;
    std::set<uint64_t> cancelled;
    for (int step = 0; step < 300; ++step) {
      if (rng() % 3 == 0) {
        auto r = request({}, int(rng() % 30), rng() % 3);
        for (unsigned n = 1 + rng() % 30; n > 0; --n) r.prompt_ids.push_back(int32_t(2 + (rng() % 16 == 0)));
        r.sampling.prompt_logprobs = rng() % 5 == 0;
        r.sampling.ignore_eos = rng() % 2;
        if (rng() % 6 == 0) r.cache_salt = "tenant";
        sent[p.submit(r)] = r;
      }
      if (rng() % 20 == 0 && !sent.empty()) {
        const auto victim = std::next(sent.begin(), long(rng() % sent.size()))->first;
        if (p.answers[victim].finish == FinishReason::kNone) {
          p.scheduler.cancel(victim);
          cancelled.insert(victim);
        }
      }
      if (rng() % 40 == 0) p.scheduler.flush_prefix_cache();
      const bool had_work = p.has_work();
      ASSERT_EQ(p.step(), had_work) << "work that nothing advances";
    }
    p.run();
    for (auto& [h, r] : sent) {
      const Answer expected = expected_answer(r, config);
      const Answer& got = p.answers[h];
      if (cancelled.count(h)) {
        EXPECT_EQ(got.finish, FinishReason::kCancelled);
        ASSERT_LE(got.ids.size(), expected.ids.size());
        EXPECT_TRUE(std::equal(got.ids.begin(), got.ids.end(), expected.ids.begin()));
        continue;
      }
      ASSERT_EQ(got.ids, expected.ids) << "seed " << seed << " request " << h;
      ASSERT_EQ(got.prompt_logprobs, expected.prompt_logprobs) << "seed " << seed << " request " << h;
      ASSERT_EQ(got.finish, expected.finish);
      ASSERT_EQ(got.error, "");
    }
    EXPECT_EQ(p.scheduler.stats().kv_pages_used, 0);
    preemptions += p.scheduler.stats().num_preemptions_total;
    hits += p.scheduler.stats().prefix_cache_hits;
  }
  EXPECT_GT(preemptions, 100) << "the test must reach preemption";
  EXPECT_GT(hits, 1000) << "and prefix hits";
}

}  // namespace
}  // namespace moectl
