// The experts' load: what the engine reports is what the gates chose and what the ranks computed, for every placement;
// it is read at any time without a step that waits for it.
#include "core/engine/expert_load.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <span>

#include "core/model/expert_counts.h"
#include "tests/engine/engine_client.h"
#include "tests/engine/gate.h"
#include "tests/harness/tampered_engine.h"

namespace moectl::test {
namespace {

// ------------------------------------------------------------------------------------------------ arithmetic

TEST(ExpertLoad, BalancednessIsMeanOverMax) {
  EXPECT_EQ(balancedness(std::vector<int64_t>{7, 7, 7}), 1.0);
  EXPECT_EQ(balancedness(std::vector<int64_t>{0, 12, 0, 0}), 0.25);
  EXPECT_EQ(balancedness(std::vector<int64_t>{2, 4, 6}), 4.0 / 6);
  EXPECT_EQ(balancedness(std::vector<int64_t>{0, 0}), std::nullopt);
}

TEST(ExpertLoad, LayersWithoutTokensDoNotCount) {
  const ExpertLoad load = {{{3, {1, 1}, {2}}, {5, {4, 0}, {4}}, {9, {0, 0}, {0}}}};
  const auto experts = load_balance(load, &ExpertLoad::Layer::experts);
  ASSERT_TRUE(experts);
  EXPECT_EQ(experts->mean, 0.75);
  EXPECT_EQ(experts->lowest, 0.5);
  EXPECT_EQ(experts->lowest_layer, 5);
  EXPECT_EQ(load_balance(load, &ExpertLoad::Layer::ranks)->lowest, 1.0);
  EXPECT_FALSE(load_balance({{{9, {0, 0}, {0}}}}, &ExpertLoad::Layer::experts));
  EXPECT_FALSE(load_balance({}, &ExpertLoad::Layer::experts));
}

TEST(ExpertLoad, ReplicasAddUpToTheirExpertAndCountForTheirRanks) {
  const ExpertPlacement placement = make_placement(3, 2, 1);  // experts 0, 1 | 2, 0
  ASSERT_EQ(placement.rank, (std::vector<int32_t>{0, 1, 0, 1}));
  const std::vector<int64_t> counts = {1, 10, 100, 1000, 2, 20, 200, 2000};
  const ExpertLoad load = fold_expert_counts(std::vector<int>{4, 7}, placement, counts.data());
  const ExpertLoad expected = {{{4, {11, 100, 1000}, {101, 1010}}, {7, {22, 200, 2000}, {202, 2020}}}};
  EXPECT_EQ(load, expected);
  ExpertLoad sum = load;
  add(sum, load);
  EXPECT_EQ(sum.layers[1].experts, (std::vector<int64_t>{44, 400, 4000}));
  EXPECT_EQ(sum.layers[1].ranks, (std::vector<int64_t>{404, 4040}));
}

// ------------------------------------------------------------------------------------------------ through the engine

// What a rank's gates chose and what its experts computed, by operations that know nothing of the counters.
struct Observed {
  std::vector<std::vector<int64_t>> experts;  // [layer][expert]
  std::vector<int64_t> rows;                  // [layer]
};

class ObservingOps final : public WrappedOps {
 public:
  ObservingOps(std::unique_ptr<Ops> real, size_t num_layers, Observed& observed)
      : WrappedOps(std::move(real)), num_layers_(num_layers), observed_(observed) {
    observed_.experts.resize(num_layers);
    observed_.rows.resize(num_layers);
  }
  void moe_gate(const MoeGateArgs& a, Stream s) override {
    real().moe_gate(a, s);
    layer_ = num_gates_++ % num_layers_;  // a step runs every layer's gate once
    std::vector<int64_t>& counts = observed_.experts[layer_];
    counts.resize(size_t(a.logits.dim(1)));
    for (int64_t i = 0; i < a.expert_idx.size(); ++i) ++counts[size_t(a.expert_idx.data[i])];
  }
  void moe_permute(const MoePermuteArgs& a, Stream s) override {
    real().moe_permute(a, s);
    observed_.rows[layer_] += a.expert_offsets(a.expert_offsets.dim(0) - 1);
  }

