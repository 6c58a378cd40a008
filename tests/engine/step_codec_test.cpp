// Plans and results as bytes: everything that is encoded comes back, nothing malformed gets through, and an engine
// whose plans and results all travel as bytes gives the same answers.
#include "core/engine/step_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>

#include "core/base/error.h"
#include "tests/engine/engine_client.h"
#include "tests/harness/tampered_engine.h"

namespace moectl {
namespace {

class Random {
 public:
  explicit Random(unsigned seed) : rng_(seed) {}
  int below(int n) { return int(rng_() % unsigned(n)); }
  bool one_in(int n) { return below(n) == 0; }
  uint64_t bits() { return rng_(); }
  float real() { return float(below(2001) - 1000) / 128.0f; }
  std::vector<int32_t> ids(int max_count) {
    std::vector<int32_t> ids(size_t(below(max_count + 1)));
    for (int32_t& id : ids) id = below(200000);
    return ids;
  }
  std::string text() { return std::string(size_t(below(30)), char('a' + below(26))); }

  SamplingParams sampling() {
    SamplingParams p{.temperature = real(),
                     .top_k = below(100) - 1,
                     .top_p = real(),
                     .min_p = real(),
                     .seed = bits(),
                     .presence_penalty = real(),
                     .frequency_penalty = real(),
                     .repetition_penalty = real(),
                     .max_tokens = below(1 << 30),
                     .min_tokens = below(1 << 20),
                     .ignore_eos = one_in(2),
                     .stop_token_ids = ids(4),
                     .num_logprobs = below(22) - 1,
                     .prompt_logprobs = one_in(2)};
    for (const int32_t id : ids(5)) p.logit_bias.emplace_back(id, real());
    return p;
  }

  Chunk chunk() {
    Chunk c{.seq = bits(), .begin = below(100000), .token_ids = ids(40)};
    c.token_ids.push_back(one_in(3) ? -1 - below(500) : below(200000));
    if (one_in(3)) {
      c.num_drafts = 1 + below(4);
      for (int i = 0; i < c.num_drafts; ++i) c.token_ids.push_back(below(200000));
    }
    c.next_token_id = below(200000) - 1;
    c.sample = one_in(2);
    c.prompt_logits_begin = c.begin + below(c.num_tokens() + 1);
    c.prompt_logits_end = c.prompt_logits_begin + below(c.end() - c.prompt_logits_begin + 1);
    c.mtp_end = c.begin + below(c.num_tokens() + 1);
    if (one_in(2)) c.start = {.sampling = sampling(), .num_prompt_tokens = 1 + below(1000)};
    if (c.start && one_in(2)) c.start->prompt_ids.assign(size_t(c.start->num_prompt_tokens), below(200000));
    if (c.start && one_in(2)) c.start->eos_token_ids = ids(3);
    c.num_old_pages = below(1000);
    c.new_pages = ids(10);
    c.new_output_ids = ids(3);
    return c;
  }

  RankStepPlan plan() {
    RankStepPlan plan;
    for (int n = below(4); n > 0; --n) plan.ended.push_back(bits());
    for (int n = below(6); n > 0; --n) plan.chunks.push_back(chunk());
    plan.compute = !plan.chunks.empty();
    plan.read_expert_load = one_in(2);
    return plan;
  }

  GenerateOutput::Token token() {
    GenerateOutput::Token token{.id = below(200000), .logprob = real()};
    for (int n = below(4); n > 0; --n) token.top.push_back({below(200000), real()});
    return token;
  }

  ExpertLoad expert_load() {
    ExpertLoad load;
    for (int n = below(4); n > 0; --n) {
      ExpertLoad::Layer& layer = load.layers.emplace_back();
      layer.layer_idx = below(100);
      for (int i = below(20); i > 0; --i) layer.experts.push_back(int64_t(bits() >> 1));
      for (int i = below(5); i > 0; --i) layer.ranks.push_back(int64_t(bits() >> 1));
    }
    return load;
  }

  RankStepResult result() {
    RankStepResult result;
    for (int n = below(6); n > 0; --n) {
      ChunkResult& r = result.chunks.emplace_back();
      for (int i = below(4); i > 0; --i) r.prompt_logprobs.push_back(token());
      for (int i = below(4); i > 0; --i) r.tokens.push_back(token());
      if (one_in(4)) r.error.emplace(Code(below(int(Code::kInternal) + 1)), text(), text());
    }
    result.busy_seconds = real();
    result.idle_seconds = real();
    if (one_in(3)) result.expert_load = expert_load();
    if (one_in(4)) result.failure = {.what = text(), .by_peer = one_in(2)};
    return result;
  }

