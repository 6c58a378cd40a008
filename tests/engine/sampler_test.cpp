// Sampler against a plain double-precision reference written from the definition, and its edges.
#include "core/engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "core/engine/softmax.h"

namespace moectl {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> random_row(std::mt19937& rng, size_t size, float spread) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> row(size);
  for (float& x : row) x = normal(rng);
  return row;
}

struct Text {
  std::vector<int32_t> prompt, output, eos = {1};
};

int32_t sample_id(Sampler& sampler, const std::vector<float>& row, const SamplingParams& params,
                  const Text& text = {}) {
  return sampler.sample({row, params, text.prompt, text.output, text.eos}).id;
}

// ------------------------------------------------------------------------------------------------ reference

struct Kept {
  int32_t id;
  double probability;
};

std::vector<double> reference_logits(const std::vector<float>& row, const SamplingParams& p, const Text& text) {
  std::vector<double> x(row.begin(), row.end());
  if (int(text.output.size()) < p.min_tokens) {
    for (int32_t id : text.eos) x[size_t(id)] = -INFINITY;
    for (int32_t id : p.stop_token_ids) x[size_t(id)] = -INFINITY;
  }
  for (auto [id, bias] : p.logit_bias) x[size_t(id)] += bias;
  for (size_t id = 0; id < x.size(); ++id) {
    const auto in_output = std::ranges::count(text.output, int32_t(id));
    if (in_output || std::ranges::count(text.prompt, int32_t(id)))
      x[id] = x[id] > 0 ? x[id] / p.repetition_penalty : x[id] * p.repetition_penalty;
    x[id] -= p.frequency_penalty * double(in_output) + (in_output ? p.presence_penalty : 0.0);
  }
  return x;
}

void normalise(std::vector<Kept>& kept) {
  double sum = 0;
  for (const Kept& k : kept) sum += k.probability;
  for (Kept& k : kept) k.probability /= sum;
}

// The distribution after every filter, in the order of the draw.
std::vector<Kept> reference_distribution(const std::vector<double>& x, const SamplingParams& p) {
  const double max = *std::ranges::max_element(x);
  std::vector<Kept> kept;
  for (size_t id = 0; id < x.size(); ++id) kept.push_back({int32_t(id), std::exp((x[id] - max) / p.temperature)});
  std::erase_if(kept, [&](const Kept& k) { return k.probability < p.min_p; });
  const bool best_first = (p.top_k > 0 && p.top_k < int(x.size())) || p.top_p < 1.0f;
  if (best_first)
    std::ranges::stable_sort(kept, [&](const Kept& a, const Kept& b) { return x[size_t(a.id)] > x[size_t(b.id)]; });
  if (p.top_k > 0 && int(kept.size()) > p.top_k) kept.resize(size_t(p.top_k));
  normalise(kept);
  if (p.top_p < 1.0f) {
    double mass = 0;
    size_t n = 0;
    while (n < kept.size() && mass < p.top_p) mass += kept[n++].probability;
    kept.resize(n);
    normalise(kept);
  }
  return kept;
}

// True when `id` is what the inverse CDF gives at u, up to `slack` at the borders of its interval.
bool is_draw(const std::vector<Kept>& kept, int32_t id, double u, double slack) {
  double below = 0;
  for (const Kept& k : kept) {
    if (k.id == id) return u >= below - slack && u <= below + k.probability + slack;
    below += k.probability;
  }
  return false;
}

// ------------------------------------------------------------------------------------------------ tests

TEST(Softmax, ExpAgreesWithLibm) {
  for (float x = 0.0f; x > -87.0f; x -= 0.00937f) ASSERT_NEAR(exp_nonpositive(x) / std::exp(double(x)), 1.0, 3e-7) << x;
  EXPECT_EQ(exp_nonpositive(0.0f), 1.0f);
  EXPECT_EQ(exp_nonpositive(-200.0f), 0.0f);
  EXPECT_EQ(exp_nonpositive(-kInf), 0.0f);
}

TEST(Softmax, LogSumExpAgreesWithDouble) {
  std::mt19937 rng(1);
  for (size_t size : {1, 15, 16, 17, 1000, 4096, 129280}) {
    const auto row = random_row(rng, size, 5.0f);
    const float max = *std::ranges::max_element(row);
    double sum = 0;
    for (float x : row) sum += std::exp(double(x) - max);
    EXPECT_NEAR(log_sum_exp(row, max), max + std::log(sum), 1e-6) << size;
    EXPECT_EQ(row_stats(row).argmax, std::ranges::max_element(row) - row.begin());
  }
}

