// Bit-identity of the decoder itself: logits of a row do not depend on chunking, on company in the batch, on threads,
// or on the number of expert-parallel ranks (docs/determinism.md). Exact comparisons; the engine's tests repeat this
// above the scheduler.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/harness/model_runner.h"

namespace moectl::test {
namespace {

std::vector<int32_t> random_ids(int n, int vocab, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<int32_t> ids;
  for (int i = 0; i < n; ++i) ids.push_back(int32_t(rng() % uint64_t(vocab)));
  return ids;
}

using Rows = std::vector<std::vector<float>>;

Rows copy(View<const float> logits) {
  Rows rows;
  for (int64_t i = 0; i < logits.dim(0); ++i) rows.emplace_back(logits.row(i), logits.row(i) + logits.dim(1));
  return rows;
}

void expect_same_bits(const Rows& a, const Rows& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i)
    ASSERT_EQ(0, std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float))) << "row " << i << " differs";
}

class Identity : public testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  void SetUp() override {
    try {
      make_ops({.cpu_path = path()});
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
  std::string dir() const { return std::get<0>(GetParam()); }
  std::string path() const { return std::get<1>(GetParam()); }
  Rows in_one_step(ModelRunner& runner, const std::vector<int32_t>& ids, int r = 0) {
    return copy(runner.rank(r).model->forward(rows_of(ids, 0, int(ids.size()))));
  }
};

TEST_P(Identity, Chunking) {
  ModelRunner runner(dir(), {.cpu_path = path(), .threads = 2});
  const auto ids = random_ids(150, runner.config().vocab_size, 1);
  const Rows whole = in_one_step(runner, ids);
  for (int chunk : {1, 7, 64, 100}) {
    Rows rows;
    for (int begin = 0; begin < int(ids.size()); begin += chunk) {
      const int end = std::min(begin + chunk, int(ids.size()));
      for (auto& row : copy(runner.rank().model->forward(rows_of(ids, begin, end, 10)))) rows.push_back(std::move(row));
    }
    SCOPED_TRACE(fmt::format("chunks of {}", chunk));
    expect_same_bits(whole, rows);
  }
}

TEST_P(Identity, Threads) {
  ModelRunner one(dir(), {.cpu_path = path(), .threads = 1});
  const auto ids = random_ids(90, one.config().vocab_size, 2);
  const Rows expected = in_one_step(one, ids);
  for (int threads : {2, 3, 5}) {
    ModelRunner many(dir(), {.cpu_path = path(), .threads = threads});
    SCOPED_TRACE(fmt::format("{} threads", threads));
    expect_same_bits(expected, in_one_step(many, ids));
  }
}

// Sequences of random lengths in one batch, rows interleaved in a random order of sequences.
TEST_P(Identity, Company) {
  ModelRunner runner(dir(), {.cpu_path = path(), .threads = 2});
  std::mt19937_64 rng(3);
  std::vector<std::vector<int32_t>> prompts;
  std::vector<Rows> alone;
  for (int s = 0; s < 9; ++s) {
    prompts.push_back(random_ids(1 + int(rng() % 70), runner.config().vocab_size, 100 + uint64_t(s)));
    alone.push_back(in_one_step(runner, prompts.back()));
  }
  Batch batch;
  batch.max_pages = 2;
  std::vector<size_t> next(prompts.size());
  std::vector<std::pair<size_t, size_t>> row_is;
  for (size_t s = 0; s < prompts.size(); ++s)
    batch.page_table.insert(batch.page_table.end(), {int32_t(2 * s), int32_t(2 * s + 1)});
  for (size_t left = prompts.size(); left > 0;) {
    const size_t s = rng() % prompts.size();
    if (next[s] == prompts[s].size()) continue;
    batch.logits_rows.push_back(batch.num_tokens());
    batch.token_ids.push_back(prompts[s][next[s]]);
    batch.positions.push_back(int32_t(next[s]));
    batch.seq_idx.push_back(int32_t(s));
    row_is.emplace_back(s, next[s]);
    if (++next[s] == prompts[s].size()) --left;
  }
  const Rows together = copy(runner.rank().model->forward(batch));
  for (size_t i = 0; i < row_is.size(); ++i)
    expect_same_bits({alone[row_is[i].first][row_is[i].second]}, {together[i]});
}

TEST_P(Identity, ExpertParallelRanks) {
  ModelRunner one(dir(), {.cpu_path = path()});
  const int num_experts = one.config().moe.num_experts;
  const auto ids = random_ids(100, one.config().vocab_size, 4);
  const Rows expected = in_one_step(one, ids);
  for (int size : {2, 4, 8}) {
    if (num_experts % size) continue;
    ModelRunner many(dir(), {.cpu_path = path(), .ep_size = size, .max_tokens = 128, .max_logits = 128});
    SCOPED_TRACE(fmt::format("{} ranks", size));
    // Rank r computes the sequence in chunks of 20 + 7 r rows; ranks that are done run empty batches.
    std::vector<Rows> rows(static_cast<size_t>(size));
    many.on_all([&](RankModel& rank) {
      const int r = rank.comm->rank(), chunk = 20 + 7 * r;
      for (int step = 0; step < 5; ++step) {
        const int begin = std::min(step * chunk, int(ids.size())), end = std::min(begin + chunk, int(ids.size()));
        Batch batch;
        if (begin < end) batch = rows_of(ids, begin, end);
        for (auto& row : copy(rank.model->forward(batch))) rows[size_t(r)].push_back(std::move(row));
      }
    });
    for (const Rows& of_rank : rows) expect_same_bits(expected, of_rank);
  }
}

// A prefill worker computes the MTP module's keys and values without its answer: they are the same bits.
TEST_P(Identity, MtpCacheAlone) {
  const auto ids = random_ids(100, 256, 4);
  Rows caches;
  for (bool alone : {false, true}) {
    ModelRunner runner(dir(), {.cpu_path = path(), .num_pages = 2});
    if (runner.config().num_mtp_layers == 0) GTEST_SKIP() << "no MTP module in this checkpoint";
    Model& model = *runner.rank().model;
    in_one_step(runner, std::vector<int32_t>(ids.begin(), ids.end() - 1));
    const Batch next = rows_of(std::vector<int32_t>(ids.begin() + 1, ids.end()), 0, int(ids.size()) - 1);
    if (alone)
      model.cache_mtp(next, model.hidden());
    else
      model.forward_mtp(next, model.hidden());
    const KvView layer = runner.rank().cache->layer(runner.config().num_layers);
    const float* data = static_cast<const float*>(layer.data);
    caches.emplace_back(data, data + layer.dim(0) * layer.page_values());
  }
  expect_same_bits({caches[0]}, {caches[1]});
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Identity,
                         testing::Combine(testing::Values("models/demo", "tests/golden/deepseek_v3_fp8_a",
                                                          "tests/golden/deepseek_v2_a", "tests/golden/deepseek_v3_b",
                                                          "tests/golden/qwen3_moe_a", "tests/golden/gpt_oss_a",
                                                          "tests/golden/mixtral_a", "tests/golden/glm4_moe_a",
                                                          "tests/golden/llama4_text_a", "tests/golden/deepseek_v3_int4",
                                                          "tests/golden/deepseek_v3_awq", "tests/golden/gpt_oss_mxfp4"),
                                          testing::Values("avx512", "portable")),
                         [](const auto& info) {
                           const std::string& dir = std::get<0>(info.param);
                           return dir.substr(dir.rfind('/') + 1) + "_" + std::get<1>(info.param);
                         });

}  // namespace
}  // namespace moectl::test