 private:
  const size_t num_layers_;
  size_t num_gates_ = 0, layer_ = 0;
  Observed& observed_;
};

ExpertLoad load_of(Engine& engine) {
  const auto promise = std::make_shared<std::promise<ExpertLoad>>();
  engine.read_expert_load([promise](const ExpertLoad& load) { promise->set_value(load); });
  return promise->get_future().get();
}

// Chunked prefill and batched decode; returns the tokens computed.
int64_t run_requests(Engine& engine, int vocab_size) {
  Client client(engine);
  std::vector<size_t> sent;
  int64_t num_tokens = 0;
  for (int n : {1, 2, 30, 64, 65, 150, 7}) {
    GenerateRequest r{.sampling = {.temperature = 0.0f, .max_tokens = 1 + n % 9, .ignore_eos = true}};
    for (int i = 0; i < n; ++i) r.prompt_ids.push_back((i * 37 + n * 11) % vocab_size);
    num_tokens += n + r.sampling.max_tokens - 1;  // the last token is not computed
    sent.push_back(client.send(std::move(r)));
  }
  for (size_t i : sent) EXPECT_EQ(client.wait(i).finish, FinishReason::kLength);
  return num_tokens;
}

struct Case {
  std::string dir;
  Parallelism parallelism;
  std::optional<int> num_redundant;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << fmt::format("{}, TP {} DP {} EP {}, {} redundant experts", c.dir, c.parallelism.tp_size,
                      c.parallelism.dp_size, c.parallelism.ep_size,
                      c.num_redundant ? std::to_string(*c.num_redundant) : "default");
}

class ExpertLoadTest : public testing::TestWithParam<Case> {};

TEST_P(ExpertLoadTest, IsWhatTheGatesChoseAndTheRanksComputed) {
  EngineConfig flags = demo_config();
  flags.model_dir = GetParam().dir;
  flags.parallelism = GetParam().parallelism;
  flags.num_redundant_experts = GetParam().num_redundant;
  flags.max_model_len = 256;
  flags.max_num_batched_tokens = 40;
  flags.enable_prefix_caching = false;
  EngineParts parts = engine_parts(flags);
  const MoeConfig moe = parts.config.moe;
  const std::vector<int> layers =
      moe_layers(parts.config);  // those of the decoder; no step runs the MTP module's experts
  const size_t num_decoder_layers = size_t(std::ranges::lower_bound(layers, parts.config.num_layers) - layers.begin());
  std::vector<Observed> observed(parts.ranks.size());
  for (size_t r = 0; r < observed.size(); ++r)
    parts.ranks[r].ops = std::make_unique<ObservingOps>(std::move(parts.ranks[r].ops), num_decoder_layers, observed[r]);
  auto engine =
      start_engine(parts.info(), parts.setup.scheduler, start_rank_workers(parts.config, std::move(parts.ranks)));
  const int64_t num_tokens = run_requests(*engine, parts.config.vocab_size);
  const ExpertLoad load = load_of(*engine);
  engine.reset();  // joins the ranks: what they observed may be read

  ASSERT_EQ(load.layers.size(), layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    const ExpertLoad::Layer& layer = load.layers[i];
    SCOPED_TRACE(fmt::format("layer {}", layer.layer_idx));
    EXPECT_EQ(layer.layer_idx, layers[i]);
    std::vector<int64_t> experts(size_t(moe.num_experts)), ranks(size_t(flags.parallelism.ep_size));
    // Where TP ranks split the experts, all of them see the group's tokens: the first one's choices count.
    const size_t step = ranks.size() == 1 ? size_t(flags.parallelism.tp_size) : 1;
    for (size_t r = 0; i < num_decoder_layers && r < observed.size(); r += step) {
      for (size_t e = 0; e < experts.size(); ++e) experts[e] += observed[r].experts[i][e];
      ranks[ranks.size() == 1 ? 0 : r] += observed[r].rows[i];
    }
    EXPECT_EQ(layer.experts, experts);
    EXPECT_EQ(layer.ranks, ranks);
    EXPECT_EQ(layer.num_tokens(), i < num_decoder_layers ? num_tokens * moe.num_experts_per_tok : 0);
  }
}

const std::string kGolden = MOECTL_SOURCE_DIR "/tests/golden/";

INSTANTIATE_TEST_SUITE_P(Placements, ExpertLoadTest,
                         testing::Values(Case{kDemoDir, expert_parallel(1), {}}, Case{kDemoDir, expert_parallel(2), {}},
                                         Case{kDemoDir, expert_parallel(3), {}}, Case{kDemoDir, expert_parallel(1), 5},
                                         Case{kDemoDir, expert_parallel(2), 32}, Case{kDemoDir, expert_parallel(3), 70},
                                         Case{kGolden + "qwen3_moe_a", expert_parallel(2), 2},
                                         Case{kGolden + "llama4_text_a", expert_parallel(2), {}},
                                         Case{kGolden + "gpt_oss_a", expert_parallel(1), {}},
                                         Case{kDemoDir, {.tp_size = 2, .ep_size = 2}, {}},
                                         Case{kDemoDir, {.tp_size = 2, .dp_size = 2, .ep_size = 4}, 4},
                                         Case{kDemoDir, {.tp_size = 2}, {}}, Case{kDemoDir, {.tp_size = 2}, 5},
                                         Case{kDemoDir, {.tp_size = 2, .dp_size = 2}, {}},
                                         Case{kDemoDir, {.dp_size = 2}, {}},
                                         Case{kGolden + "qwen3_moe_a", {.tp_size = 2, .ep_size = 2}, 2}));

TEST(ExpertLoad, OfAnIdleEngineTakesNoStep) {
  EngineConfig flags = demo_config();
  flags.parallelism = expert_parallel(2);
  auto engine = Engine::create(flags);
  const ExpertLoad empty = load_of(*engine);
  ASSERT_EQ(empty.layers.size(), 6u) << "five of the decoder and the MTP module's";
  for (const ExpertLoad::Layer& layer : empty.layers) EXPECT_EQ(layer.num_tokens(), 0);
  Client client(*engine);
  client.ask({.prompt_ids = golden_cases()[0].prompt_ids, .sampling = {.temperature = 0.0f, .max_tokens = 5}});
  const EngineStats before = idle_stats(*engine);
  EXPECT_EQ(load_of(*engine), load_of(*engine));
  const EngineStats after = idle_stats(*engine);
  EXPECT_EQ(after.num_steps_total, before.num_steps_total);
  EXPECT_EQ(after.busy_seconds_total, before.busy_seconds_total);
  EXPECT_EQ(after.idle_seconds_total, before.idle_seconds_total);
}

// A reading while a request runs is of the end of the step that was launched next: all layers have seen its tokens.
TEST(ExpertLoad, IsOfTheEndOfTheNextStep) {
  Gate gate;
  EngineConfig flags = demo_config();
  flags.parallelism = expert_parallel(2);
  auto engine = Engine::create(flags);
  Client client(*engine);
  const std::vector<int32_t> prompt = golden_cases()[0].prompt_ids;
  const size_t request =
      client.send({.prompt_ids = prompt, .sampling = {.temperature = 0.0f, .max_tokens = 30, .ignore_eos = true}},
                  [&](const Answer& a) { gate.arrive(int(a.ids.size())); });
  for (int n = 1; n < 30; n += 4) {
    gate.wait_until_arrived(n);  // the engine stands between two steps: token n is known and not computed yet
    const auto promise = std::make_shared<std::promise<ExpertLoad>>();
    engine->read_expert_load([promise](const ExpertLoad& load) { promise->set_value(load); });
    gate.open(n + 3);
    const ExpertLoad load = promise->get_future().get();
    for (const ExpertLoad::Layer& layer : std::span(load.layers).first(5))
      EXPECT_EQ(layer.num_tokens(), 4 * (int64_t(prompt.size()) + n));
  }
  gate.open(Gate::kAll);
  EXPECT_EQ(client.wait(request).finish, FinishReason::kLength);
}

TEST(ExpertLoad, OfAFailedEngineHasNoLayers) {
  auto engine = test::tampered_engine(demo_config(), [&](const LinearArgs&) { throw std::runtime_error("on fire"); });
  Client client(*engine);
  EXPECT_EQ(client.ask({.prompt_ids = {1, 2, 3}}).finish, FinishReason::kError);
  EXPECT_TRUE(load_of(*engine).layers.empty());
  EXPECT_TRUE(load_of(*engine).layers.empty()) << "and again";
}

TEST(ExpertLoad, ReadersAreAnsweredWhenTheEngineEnds) {
  Gate gate;
  std::atomic<int> num_answers{0};
  auto engine = test::tampered_engine(demo_config(), [&](const LinearArgs&) { gate.arrive(1); });
  Client client(*engine);
  client.send({.prompt_ids = {1, 2, 3}});
  gate.wait_until_arrived(1);
  for (int k = 0; k < 3; ++k) engine->read_expert_load([&](const ExpertLoad&) { ++num_answers; });
  gate.open(Gate::kAll);
  engine.reset();
  EXPECT_EQ(num_answers, 3);
}

}  // namespace
}  // namespace moectl::test
