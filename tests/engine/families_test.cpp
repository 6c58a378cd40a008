// Every family's checkpoint through the engine: answers are those of the request alone, bit for bit, in company, in
// chunks, on threads, on expert-parallel ranks, after a prefix hit, and with the prompt computed by a prefill engine.
// The same in TP groups of two, whose tokens are those of one rank; KV also moves between TP sizes.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include "core/base/error.h"
#include "core/model/config.h"
#include "tests/engine/pd_pair.h"

namespace moectl::test {
namespace {

const std::filesystem::path kGoldenDir = MOECTL_SOURCE_DIR "/tests/golden";

// One checkpoint an architecture: the first by name.
std::vector<std::string> checkpoints() {
  std::vector<std::string> all, first;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(kGoldenDir, none))
    if (std::filesystem::exists(entry.path() / "config.json")) all.push_back(entry.path().filename().string());
  std::ranges::sort(all);
  std::string last;
  for (const std::string& name : all) {
    const std::string family = name.substr(0, name.rfind('_'));
    if (family != last && name.ends_with("_a")) first.push_back(name);
    if (name.ends_with("_a")) last = family;
  }
  return first;
}

class Families : public testing::TestWithParam<std::string> {
 protected:
  EngineConfig config() const {
    EngineConfig c = demo_config();
    c.model_dir = (kGoldenDir / GetParam()).string();
    c.max_model_len = 512;
    c.kv_cache_bytes = 16 << 20;
    return c;
  }

  // Lengths on both sides of page and window ends; greedy and sampled.
  std::vector<GenerateRequest> requests() const {
    const int vocab = read_config(kGoldenDir / GetParam()).vocab_size;
    std::vector<GenerateRequest> all;
    for (int n : {1, 2, 17, 63, 64, 65, 66, 130, 300}) {
      std::mt19937 rng(7);  // one is the beginning of the next
      GenerateRequest r{.id = "r"};
      for (int i = 0; i < n; ++i) r.prompt_ids.push_back(int32_t(rng() % unsigned(vocab)));
      r.sampling = {.temperature = n % 2 ? 0.0f : 1.1f,
                    .seed = unsigned(n),
                    .max_tokens = 8,
                    .ignore_eos = true,
                    .num_logprobs = 2};
      all.push_back(r);
    }
    return all;
  }

  std::vector<Answer> alone(const Parallelism& parallelism = {}) const {
    EngineConfig c = config();
    c.parallelism = parallelism;
    c.max_num_seqs = 1;
    c.enable_prefix_caching = false;
    auto engine = Engine::create(c);
    Client client(*engine);
    std::vector<Answer> answers;
    for (const GenerateRequest& r : requests()) answers.push_back(client.ask(r));
    return answers;
  }

  void expect_together(const EngineConfig& c, const std::vector<Answer>& want, const std::string& where) const {
    auto engine = Engine::create(c);
    Client client(*engine);
    const auto all = requests();
    for (int round = 0; round < 2; ++round) {  // the second finds prefixes
      std::vector<size_t> sent;
      for (const GenerateRequest& r : all) sent.push_back(client.send(r));
      for (size_t i = 0; i < all.size(); ++i) {
        const Answer got = client.wait(sent[i]);
        EXPECT_EQ(got.error, "") << where;
        EXPECT_TRUE(got.same_text(want[i])) << where << ", round " << round << ", " << all[i].prompt_ids.size();
      }
    }
  }
};

TEST_P(Families, AnswersDoNotDependOnCompany) {
  const std::vector<Answer> want = alone();
  for (const Answer& a : want) ASSERT_EQ(a.ids.size(), 8u) << a.error;
  expect_together(config(), want, "together");
  EngineConfig c = config();
  c.max_num_batched_tokens = 16;
  expect_together(c, want, "chunks of 16");
  c = config();
  c.num_threads = 2;
  expect_together(c, want, "two threads");
  for (int size : {2, 3, 4}) {  // where they do not divide the experts: with redundant ones
    c = config();
    c.parallelism = expert_parallel(size);
    c.max_num_batched_tokens = 48;
    expect_together(c, want, std::to_string(size) + " ranks");
  }
}

TEST_P(Families, TensorParallel) {
  const std::vector<Answer> one_rank = alone();
  for (const int ep_size : {2, 1}) {
    const std::vector<Answer> want = alone({.tp_size = 2, .ep_size = ep_size});
    for (size_t i = 0; i < want.size(); ++i) EXPECT_EQ(want[i].ids, one_rank[i].ids) << "request " << i;
    EngineConfig c = config();
    c.parallelism = {.tp_size = 2, .dp_size = 2, .ep_size = ep_size == 1 ? 1 : 4};
    c.max_num_batched_tokens = 48;
    expect_together(c, want, fmt::format("TP 2, DP 2, EP {}", c.parallelism.ep_size));
  }
}

TEST_P(Families, PrefillElsewhereIsTheSame) {
  struct Sizes {
    Parallelism prefill, decode;
  };
  const Parallelism tp2 = {.tp_size = 2, .ep_size = 2};
  for (const Sizes& sizes : {Sizes{{}, {}}, Sizes{{}, expert_parallel(2)}, Sizes{tp2, tp2},
                             Sizes{tp2, {.tp_size = 2, .dp_size = 2, .ep_size = 4}}, Sizes{tp2, {}}, Sizes{{}, tp2}}) {
    const bool exact = sizes.prefill.tp_size == sizes.decode.tp_size;  // else the same tokens (TensorParallel)
    const std::vector<Answer> want = alone(sizes.prefill);
    EngineConfig p = prefill_config(), d = decode_config();
    p.model_dir = d.model_dir = config().model_dir;
    p.max_model_len = d.max_model_len = 512;
    p.parallelism = sizes.prefill;
    d.parallelism = sizes.decode;
    PdPair pair(p, d);
    Client client(*pair.decode);
    const auto all = requests();
    for (int round = 0; round < 2; ++round)
      for (size_t i = 0; i < all.size(); ++i) {
        GenerateRequest r = all[i];
        r.prefill_workers = {"p"};
        if (round == 0) r.cache_salt = std::to_string(i);  // nobody has it cached
        const Answer got = client.ask(r);
        EXPECT_EQ(got.error, "");
        EXPECT_TRUE(exact ? got.same_text(want[i]) : got.ids == want[i].ids)
            << "round " << round << ", prompt of " << r.prompt_ids.size();
        if (round == 0 && r.prompt_ids.size() > 1) {
          EXPECT_EQ(got.prefill.worker, "p");
        }
      }
    pair.expect_baseline();
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Families, testing::ValuesIn(checkpoints()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace moectl::test
