// A request's answer does not depend on company: tokens and logprobs, bit for bit, are those of the request alone in a
// cold engine of one TP group and one thread per rank, whatever the batch, the chunking of its prefill, prefix hits,
// threads, ranks and preemptions. On both instruction-set paths of the CPU backend and in TP groups of two, each
// against itself.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "core/base/error.h"
#include "tests/engine/engine_client.h"

namespace moectl::test {
namespace {

constexpr int kMaxModelLen = 512;
constexpr int64_t kPageBytes = 64 * 7 * 160 * 4;

std::vector<int32_t> corpus_piece(size_t begin, size_t n) {
  std::vector<int32_t> corpus;
  for (const GoldenCase& c : golden_cases()) {
    corpus.insert(corpus.end(), c.prompt_ids.begin(), c.prompt_ids.end());
    corpus.insert(corpus.end(), c.output_ids.begin(), c.output_ids.end());
  }
  return std::vector(corpus.begin() + long(begin), corpus.begin() + long(begin + n));
}

struct Case {
  std::string name, cpu_path;
  Parallelism parallelism;
  // As many data-parallel ranks.
  Parallelism with_dp(int dp_size) const {
    Parallelism p = parallelism;
    p.dp_size = dp_size;
    if (p.tp_size == 1 || p.ep_size > 1) p.ep_size = p.world_size();
    return p;
  }
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

// Greedy and sampled requests with every parameter, prompts from 5 to 330 tokens. The portable path, a tenth as fast,
// and TP groups, which may run on it, do without the two longest.
std::vector<GenerateRequest> requests(const Case& c) {
  std::vector<GenerateRequest> all = {
      {.prompt_ids = golden_cases()[0].prompt_ids,
       .sampling = {.temperature = 0.0f, .max_tokens = 40, .num_logprobs = 5}},
      {.prompt_ids = corpus_piece(0, 330),
       .sampling = {.temperature = 0.0f, .max_tokens = 20, .ignore_eos = true, .num_logprobs = 0}},
      {.prompt_ids = corpus_piece(0, 256),
       .sampling = {.temperature = 1.0f, .seed = 11, .max_tokens = 24, .ignore_eos = true, .num_logprobs = 3}},
      {.prompt_ids = corpus_piece(100, 131),
       .sampling = {.temperature = 1.3f,
                    .top_k = 40,
                    .top_p = 0.9f,
                    .seed = 12,
                    .max_tokens = 30,
                    .ignore_eos = true,
                    .num_logprobs = 1}},
      {.prompt_ids = corpus_piece(200, 64),
       .sampling = {.temperature = 0.8f,
                    .min_p = 0.02f,
                    .seed = 13,
                    .presence_penalty = 0.5f,
                    .frequency_penalty = 0.2f,
                    .repetition_penalty = 1.2f,
                    .max_tokens = 40,
                    .min_tokens = 35,
                    .num_logprobs = 2}},
      {.prompt_ids = corpus_piece(300, 90),
       .sampling =
           {.temperature = 0.0f, .max_tokens = 12, .ignore_eos = true, .num_logprobs = 2, .prompt_logprobs = true}},
      {.prompt_ids = corpus_piece(0, 65),
       .sampling = {.temperature = 2.0f,
                    .seed = 14,
                    .logit_bias = {{7, 2.0f}},
                    .max_tokens = 64,
                    .ignore_eos = true,
                    .num_logprobs = 0}},
  };
  if (c.name != "avx512") std::erase_if(all, [](const auto& r) { return r.prompt_ids.size() > 200; });
  return all;
}

EngineConfig config_for(const Case& c) {
  EngineConfig config = demo_config();
  config.cpu_path = c.cpu_path;
  config.parallelism = c.parallelism;
  config.max_model_len = kMaxModelLen;
  config.max_num_seqs = 8;
  return config;
}

class Identity : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    try {
      expected();
    } catch (const Error& e) {
      if (e.code() != Code::kBadConfig) throw;
      GTEST_SKIP() << e.what();
    }
  }

