// The decoder over TP groups on GPUs; ranks share the GPU where there is one. --precise against transformers'
// references, as one GPU is held to them; --deterministic against itself, whatever the chunking and the company; fast
// against one GPU. All ranks of a group get the same bits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "core/base/error.h"
#include "core/model/shard.h"
#include "kernels/gpu.h"
#include "tests/golden/references.h"
#include "tests/harness/model_runner.h"

namespace moectl::test {
namespace {

// Before the first use of a GPU (cuda_test.cpp).
[[maybe_unused]] const bool kEager = (load_kernels_eagerly(), true);

using Rows = std::vector<std::vector<float>>;
using Case = std::tuple<std::string, bool>;  // folder; whether ranks split every expert (--ep-size 1)

class CudaTensorParallel : public testing::TestWithParam<Case> {
 protected:
  const std::string& folder() const { return std::get<0>(GetParam()); }
  Parallelism parallelism() const { return {.tp_size = 2, .ep_size = std::get<1>(GetParam()) ? 1 : 2}; }

  void SetUp() override {
    try {
      make_ops({.device = "cuda"});
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
  // Skips the test where the sizes cannot split the checkpoint.
  bool splits(bool precise) const {
    try {
      const Config config = read_config(folder());
      check_parallelism(parallelism(), model_dims(config));
      if (!precise) check_shards(config, Checkpoint::open(folder()), parallelism());
      return true;
    } catch (const Error& e) {
      std::printf("%s: %s\n", folder().c_str(), e.what());
      return false;
    }
  }
  ModelRunner::Options options(bool precise, bool deterministic) const {
    return {.parallelism = parallelism(),
            .device = "cuda",
            .precise = precise,
            .deterministic = deterministic,
            .kv_dtype = precise ? DType::kF32 : DType::kBF16};
  }
  // The rows that all ranks compute for the same batch.
  static Rows forward(ModelRunner& runner, const Batch& batch) {
    std::vector<Rows> of_ranks(size_t(runner.num_ranks()));
    runner.on_all([&](RankModel& rank) {
      of_ranks[size_t(rank.index)] = host_rows(*rank.ops, rank.model->forward(batch));
      rank.comm->check();
      if (rank.tp) rank.tp->check();
    });
    for (size_t r = 1; r < of_ranks.size(); ++r)
      for (size_t i = 0; i < of_ranks[0].size(); ++i)
        EXPECT_EQ(0, std::memcmp(of_ranks[r][i].data(), of_ranks[0][i].data(), of_ranks[0][i].size() * sizeof(float)))
            << "rank " << r << ", row " << i;
    return std::move(of_ranks[0]);
  }
};

TEST_P(CudaTensorParallel, PreciseAgainstTransformers) {
  if (!splits(true)) GTEST_SKIP() << "sizes do not split";
  ModelRunner runner(folder(), options(true, false));
  double worst = 0;
  for (const ReferenceCase& c : reference_cases(folder())) {
    const Rows logits = forward(runner, rows_of(c.ids, 0, int(c.ids.size())));
    for (size_t i = 0; i + 1 < c.ids.size(); ++i) {
      if (int(i) + 1 >= c.prompt_size) {
        ASSERT_EQ(arg_max(logits[i]), c.ids[i + 1]) << "output token " << int(i) + 1 - c.prompt_size;
      }
      if (i >= c.logprobs.size()) continue;
      const double difference = std::abs(log_softmax(logits[i], c.ids[i + 1]) - c.logprobs[i]);
      ASSERT_LE(difference, 2e-3) << "token " << i + 1;
      worst = std::max(worst, difference);
    }
  }
  std::printf("%s, TP 2, EP %d: worst logprob difference %.2g\n", folder().c_str(), parallelism().ep_size, worst);
}

// A prompt at once, in chunks, and its last rows as captured decode steps beside another sequence.
TEST_P(CudaTensorParallel, DeterministicWhateverTheCompany) {
  if (!splits(false)) GTEST_SKIP() << "sizes do not split";
  ModelRunner runner(folder(), options(false, true));
  std::vector<int32_t> ids = reference_cases(folder())[0].ids;
  while (ids.size() < 80) ids.insert(ids.end(), ids.begin(), ids.begin() + long(std::min(ids.size(), 80 - ids.size())));
  const int size = int(ids.size()), tail = size - 9;
  const Rows whole = forward(runner, rows_of(ids, 0, size));
  const auto same = [&](const std::vector<float>& row, int position, const char* where) {
    ASSERT_EQ(0, std::memcmp(row.data(), whole[size_t(position)].data(), row.size() * sizeof(float)))
        << where << ", row " << position;
  };
  for (const int chunk : {7, 33})
    for (int begin = 0; begin < size; begin += chunk) {
      const Rows rows = forward(runner, rows_of(ids, begin, std::min(begin + chunk, size), 10));
      for (size_t i = 0; i < rows.size(); ++i) same(rows[i], begin + int(i), "chunks");
      if (HasFatalFailure()) return;
    }
  for (int other = 0; other < 2; ++other) forward(runner, rows_of(ids, 0, tail, 20 + 10 * other));
  for (int i = tail; i < size; ++i)
    for (const int num_sequences : {1, 2}) {
      Batch batch;
      batch.max_pages = 2;
      for (int s = 0; s < num_sequences; ++s) {
        batch.seq_idx.push_back(s);
        batch.logits_rows.push_back(s);
        batch.token_ids.push_back(ids[size_t(i)]);
        batch.positions.push_back(i);
        for (int p = 0; p < 2; ++p) batch.page_table.push_back(20 + 10 * s + p);
      }
      for (const auto& row : forward(runner, batch)) same(row, i, "decode");
      if (HasFatalFailure()) return;
    }
}

// Partial products are rounded otherwise than on one GPU. Each is as far from unrounded operands as cuda_test.cpp says
// (0.06 of a row's spread, in checkpoints of FP8), and two independent errors add as squares.
TEST_P(CudaTensorParallel, FastAgainstOneGpu) {
  if (!splits(false)) GTEST_SKIP() << "sizes do not split";
  ModelRunner one(folder(), {.device = "cuda", .kv_dtype = DType::kBF16}), group(folder(), options(false, false));
  const ReferenceCase c = reference_cases(folder())[0];
  const Batch batch = rows_of(c.ids, 0, int(c.ids.size()));
  const Rows expected = forward(one, batch), got = forward(group, batch);
  double sum_share = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double n = double(got[i].size()), mean = std::accumulate(expected[i].begin(), expected[i].end(), 0.0) / n;
    double spread = 0, difference = 0;
    for (size_t j = 0; j < got[i].size(); ++j) {
      spread += std::pow(double(expected[i][j]) - mean, 2);
      difference += std::pow(double(got[i][j]) - double(expected[i][j]), 2);
    }
    ASSERT_TRUE(std::isfinite(difference)) << "row " << i;
    sum_share += std::sqrt(difference / spread);
  }
  const double share = sum_share / double(got.size());
  EXPECT_LE(share, 0.06 * std::sqrt(2.0));
  std::printf("%s, TP 2, EP %d: logits differ by %.3f of their spread\n", folder().c_str(), parallelism().ep_size,
              share);
}

std::string name_of(const testing::TestParamInfo<Case>& info) {
  const auto& [folder, splits_experts] = info.param;
  return folder.substr(folder.rfind('/') + 1) + (splits_experts ? "_split_experts" : "");
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, CudaTensorParallel,
                         testing::Combine(testing::ValuesIn(golden_dirs()), testing::Bool()), name_of);

}  // namespace
}  // namespace moectl::test
