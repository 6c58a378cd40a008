// The decoder against references that transformers computed (models/demo/golden.json, tests/golden/*/golden.json):
// every greedy token, every logprob of prompt and output within 2e-3, the MTP module's drafts as recorded.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/harness/model_runner.h"

namespace moectl::test {
namespace {

using Json = nlohmann::json;

Json golden(const std::string& dir) {
  std::ifstream in(dir + "/golden.json");
  return Json::parse(in);
}

int arg_max(const float* row, int64_t n) {
  int best = 0;
  for (int i = 1; i < n; ++i)
    if (row[i] > row[best]) best = i;
  return best;
}

double log_softmax(const float* row, int64_t n, int id) {
  double max = row[arg_max(row, n)], sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(row[i] - max);
  return row[id] - max - std::log(sum);
}

struct Case {
  std::string dir, path;
};

class Golden : public testing::TestWithParam<Case> {};

TEST_P(Golden, TokensAndLogprobs) {
  const Case& c = GetParam();
  if (c.path == "avx512") {
    try {
      make_ops({.cpu_path = "avx512"});
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
  ModelRunner runner(c.dir, {.cpu_path = c.path, .threads = 2});
  const int64_t vocab = runner.config().vocab_size;
  double worst = 0;
  int num_tokens = 0, num_drafts = 0;
  const Json reference = golden(c.dir);
  for (const Json& test : reference["cases"]) {
    std::vector<int32_t> prompt = test["prompt_ids"], output = test["output_ids"], ids = prompt;
    ids.insert(ids.end(), output.begin(), output.end());
    const std::vector<double> logprobs = test["logprobs"];
    const int n = int(ids.size());
    Batch batch = rows_of(ids, 0, n);
    const View<const float> logits = runner.rank().model->forward(batch);
    for (int i = 0; i + 1 < n; ++i) {
      if (i + 1 >= int(prompt.size())) {
        ASSERT_EQ(arg_max(logits.row(i), vocab), ids[size_t(i) + 1]) << "output token " << i + 1 - int(prompt.size());
        ++num_tokens;
      }
      if (size_t(i) < logprobs.size()) {
        double difference = std::abs(log_softmax(logits.row(i), vocab, ids[size_t(i) + 1]) - logprobs[size_t(i)]);
        ASSERT_LE(difference, 2e-3) << "token " << i + 1;
        worst = std::max(worst, difference);
      }
    }
    if (!test.contains("mtp_draft")) continue;
    // Row i carries token i + 1 at position i and proposes token i + 2.
    const std::vector<int32_t> drafts = test["mtp_draft"];
    std::vector<int32_t> next(ids.begin() + 1, ids.end());
    batch = rows_of(next, 0, n - 1);
    View<const float> hidden = runner.rank().model->hidden();
    const View<const float> proposals = runner.rank().model->forward_mtp(batch, hidden.first(n - 1));
    for (size_t k = 0; k < drafts.size(); ++k) {
      const int64_t row = int64_t(prompt.size() + k) - 1;  // proposes output_ids[k + 1]
      ASSERT_EQ(arg_max(proposals.row(row), vocab), drafts[k]) << "draft " << k;
      ++num_drafts;
    }
  }
  EXPECT_GT(num_tokens, 0);
  std::printf("%s (%s): %d greedy tokens, %d drafts, worst logprob difference %.2g\n", c.dir.c_str(), c.path.c_str(),
              num_tokens, num_drafts, worst);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  std::vector<std::string> dirs = {"models/demo"};
  const char* other = std::getenv("MOECTL_GOLDEN_DIR");  // all checkpoints of another folder instead
  if (other) dirs.clear();
  std::error_code none;  // a folder that is not there has no checkpoints: EveryFamily says so
  for (const auto& entry : std::filesystem::directory_iterator(other ? other : "tests/golden", none))
    if (std::filesystem::exists(entry.path() / "golden.json")) dirs.push_back(entry.path().string());
  std::sort(dirs.begin(), dirs.end());
  for (const std::string& dir : dirs)
    for (const char* path : {"avx512", "portable"}) all.push_back({dir, path});
  return all;
}

// The list above is what lies in the folder; this is what must lie there.
TEST(GoldenCheckpoints, EveryFamily) {
  std::set<std::string> families;
  for (const Case& c : cases()) families.insert(read_config(c.dir).model_type);
  for (const char* name : {"deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "glm4_moe", "gpt_oss",
                           "hunyuan_v1_moe", "llama4_text", "minimax_m2", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
    EXPECT_TRUE(families.contains(name)) << name;
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Golden, testing::ValuesIn(cases()), [](const auto& info) {
  std::string name = info.param.dir.substr(info.param.dir.rfind('/') + 1) + "_" + info.param.path;
  return name;
});

}  // namespace
}  // namespace moectl::test