  // Each request alone: one TP group, one thread per rank, nothing cached, the prompt in one chunk.
  static const std::vector<Answer>& expected() {
    static std::map<std::string, std::vector<Answer>> by_case;
    std::vector<Answer>& answers = by_case[GetParam().name];
    if (answers.empty()) answers = alone(requests(GetParam()));
    return answers;
  }

  static std::vector<Answer> alone(const std::vector<GenerateRequest>& all) {
    EngineConfig config = config_for(GetParam());
    config.max_num_seqs = 1;
    config.enable_prefix_caching = false;
    auto engine = Engine::create(config);
    Client client(*engine);
    std::vector<Answer> answers;
    for (const GenerateRequest& r : all) answers.push_back(client.ask(r));
    return answers;
  }

  static void expect_same(const Answer& got, size_t request, const std::string& where) {
    const Answer& want = expected()[request];
    EXPECT_EQ(got.error, "") << where;
    EXPECT_EQ(got.ids, want.ids) << where << ", request " << request;
    EXPECT_TRUE(got.numbers == want.numbers) << where << ", request " << request << ": logprobs differ";
    EXPECT_EQ(got.finish, want.finish) << where << ", request " << request;
  }

  // All requests at once, then all again in another order (prefix hits).
  static void run_together(const EngineConfig& config, const std::string& where, int num_rounds = 2) {
    auto engine = Engine::create(config);
    Client client(*engine);
    const auto all = requests(GetParam());
    std::vector<size_t> order(all.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    for (int round = 0; round < num_rounds; ++round) {
      std::vector<size_t> sent;
      for (size_t i : order) sent.push_back(client.send(all[i]));
      for (size_t i = 0; i < sent.size(); ++i) expect_same(client.wait(sent[i]), order[i], where);
      std::ranges::reverse(order);
    }
  }
};

TEST_P(Identity, TheReferenceIsNotTrivial) {
  EXPECT_EQ(expected()[0].ids, golden_cases()[0].output_ids);
  for (size_t i = 0; i < expected().size(); ++i) {
    EXPECT_GE(expected()[i].ids.size(), 12u) << i;
    EXPECT_GE(expected()[i].numbers.size(), expected()[i].ids.size()) << i;
  }
}

TEST_P(Identity, InCompany) {
  run_together(config_for(GetParam()), "together");
}

TEST_P(Identity, ChunkSizes) {
  for (int chunk : {1, 7, 64}) {  // 512 is InCompany
    EngineConfig config = config_for(GetParam());
    config.max_num_batched_tokens = chunk;
    config.max_num_seqs = std::min(config.max_num_seqs, chunk);
    run_together(config, fmt::format("chunks of {}", chunk), GetParam().cpu_path == "portable" ? 1 : 2);
  }
}

TEST_P(Identity, PrefixHits) {
  auto engine = Engine::create(config_for(GetParam()));
  Client client(*engine);
  const auto all = requests(GetParam());
  for (size_t i = 0; i < all.size(); ++i) {
    expect_same(client.ask(all[i]), i, "first");
    const Answer warm = client.ask(all[i]);
    expect_same(warm, i, "warm");
    const int pages = all[i].sampling.prompt_logprobs ? 0 : int(all[i].prompt_ids.size() - 1) / 64;
    EXPECT_EQ(warm.num_cached_tokens, pages * 64) << i;
  }
}

TEST_P(Identity, Threads) {
  EngineConfig config = config_for(GetParam());
  config.num_threads = 2 * config.parallelism.tp_size;
  run_together(config, "two threads per rank");
}

TEST_P(Identity, Ranks) {
  // 32 experts: over 3 ranks with one redundant expert, over 4 with as many as given.
  using Ranks = std::vector<std::pair<int, std::optional<int>>>;  // data-parallel ranks, redundant experts
  const Ranks cases = GetParam().parallelism.tp_size == 1 ? Ranks{{2, {}}, {3, {}}, {4, 0}, {4, 8}, {8, {}}}
                                                          : Ranks{{1, 6}, {2, {}}, {3, {}}};
  for (const auto& [dp_size, num_redundant] : cases) {
    EngineConfig config = config_for(GetParam());
    config.parallelism = GetParam().with_dp(dp_size);
    config.num_redundant_experts = num_redundant;
    config.max_num_batched_tokens = 128;
    config.kv_cache_bytes = 12 * kPageBytes * config.parallelism.world_size();
    run_together(config, fmt::format("{} ranks, {} redundant experts", config.parallelism.world_size(),
                                     num_redundant.value_or(-1)));
  }
}

TEST_P(Identity, AllToAllBackends) {
  for (const All2AllBackend backend :
       {All2AllBackend::kNaive, All2AllBackend::kLowLatency, All2AllBackend::kHighThroughput})
    for (const int dp_size : {2, 3}) {
      EngineConfig config = config_for(GetParam());
      config.parallelism = GetParam().with_dp(dp_size);
      if (config.parallelism.ep_size == 1 || config.parallelism.world_size() > 4) continue;
      config.all2all_backend = backend;
      config.max_num_batched_tokens = 128;
      config.kv_cache_bytes = 12 * kPageBytes * config.parallelism.world_size();
      run_together(config, fmt::format("{} ranks, {}", config.parallelism.world_size(), all2all_backend_name(backend)));
    }
}

TEST_P(Identity, Preemption) {
  std::vector<GenerateRequest> all;
  for (size_t i = 0; i < 4; ++i)  // two pages each at first, three soon
    all.push_back({.prompt_ids = corpus_piece(60 * i, 118 + i),
                   .sampling = {.temperature = i % 2 ? 1.1f : 0.0f,
                                .seed = 20 + i,
                                .frequency_penalty = 0.3f,
                                .max_tokens = 40,
                                .ignore_eos = true,
                                .num_logprobs = 2,
                                .prompt_logprobs = i == 3}});
  const std::vector<Answer> want = alone(all);
  EngineConfig config = config_for(GetParam());
  config.kv_cache_bytes = 8 * kPageBytes * config.parallelism.world_size();
  auto engine = Engine::create(config);
  Client client(*engine);
  std::vector<size_t> sent;
  for (const GenerateRequest& r : all) sent.push_back(client.send(r));
  for (size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(client.wait(sent[i]).same_text(want[i])) << "request " << i;
  EXPECT_GT(engine->stats().num_preemptions_total, 0);
}

TEST_P(Identity, OthersComeAndGoAtRandom) {
  for (unsigned seed = 0; seed < 2; ++seed) {
    std::mt19937 rng(seed);
    EngineConfig config = config_for(GetParam());
    config.parallelism = GetParam().with_dp(seed ? 2 : 1);
    config.max_num_batched_tokens = 40;
    config.kv_cache_bytes = 16 * kPageBytes * config.parallelism.world_size();
    auto engine = Engine::create(config);
    Client client(*engine);
    const auto all = requests(GetParam());
    std::vector<std::pair<size_t, size_t>> sent;  // client index, request
    std::vector<size_t> noise;
    for (size_t i = 0; i < all.size(); ++i) {
      GenerateRequest other = all[rng() % all.size()];
      other.sampling.seed = rng();
      other.sampling.temperature = 1.5f;
      noise.push_back(client.send(other));
      sent.emplace_back(client.send(all[i]), i);
      if (rng() % 2) client.wait_for_tokens(sent[rng() % sent.size()].first, rng() % 12);
      if (rng() % 2) engine->cancel(client.handle(noise[rng() % noise.size()]));
      if (rng() % 3 == 0) engine->flush_prefix_cache();
    }
    for (auto [index, request] : sent) expect_same(client.wait(index), request, fmt::format("random company {}", seed));
    for (size_t index : noise) client.wait(index);
  }
}

const Case kTp2 = {"tp2", "auto", {.tp_size = 2, .ep_size = 2}};
#ifdef __SANITIZE_THREAD__  // twenty times slower: one path shows the races
const auto kCases = testing::Values(Case{"auto", "auto", {}}, kTp2);
#else
const auto kCases = testing::Values(Case{"portable", "portable", {}}, Case{"avx512", "avx512", {}}, kTp2,
                                    Case{"tp2_split_experts", "auto", {.tp_size = 2}});
#endif
INSTANTIATE_TEST_SUITE_P(Cases, Identity, kCases, [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace moectl::test
