// The decoder on a GPU, every checkpoint. --precise: against transformers' references, as the CPU backend is held to
// them. Fast (FP8 and bf16 operands, bf16 cache): against the CPU backend's logits, with the greedy tokens equal except
// where the CPU's own margin is below what the smaller operands can move; how many is printed. --deterministic:
// bit-identical across chunking and company, recorded decode steps included. Each with this card's kernels, and
// --portable-kernels: with those that every card has.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "core/model/expert_counts.h"
#include "kernels/gpu.h"
#include "tests/golden/references.h"
#include "tests/harness/model_runner.h"

namespace moectl::test {
namespace {

// Before the first use of a GPU: a kernel that is loaded when it is first launched waits for a device whose other rank
// waits for this one.
[[maybe_unused]] const bool kEager = (load_kernels_eagerly(), true);

using Rows = std::vector<std::vector<float>>;

class CudaGolden : public testing::TestWithParam<std::tuple<std::string, bool>> {
 protected:
  const std::string& folder() const { return std::get<0>(GetParam()); }
  bool portable() const { return std::get<1>(GetParam()); }
  std::string title(const char* mode) const {
    return fmt::format("{} (cuda, {}{})", folder(), mode, portable() ? ", portable" : "");
  }
  void SetUp() override {
    try {
      make_ops({.device = "cuda"});
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
    cases_ = reference_cases(folder());
    ASSERT_FALSE(cases_.empty());
  }
  std::vector<ReferenceCase> cases_;
};

Rows forward(ModelRunner& runner, const Batch& batch) {
  return host_rows(*runner.rank().ops, runner.rank().model->forward(batch));
}

TEST_P(CudaGolden, PreciseAgainstTransformers) {
  ModelRunner runner(folder(), {.device = "cuda", .precise = true, .portable = portable()});
  double worst = 0;
  int num_tokens = 0, num_drafts = 0;
  for (const ReferenceCase& c : cases_) {
    const Rows logits = forward(runner, rows_of(c.ids, 0, int(c.ids.size())));
    for (size_t i = 0; i + 1 < c.ids.size(); ++i) {
      if (int(i) + 1 >= c.prompt_size) {
        ASSERT_EQ(arg_max(logits[i]), c.ids[i + 1]) << "output token " << int(i) + 1 - c.prompt_size;
        ++num_tokens;
      }
      if (i >= c.logprobs.size()) continue;
      const double difference = std::abs(log_softmax(logits[i], c.ids[i + 1]) - c.logprobs[i]);
      ASSERT_LE(difference, 2e-3) << "token " << i + 1;
      worst = std::max(worst, difference);
    }
    if (c.drafts.empty()) continue;
    const std::vector<int32_t> next(c.ids.begin() + 1, c.ids.end());
    Model& model = *runner.rank().model;
    const Rows proposals = host_rows(*runner.rank().ops, model.forward_mtp(rows_of(next, 0, int(next.size())),
                                                                           model.hidden().first(int64_t(next.size()))));
    for (size_t k = 0; k < c.drafts.size(); ++k, ++num_drafts)
      ASSERT_EQ(arg_max(proposals[size_t(c.prompt_size) + k - 1]), c.drafts[k]) << "draft " << k;
  }
  std::printf("%s: %d greedy tokens, %d drafts, worst logprob difference %.2g\n", title("precise").c_str(), num_tokens,
              num_drafts, worst);
}

// The smaller operands move a row's logits by a share of its spread: bf16 (8 bits) by about 0.01, FP8 activations (4
// bits) by 0.03 to 0.055 in these models. A row whose router stood between two experts may take the other one and move
// by much more, in the reference's rounding as well as in ours: such rows are counted, and few.
constexpr double kMeanShare = 0.06, kMarginShare = 0.15, kFarRows = 0.03;

TEST_P(CudaGolden, FastAgainstCpu) {
  ModelRunner cpu(folder(), {.threads = 2}),
      fast(folder(), {.device = "cuda", .portable = portable(), .kv_dtype = DType::kBF16});
  int num_tokens = 0, num_other = 0, num_far = 0;
  double sum_share = 0, worst_margin = 0;
  int64_t num_rows = 0;
  for (const ReferenceCase& c : cases_) {
    const Batch batch = rows_of(c.ids, 0, int(c.ids.size()));
    const Rows expected = forward(cpu, batch), got = forward(fast, batch);
    for (size_t i = 0; i < got.size(); ++i) {
      const double n = double(got[i].size());
      const double mean = std::accumulate(expected[i].begin(), expected[i].end(), 0.0) / n;
      double spread = 0, difference = 0;
      for (size_t j = 0; j < got[i].size(); ++j) {
        spread += std::pow(double(expected[i][j]) - mean, 2);
        difference += std::pow(double(got[i][j]) - double(expected[i][j]), 2);
      }
      spread = std::sqrt(spread / n);
      ASSERT_TRUE(std::isfinite(difference)) << "row " << i;
      sum_share += std::sqrt(difference / n) / spread;
      ++num_rows;
      ++num_tokens;
      const int best = arg_max(expected[i]), chosen = arg_max(got[i]);
      if (best == chosen) continue;
      const double margin = double(expected[i][size_t(best)] - expected[i][size_t(chosen)]) / spread;
      if (margin > kMarginShare) ++num_far;
      worst_margin = std::max(worst_margin, margin);
      ++num_other;
    }
  }
  const double share = sum_share / double(num_rows);
  EXPECT_LE(share, kMeanShare);
  EXPECT_LE(num_far, 1 + int(kFarRows * num_tokens));
  std::printf(
      "%s: %d of %d greedy tokens differ, %d of them by an expert's choice (largest margin %.3f of the "
      "row's spread); logits differ by "
      "%.3f of it in the mean\n",
      title("fast").c_str(), num_other, num_tokens, num_far, worst_margin, share);
}

std::vector<int32_t> random_ids(int n, int vocab, uint32_t seed) {
  std::vector<int32_t> ids;
  for (int i = 0; i < n; ++i) ids.push_back(int32_t((seed = seed * 1664525u + 1013904223u) >> 8) % vocab);
  return ids;
}

void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size());
  ASSERT_EQ(0, std::memcmp(a.data(), b.data(), a.size() * sizeof(float))) << what;
}

// Choices of each decoder layer's gate so far, by the counters on the device.
std::vector<int64_t> counted_choices(ModelRunner& runner) {
  const View<const int64_t> counts = runner.rank().model->expert_counts();
  Device& device = runner.rank().ops->device();
  const int64_t num_bytes = counts.size() * int64_t(sizeof(int64_t));
  const Buffer host = device.alloc_host(num_bytes);
  device.copy(host.get(), counts.data, num_bytes, device.stream());
  device.synchronize(device.stream());
  const auto* from = reinterpret_cast<const int64_t*>(host.get());
  std::vector<int64_t> sums;
  for (const int layer : moe_layers(runner.config())) {
    if (layer < runner.config().num_layers) sums.push_back(std::accumulate(from, from + counts.row_size(), int64_t{0}));
    from += counts.row_size();
  }
  return sums;
}

// Three sequences: each alone in one step; then in chunks; then the last 20 tokens of all of them one by one together,
// which is what the engine records and replays.
TEST_P(CudaGolden, DeterministicWhateverTheCompany) {
  for (bool precise : {true, false}) {
    ModelRunner runner(folder(), {.device = "cuda",
                                  .precise = precise,
                                  .deterministic = true,
                                  .portable = portable(),
                                  .kv_dtype = DType::kBF16});
    constexpr int kSize = 150, kTail = 20;
    std::vector<std::vector<int32_t>> ids;
    std::vector<Rows> alone;
    for (uint32_t s = 0; s < 3; ++s) {
      ids.push_back(random_ids(kSize, runner.config().vocab_size, s + 1));
      alone.push_back(forward(runner, rows_of(ids.back(), 0, kSize, int(3 * s))));
    }
    for (int chunk : {1, 7, 64, 100})
      for (int begin = 0; begin < kSize; begin += chunk) {
        const int end = std::min(begin + chunk, kSize);
        const Rows rows = forward(runner, rows_of(ids[0], begin, end, 10));
        for (int i = begin; i < end; ++i)
          expect_same_bits(alone[0][size_t(i)], rows[size_t(i - begin)], fmt::format("chunks of {}, row {}", chunk, i));
        if (HasFatalFailure()) return;
      }
    for (uint32_t s = 0; s < 3; ++s) forward(runner, rows_of(ids[s], 0, kSize - kTail, int(20 + 3 * s)));
    for (int i = kSize - kTail; i < kSize; ++i) {
      Batch batch;
      batch.max_pages = 3;
      for (int s = 0; s < 3; ++s) {
        batch.token_ids.push_back(ids[size_t(s)][size_t(i)]);
        batch.positions.push_back(i);
        batch.seq_idx.push_back(s);
        batch.logits_rows.push_back(s);
        for (int p = 0; p < 3; ++p) batch.page_table.push_back(20 + 3 * s + p);
      }
      const Rows rows = forward(runner, batch);
      for (size_t s = 0; s < 3; ++s)
        expect_same_bits(alone[s][size_t(i)], rows[s],
                         fmt::format("precise {}, sequence {}, position {}", precise, s, i));
      if (HasFatalFailure()) return;
    }
    // Three times all rows in each of the two forms, and four times those in chunks; a captured step of three rows has
    // a fourth, which is padding.
    const int64_t num_choices = (3 + 3 + 4) * kSize * runner.config().moe.num_experts_per_tok;
    for (const int64_t counted : counted_choices(runner)) EXPECT_EQ(counted, num_choices);
  }
}

// Two ranks that share the GPU, each with half of the experts and sequences of its own: the bits of one rank that
// serves all of them. A prompt in one step, then decode steps that are captured and replayed; rank 1 begins idle.
TEST_P(CudaGolden, ExpertParallelRanksGiveTheSameBits) {
  const Config config = read_config(folder());
  if (config.moe.num_experts == 0) GTEST_SKIP() << "no experts";
  constexpr int kSize = 90, kTail = 12, kSequences = 3;
  for (bool precise : {true, false}) {
    const ModelRunner::Options one = {
        .device = "cuda", .precise = precise, .deterministic = true, .portable = portable(), .kv_dtype = DType::kBF16};
    ModelRunner::Options two = one;
    two.ep_size = 2;
    ModelRunner alone(folder(), one), group(folder(), two);
    std::vector<std::vector<int32_t>> ids;
    std::vector<Rows> expected;
    for (uint32_t s = 0; s < kSequences; ++s) {
      ids.push_back(random_ids(kSize, config.vocab_size, s + 7));
      expected.push_back(forward(alone, rows_of(ids.back(), 0, kSize, int(2 * s))));
    }
    // Sequences 0 and 2 are rank 0's, 1 is rank 1's, which gets its prompt one step later.
    const auto step = [&](const std::function<Batch(int rank)>& batch_of) {
      std::vector<Rows> rows(2);
      group.on_all([&](RankModel& rank) {
        const int r = rank.comm->rank();
        rows[size_t(r)] = host_rows(*rank.ops, rank.model->forward(batch_of(r)));
        rank.comm->check();
      });
      return rows;
    };
    const auto prompt = [&](int s) { return rows_of(ids[size_t(s)], 0, kSize - kTail, 2 * s); };
    for (int s = 0; s < kSequences; ++s) {
      const auto rows = step([&](int r) { return r == s % 2 ? prompt(s) : Batch(); });
      for (size_t i = 0; i < size_t(kSize - kTail); ++i)
        expect_same_bits(expected[size_t(s)][i], rows[size_t(s % 2)][i], fmt::format("prompt {}, row {}", s, i));
      if (HasFatalFailure()) return;
    }
    for (int i = kSize - kTail; i < kSize; ++i) {
      const auto rows = step([&](int r) {
        Batch batch;
        batch.max_pages = 2;
        for (int s = r; s < kSequences; s += 2) {
          batch.seq_idx.push_back(batch.num_tokens());
          batch.logits_rows.push_back(batch.num_tokens());
          batch.token_ids.push_back(ids[size_t(s)][size_t(i)]);
          batch.positions.push_back(i);
          for (int p = 0; p < 2; ++p) batch.page_table.push_back(2 * s + p);
        }
        return batch;
      });
      for (int s = 0; s < kSequences; ++s)
        expect_same_bits(expected[size_t(s)][size_t(i)], rows[size_t(s % 2)][size_t(s / 2)],
                         fmt::format("precise {}, sequence {}, position {}", precise, s, i));
      if (HasFatalFailure()) return;
    }
  }
}

std::string name_of(const testing::TestParamInfo<std::tuple<std::string, bool>>& info) {
  const auto& [folder, portable] = info.param;
  return folder.substr(folder.rfind('/') + 1) + (portable ? "_portable" : "");
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, CudaGolden, testing::Combine(testing::ValuesIn(golden_dirs()), testing::Bool()),
                         name_of);

}  // namespace
}  // namespace moectl::test