TEST(Sampler, AgreesWithTheReferenceOnRandomParameters) {
  std::mt19937 rng(2);
  const auto pick = [&](auto... values) {
    const double v[] = {double(values)...};
    return v[rng() % sizeof...(values)];
  };
  for (size_t vocab : {7, 300, 1111}) {
    Sampler sampler{int32_t(vocab)};
    std::vector<int> hits(4);
    for (int i = 0; i < 2000; ++i) {
      auto row = random_row(rng, vocab, float(pick(0.1, 1, 4)));
      if (i % 5 == 0)
        for (float& x : row) x = std::round(x);  // many ties
      SamplingParams p;
      p.temperature = float(pick(0.2, 0.7, 1, 1.8));
      p.top_k = int(pick(0, 0, 1, 5, 50, 5000));
      p.top_p = float(pick(1, 1, 0.1, 0.5, 0.95));
      p.min_p = float(pick(0, 0, 0.05, 0.3));
      p.repetition_penalty = float(pick(1, 1, 1.3, 0.8));
      p.presence_penalty = float(pick(0, 0.6));
      p.frequency_penalty = float(pick(0, -0.4, 0.3));
      p.min_tokens = int(pick(0, 6));
      p.seed = rng();
      if (i % 3 == 0) p.logit_bias = {{int32_t(rng() % vocab), 3.0f}, {int32_t(rng() % vocab), -100.0f}};
      if (i % 4 == 0) p.stop_token_ids = {2, 3};
      Text text;
      for (unsigned n = rng() % 9; n > 0; --n) text.prompt.push_back(int32_t(rng() % vocab));
      for (unsigned n = rng() % 12; n > 0; --n) text.output.push_back(int32_t(rng() % std::min<size_t>(vocab, 20)));
      const int32_t id = sample_id(sampler, row, p, text);
      const auto kept = reference_distribution(reference_logits(row, p, text), p);
      const double u = uniform_double(p.seed, text.output.size(), 0);
      ASSERT_TRUE(is_draw(kept, id, u, 2e-6)) << "case " << i << " vocab " << vocab << " token " << id << " u " << u;
    }
  }
}

TEST(Sampler, FrequenciesFollowTheDistribution) {
  std::mt19937 rng(3);
  const auto row = random_row(rng, 12, 0.8f);
  Sampler sampler(12);
  for (const auto& [top_k, top_p] : {std::pair(0, 1.0f), {6, 1.0f}, {0, 0.8f}}) {
    SamplingParams p{.temperature = 0.9f, .top_k = top_k, .top_p = top_p, .seed = 99};
    const auto kept = reference_distribution({row.begin(), row.end()}, p);
    constexpr int kDraws = 40000;
    std::vector<int> count(12);
    Text text;
    for (int i = 0; i < kDraws; ++i) {
      ++count[size_t(sample_id(sampler, row, p, text))];
      text.output.assign(size_t(i + 1) % 4096, 0);  // the output index is the counter
      p.seed = 99 + uint64_t(i + 1) / 4096;
    }
    double chi2 = 0;
    int total = 0;
    for (const Kept& k : kept) {
      chi2 += std::pow(count[size_t(k.id)] - kDraws * k.probability, 2) / (kDraws * k.probability);
      total += count[size_t(k.id)];
    }
    EXPECT_EQ(total, kDraws) << "tokens outside the kept set were drawn";
    ASSERT_GE(kept.size(), 4u);
    const double freedom = double(kept.size()) - 1;
    EXPECT_LT(chi2, freedom + 4 * std::sqrt(2 * freedom)) << top_k << " " << top_p;
  }
}

TEST(Sampler, GreedyTakesTheBestAndTheLowestOfEquals) {
  Sampler sampler(40);
  std::vector<float> row(40, -1.0f);
  row[33] = row[9] = row[20] = 2.5f;
  EXPECT_EQ(sample_id(sampler, row, {.temperature = 0.0f}), 9);
  EXPECT_EQ(sample_id(sampler, row, {.temperature = 0.0f, .logit_bias = {{9, -1.0f}}}), 20);
  EXPECT_EQ(sample_id(sampler, row, {.temperature = 0.7f, .top_k = 1}), 9);
  EXPECT_EQ(sample_id(sampler, row, {.temperature = 0.7f, .top_p = 1e-6f}), 9);
}

TEST(Sampler, MinTokensMasksEndsUntilReached) {
  Sampler sampler(8);
  const std::vector<float> row = {0, 9, 8, 7, 0, 0, 0, 0};  // eos is 1
  SamplingParams p{.temperature = 0.0f, .max_tokens = 9, .min_tokens = 2, .stop_token_ids = {2}};
  EXPECT_EQ(sample_id(sampler, row, p), 3);
  EXPECT_EQ(sample_id(sampler, row, p, {.output = {5}}), 3);
  EXPECT_EQ(sample_id(sampler, row, p, {.output = {5, 5}}), 1);
  const std::vector<float> only_eos = {-kInf, 1, -kInf, -kInf, -kInf, -kInf, -kInf, -kInf};
  EXPECT_THROW(sample_id(sampler, only_eos, p), Error) << "nothing left to choose";
}