 private:
  std::mt19937_64 rng_;
};

constexpr unsigned kSeeds = 300;

void expect_equal(const RankStepResult& a, const RankStepResult& b) {
  ASSERT_EQ(a.chunks.size(), b.chunks.size());
  for (size_t i = 0; i < a.chunks.size(); ++i) {
    EXPECT_EQ(a.chunks[i].prompt_logprobs, b.chunks[i].prompt_logprobs);
    EXPECT_EQ(a.chunks[i].tokens, b.chunks[i].tokens);
    const auto& x = a.chunks[i].error;
    const auto& y = b.chunks[i].error;
    ASSERT_EQ(x.has_value(), y.has_value());
    if (!x) continue;
    EXPECT_EQ(x->code(), y->code());
    EXPECT_STREQ(x->what(), y->what());
    EXPECT_EQ(x->param(), y->param());
  }
  EXPECT_EQ(a.busy_seconds, b.busy_seconds);
  EXPECT_EQ(a.idle_seconds, b.idle_seconds);
  EXPECT_EQ(a.expert_load, b.expert_load);
  ASSERT_EQ(a.failure.has_value(), b.failure.has_value());
  if (!a.failure) return;
  EXPECT_EQ(a.failure->what, b.failure->what);
  EXPECT_EQ(a.failure->by_peer, b.failure->by_peer);
}

TEST(StepCodec, RoundTrip) {
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    Random random(seed);
    const RankStepPlan plan = random.plan();
    EXPECT_EQ(decode_step_plan(encode(plan)), plan) << seed;
    const RankStepResult result = random.result();
    expect_equal(decode_step_result(encode(result)), result);
  }
}

bool refused(auto&& decode) {
  try {
    decode();
    return false;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kBadData) << e.what();
    return true;
  }
}

TEST(StepCodec, EveryTruncationAndExtensionIsRefused) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Random random(seed);
    std::vector<std::byte> plan = encode(random.plan()), result = encode(random.result());
    for (size_t n = 0; n < plan.size(); ++n)
      ASSERT_TRUE(refused([&] { decode_step_plan(std::span(plan).first(n)); })) << seed << " " << n;
    for (size_t n = 0; n < result.size(); ++n)
      ASSERT_TRUE(refused([&] { decode_step_result(std::span(result).first(n)); })) << seed << " " << n;
    EXPECT_TRUE(refused([&] { decode_step_plan(result); })) << "a result is no plan";
    EXPECT_TRUE(refused([&] { decode_step_result(plan); })) << "a plan is no result";
    plan.push_back({});
    result.push_back({});
    EXPECT_TRUE(refused([&] { decode_step_plan(plan); }));
    EXPECT_TRUE(refused([&] { decode_step_result(result); }));
  }
}

// A cut body under a header that states its new size: the fields themselves must notice.
TEST(StepCodec, AShorterBodyIsRefused) {
  Random random(1);
  RankStepPlan plan = random.plan();
  plan.chunks.push_back(random.chunk());
  const std::vector<std::byte> whole = encode(plan);
  for (size_t n = 12; n < whole.size(); ++n) {
    std::vector<std::byte> cut(whole.begin(), whole.begin() + long(n));
    const auto body_bytes = uint32_t(n - 12);
    std::memcpy(cut.data() + 8, &body_bytes, sizeof body_bytes);
    ASSERT_TRUE(refused([&] { decode_step_plan(cut); })) << n;
  }
}

// Whatever is flipped, the decoder either refuses or returns a plan that encodes to the same bytes: it read all of it.
TEST(StepCodec, FlippedBytesNeverCrash) {
  int refusals = 0, accepted = 0;
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    Random random(seed);
    const std::vector<std::byte> plan = encode(random.plan()), result = encode(random.result());
    for (int i = 0; i < 40; ++i) {
      for (const bool is_plan : {true, false}) {
        std::vector<std::byte> bytes = is_plan ? plan : result;
        for (int flips = 1 + random.below(3); flips > 0; --flips)
          bytes[size_t(random.below(int(bytes.size())))] ^= std::byte(1 + random.below(255));
        const bool bad = refused(
            [&] { ASSERT_EQ(is_plan ? encode(decode_step_plan(bytes)) : encode(decode_step_result(bytes)), bytes); });
        ++(bad ? refusals : accepted);
      }
    }
  }
  EXPECT_GT(refusals, 1000);
  EXPECT_GT(accepted, 1000) << "most bytes are numbers of which any value is one";
}

