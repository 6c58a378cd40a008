// The decoder against references that transformers computed (models/demo/golden.json, tests/golden/*/golden.json):
// every greedy token, every logprob of prompt and output within 2e-3, the MTP module's drafts as recorded. On both
// instruction-set paths, and split over TP groups in every way that the checkpoint's sizes allow; all ranks of an
// instance, whatever their TP group, must get the same bits.
#include <gtest/gtest.h>

#include <set>

#include "core/base/error.h"
#include "core/model/shard.h"
#include "tests/golden/references.h"
#include "tests/harness/model_runner.h"

namespace moectl::test {
namespace {

using Rows = std::vector<std::vector<float>>;

struct Case {
  std::string dir, path;
  Parallelism parallelism;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << fmt::format("{}, {}, TP {} DP {} EP {}", c.dir, c.path, c.parallelism.tp_size, c.parallelism.dp_size,
                      c.parallelism.ep_size);
}

class Golden : public testing::TestWithParam<Case> {
 protected:
  // The rows that all ranks compute for the same batch.
  static Rows on_all(ModelRunner& runner, const std::function<View<const float>(RankModel&)>& compute) {
    std::vector<Rows> of_ranks(size_t(GetParam().parallelism.world_size()));
    runner.on_all([&](RankModel& rank) { of_ranks[size_t(rank.index)] = host_rows(*rank.ops, compute(rank)); });
    for (size_t r = 1; r < of_ranks.size(); ++r) EXPECT_TRUE(of_ranks[r] == of_ranks[0]) << "rank " << r;
    return std::move(of_ranks[0]);
  }
};

TEST_P(Golden, TokensAndLogprobs) {
  const auto& [dir, path, parallelism] = GetParam();
  if (path == "avx512") {
    try {
      make_ops({.cpu_path = "avx512"});
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
  ModelRunner runner(dir, {.cpu_path = path, .threads = 2 / parallelism.world_size() + 1, .parallelism = parallelism});
  double worst = 0;
  int num_tokens = 0, num_drafts = 0;
  for (const ReferenceCase& c : reference_cases(dir)) {
    const int n = int(c.ids.size());
    const Rows logits = on_all(runner, [&](RankModel& rank) { return rank.model->forward(rows_of(c.ids, 0, n)); });
    for (int i = 0; i + 1 < n; ++i) {
      const std::vector<float>& row = logits[size_t(i)];
      if (i + 1 >= c.prompt_size) {
        ASSERT_EQ(arg_max(row), c.ids[size_t(i) + 1]) << "output token " << i + 1 - c.prompt_size;
        ++num_tokens;
      }
      if (size_t(i) < c.logprobs.size()) {
        const double difference = std::abs(log_softmax(row, c.ids[size_t(i) + 1]) - c.logprobs[size_t(i)]);
        ASSERT_LE(difference, 2e-3) << "token " << i + 1;
        worst = std::max(worst, difference);
      }
    }
    if (c.drafts.empty()) continue;
    // Row i carries token i + 1 at position i and proposes token i + 2.
    const std::vector<int32_t> next(c.ids.begin() + 1, c.ids.end());
    const Rows proposals = on_all(runner, [&](RankModel& rank) {
      return rank.model->forward_mtp(rows_of(next, 0, n - 1), rank.model->hidden().first(n - 1));
    });
    for (size_t k = 0; k < c.drafts.size(); ++k, ++num_drafts)
      ASSERT_EQ(arg_max(proposals[size_t(c.prompt_size) + k - 1]), c.drafts[k]) << "draft " << k;
  }
  EXPECT_GT(num_tokens, 0);
  std::printf("%s: %d greedy tokens, %d drafts, worst logprob difference %.2g\n",
              testing::PrintToString(GetParam()).c_str(), num_tokens, num_drafts, worst);
}

bool is_legal(const std::string& dir, const Parallelism& p) {
  try {
    check_parallelism(p, model_dims(read_config(dir)));
    return true;
  } catch (const Error&) {
    return false;
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string& dir : golden_dirs()) {
    for (const char* path : {"avx512", "portable"}) all.push_back({dir, path, {}});
    for (const Parallelism& p : {Parallelism{.tp_size = 2, .ep_size = 2}, Parallelism{.tp_size = 4, .ep_size = 4},
                                 Parallelism{.tp_size = 2, .dp_size = 2, .ep_size = 4}, Parallelism{.tp_size = 2}})
      if (is_legal(dir, p)) all.push_back({dir, "auto", p});
  }
  return all;
}

// The list above is what lies in the folder; this is what must lie there.
TEST(GoldenCheckpoints, EveryFamily) {
  std::set<std::string> families;
  std::map<std::string, std::set<int>> tp_sizes;  // by folder
  for (const Case& c : cases()) {
    families.insert(read_config(c.dir).model_type);
    tp_sizes[c.dir].insert(c.parallelism.tp_size);
  }
  for (const char* name : {"deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "glm4_moe", "gpt_oss",
                           "hunyuan_v1_moe", "llama4_text", "minimax_m2", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
    EXPECT_TRUE(families.contains(name)) << name;
  for (const auto& [dir, sizes] : tp_sizes) EXPECT_TRUE(sizes.contains(2)) << dir;
}

std::string name_of(const testing::TestParamInfo<Case>& info) {
  const Parallelism& p = info.param.parallelism;
  const std::string name = info.param.dir.substr(info.param.dir.rfind('/') + 1);
  if (p.tp_size == 1) return name + "_" + info.param.path;
  return fmt::format("{}_tp{}_dp{}_ep{}", name, p.tp_size, p.dp_size, p.ep_size);
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Golden, testing::ValuesIn(cases()), name_of);

}  // namespace
}  // namespace moectl::test