TEST(Sampler, LogprobsAreOfTheRawRow) {
  std::mt19937 rng(4);
  const auto row = random_row(rng, 500, 3.0f);
  Sampler sampler(500);
  const SamplingParams p{
      .temperature = 0.0f, .repetition_penalty = 1.5f, .logit_bias = {{42, 1000.0f}}, .num_logprobs = 5};
  const auto token = sampler.sample({row, p, {}, {}, {}});
  EXPECT_EQ(token.id, 42) << "the bias decides";
  double sum = 0;
  for (float x : row) sum += std::exp(double(x));
  EXPECT_NEAR(token.logprob, row[42] - std::log(sum), 2e-6);
  std::vector<int32_t> order(500);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int a, int b) { return row[size_t(a)] > row[size_t(b)]; });
  ASSERT_EQ(token.top.size(), 5u);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(token.top[i].token_id, order[i]);
    EXPECT_NEAR(token.top[i].logprob, row[size_t(order[i])] - std::log(sum), 2e-6);
  }
  EXPECT_TRUE(sampler.sample({row, {.temperature = 0.0f, .num_logprobs = 0}, {}, {}, {}}).top.empty());
  const std::vector<float> ties(500, 1.0f);
  const auto tied = sampler.score(ties, 7, 3);
  EXPECT_EQ(tied.top[0].token_id, 0);
  EXPECT_EQ(tied.top[2].token_id, 2);
  EXPECT_NEAR(tied.logprob, -std::log(500.0), 1e-6);
}

TEST(Sampler, BrokenRowsAreErrorsAndLeaveNoTrace) {
  Sampler sampler(100);
  std::mt19937 rng(5);
  const auto good = random_row(rng, 100, 1.0f);
  const SamplingParams p{.top_k = 9, .top_p = 0.9f, .seed = 3, .repetition_penalty = 1.2f, .num_logprobs = 2};
  const Text text{.prompt = {1, 2, 3}, .output = {4, 4}};
  const int32_t expected = sample_id(sampler, good, p, text);
  for (size_t where : {0, 50, 99})
    for (float bad : {kNan, kInf, -kNan}) {
      auto row = good;
      row[where] = bad;
      EXPECT_THROW(sample_id(sampler, row, p, text), Error);
      EXPECT_EQ(sample_id(sampler, good, p, text), expected);
    }
  EXPECT_THROW(sample_id(sampler, std::vector<float>(100, -kInf), p, text), Error);
  auto masked = good;
  masked[7] = -kInf;
  EXPECT_NO_THROW(sample_id(sampler, masked, p, text));
}

TEST(Sampler, ExtremeRowsStayInRange) {
  Sampler sampler(300);
  for (float spread : {1e-38f, 1e-3f, 1e3f, 1e37f}) {
    std::mt19937 rng(6);
    const auto row = random_row(rng, 300, spread);
    for (float temperature : {1e-5f, 1.0f, 1e30f})
      for (uint64_t seed = 0; seed < 50; ++seed) {
        SamplingParams p{.temperature = temperature, .seed = seed};
        const int32_t by_id = sample_id(sampler, row, p);
        p.top_p = 0.999f;
        const int32_t best_first = sample_id(sampler, row, p);
        ASSERT_TRUE(by_id >= 0 && by_id < 300 && best_first >= 0 && best_first < 300);
      }
  }
}

TEST(SamplingParams, AreChecked) {
  const auto message = [](SamplingParams p) -> std::string {
    try {
      check_sampling_params(p, 10);
      return "";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kInvalidArgument);
      return e.param();
    }
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.temperature = -0.1f}), "temperature");
  EXPECT_EQ(message({.temperature = kNan}), "temperature");
  EXPECT_EQ(message({.top_k = -2}), "top_k");
  EXPECT_EQ(message({.top_p = 0.0f}), "top_p");
  EXPECT_EQ(message({.top_p = 1.1f}), "top_p");
  EXPECT_EQ(message({.min_p = kNan}), "min_p");
  EXPECT_EQ(message({.repetition_penalty = 0.0f}), "repetition_penalty");
  EXPECT_EQ(message({.logit_bias = {{10, 1.0f}}}), "logit_bias");
  EXPECT_EQ(message({.logit_bias = {{1, kInf}}}), "logit_bias");
  EXPECT_EQ(message({.max_tokens = -1}), "max_tokens");
  EXPECT_EQ(message({.max_tokens = 2, .min_tokens = 3}), "min_tokens");
  EXPECT_EQ(message({.stop_token_ids = {-1}}), "stop_token_ids");
  EXPECT_EQ(message({.num_logprobs = 21}), "logprobs");
}

}  // namespace
}  // namespace moectl