TEST(StepCodec, InconsistentChunksAreRefused) {
  const Chunk good{.seq = 1,
                   .begin = 5,
                   .token_ids = {3, 4, 7},
                   .prompt_logits_begin = 6,
                   .prompt_logits_end = 8,
                   .mtp_end = 7,
                   .start = SequenceStart{.num_prompt_tokens = 2, .prompt_ids = {1, 2}},
                   .new_pages = {0}};
  const auto check = [&](auto change) {
    Chunk chunk = good;
    change(chunk);
    return refused([&] { decode_step_plan(encode(RankStepPlan{.chunks = {chunk}})); });
  };
  EXPECT_FALSE(check([](Chunk&) {}));
  EXPECT_FALSE(check([](Chunk& c) { c.token_ids.back() = -20; })) << "a row of the step before";
  EXPECT_TRUE(check([](Chunk& c) { c.token_ids.front() = -20; }));
  EXPECT_TRUE(check([](Chunk& c) { c.token_ids.clear(); }));
  EXPECT_TRUE(check([](Chunk& c) { c.begin = -1; }));
  EXPECT_TRUE(check([](Chunk& c) { c.begin = 2147483645; })) << "its end is not representable";
  EXPECT_TRUE(check([](Chunk& c) { c.num_drafts = -1; }));
  EXPECT_TRUE(check([](Chunk& c) { c.num_drafts = 3; })) << "drafts follow a token";
  EXPECT_TRUE(check([](Chunk& c) { c.next_token_id = -2; }));
  EXPECT_TRUE(check([](Chunk& c) { c.prompt_logits_begin = 4; }));
  EXPECT_TRUE(check([](Chunk& c) { c.prompt_logits_begin = 9; }));
  EXPECT_TRUE(check([](Chunk& c) { c.prompt_logits_end = 9; }));
  EXPECT_TRUE(check([](Chunk& c) { c.mtp_end = 4; }));
  EXPECT_TRUE(check([](Chunk& c) { c.mtp_end = 9; }));
  EXPECT_TRUE(check([](Chunk& c) { c.num_old_pages = -1; }));
  EXPECT_TRUE(check([](Chunk& c) { c.new_pages = {-1}; }));
  EXPECT_TRUE(check([](Chunk& c) { c.new_output_ids = {-1}; }));
  EXPECT_TRUE(check([](Chunk& c) { c.start->num_prompt_tokens = 0; }));
  EXPECT_TRUE(check([](Chunk& c) { c.start->prompt_ids.pop_back(); }));
  EXPECT_TRUE(check([](Chunk& c) { c.start->prompt_ids[0] = -1; }));
  EXPECT_TRUE(check([](Chunk& c) { c.start->eos_token_ids = {-1}; }));
}

TEST(StepCodec, InconsistentLoadsAreRefused) {
  EXPECT_TRUE(
      refused([] { decode_step_plan(encode(RankStepPlan{.chunks = {Chunk{.token_ids = {1}}}, .compute = false})); }));
  const auto check = [](ExpertLoad::Layer layer) {
    return refused([&] { decode_step_result(encode(RankStepResult{.expert_load = ExpertLoad{{layer}}})); });
  };
  EXPECT_FALSE(check({3, {0, 5}, {5}}));
  EXPECT_TRUE(check({-1, {0, 5}, {5}}));
  EXPECT_TRUE(check({3, {0, -5}, {5}}));
  EXPECT_TRUE(check({3, {0, 5}, {-5}}));
}

// Error::what() would end there: such a message could not be encoded again.
TEST(StepCodec, AnErrorMessageWithANulIsRefused) {
  RankStepResult result;
  result.chunks.emplace_back().error.emplace(Code::kInternal, "xyz");
  std::vector<std::byte> bytes = encode(result);
  const auto y = std::ranges::find(bytes, std::byte('y'));
  ASSERT_NE(y, bytes.end());
  *y = {};
  EXPECT_TRUE(refused([&] { decode_step_result(bytes); }));
}

// A rank whose plans and results travel as bytes.
class EncodedRank final : public RankHandle {
 public:
  EncodedRank(std::unique_ptr<RankHandle> rank, std::atomic<int64_t>& num_bytes)
      : rank_(std::move(rank)), num_bytes_(num_bytes) {}
  std::optional<RankFailure> wait_until_built() override { return rank_->wait_until_built(); }
  void launch(RankStepPlan plan) override { rank_->launch(decode_step_plan(counted(encode(plan)))); }
  std::optional<RankStepResult> wait(std::chrono::milliseconds limit) override {
    const auto result = rank_->wait(limit);
    return result ? std::optional(decode_step_result(counted(encode(*result)))) : std::nullopt;
  }
  void stop() override { rank_->stop(); }
  bool wait_until_stopped(std::chrono::milliseconds limit) override { return rank_->wait_until_stopped(limit); }
  KvPool kv_pool() const override { return rank_->kv_pool(); }
  void abort(const std::string& reason) override { rank_->abort(reason); }
  std::string name() const override { return rank_->name(); }
  int64_t num_layers_done() const override { return rank_->num_layers_done(); }
  std::string activity() const override { return rank_->activity(); }

 private:
  std::vector<std::byte> counted(std::vector<std::byte> bytes) {
    num_bytes_ += int64_t(bytes.size());
    return bytes;
  }
  const std::unique_ptr<RankHandle> rank_;
  std::atomic<int64_t>& num_bytes_;
};

std::vector<GenerateRequest> requests() {
  std::vector<GenerateRequest> all;
  for (int i = 0; i < 10; ++i)
    all.push_back({.prompt_ids = test::long_prompt(60 + 23 * i),
                   .sampling = {.temperature = i % 3 == 0 ? 0.0f : 1.1f,
                                .top_p = i % 4 == 1 ? 0.9f : 1.0f,
                                .seed = uint64_t(100 + i),
                                .presence_penalty = i % 5 == 2 ? 0.5f : 0.0f,
                                .repetition_penalty = i % 2 == 1 ? 1.2f : 1.0f,
                                .logit_bias = i % 4 == 3 ? std::vector<std::pair<int32_t, float>>{{7, 2.0f}}
                                                         : std::vector<std::pair<int32_t, float>>{},
                                .max_tokens = 80 + 5 * i,
                                .min_tokens = i % 3 == 1 ? 20 : 0,
                                .ignore_eos = i % 2 == 0,
                                .num_logprobs = i % 4 - 1,
                                .prompt_logprobs = i % 4 == 2}});
  return all;
}

std::vector<test::Answer> answers(Engine& engine) {
  test::Client client(engine);
  std::vector<size_t> sent;
  for (GenerateRequest& r : requests()) sent.push_back(client.send(std::move(r)));
  std::vector<test::Answer> answers;
  for (size_t i : sent) answers.push_back(client.wait(i));
  return answers;
}

TEST(StepCodec, AnEngineOverEncodedStepsGivesTheSameAnswers) {
  for (const int ep_size : {1, 2}) {
    EngineConfig flags = test::demo_config();
    flags.parallelism = expert_parallel(ep_size);
    flags.max_model_len = 512;
    flags.max_num_batched_tokens = 100;
    flags.kv_cache_bytes = int64_t{8} * ep_size * 64 * 7 * 160 * 4;  // pages for one to four of the requests
    const std::vector<test::Answer> expected = answers(*Engine::create(flags));

    std::atomic<int64_t> num_bytes{0};
    test::EngineParts parts = test::engine_parts(flags);
    std::vector<std::unique_ptr<RankHandle>> ranks;
    for (auto& rank : start_rank_workers(parts.config, std::move(parts.ranks)))
      ranks.push_back(std::make_unique<EncodedRank>(std::move(rank), num_bytes));
    const auto engine = start_engine(parts.info(), parts.setup.scheduler, std::move(ranks));
    const std::vector<test::Answer> got = answers(*engine);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(got[i].error, "");
      EXPECT_GE(got[i].ids.size(), 1u);
      EXPECT_TRUE(got[i].same_text(expected[i])) << "EP " << ep_size << ", request " << i;
    }
    const EngineStats stats = test::idle_stats(*engine);
    EXPECT_GT(stats.num_preemptions_total, 0) << "sequences start anew";
    EXPECT_GE(num_bytes, 2 * ep_size * 12 * stats.num_steps_total) << "a header per plan and result at least";
  }
}

}  // namespace
}  // namespace moectl
