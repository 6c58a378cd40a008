// SamplingRowMaker: adjustments applied to a row of logits as kernels/ops.h says must lead Sampler to the token that it
// chooses by itself.
#include "core/engine/sampling_rows.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "core/engine/sampler.h"

namespace moectl {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// kernels/ops.h, LogitAdjustment.
std::vector<float> adjusted(std::vector<float> logits, const SamplingRow& row,
                            std::span<const LogitAdjustment> adjustments) {
  for (const LogitAdjustment& a : adjustments) {
    float& x = logits[size_t(a.token_id)];
    x += a.bias;
    if (a.seen) x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
    if (a.count > 0) x = x - row.frequency_penalty * float(a.count) - row.presence_penalty;
  }
  return logits;
}

TEST(SamplingRows, LeadToTheSamplersToken) {
  constexpr int32_t kVocab = 300;
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  const auto id = [&](int32_t below) { return int32_t(rng() % unsigned(below)); };
  const auto one_in = [&](unsigned n) { return rng() % n == 0; };
  Sampler sampler(kVocab);
  SamplingRowMaker maker(kVocab);
  std::vector<LogitAdjustment> adjustments;
  int changed = 0;
  for (int i = 0; i < 5000; ++i) {
    std::vector<float> logits(kVocab);
    for (float& x : logits) x = normal(rng);
    SamplingParams p{.temperature = one_in(3) ? 0.0f : 0.8f, .seed = rng(), .max_tokens = 50};
    if (one_in(2)) p.repetition_penalty = 1.3f;
    if (one_in(3)) p.frequency_penalty = -0.4f;
    if (one_in(3)) p.presence_penalty = 0.7f;
    if (one_in(2)) p.logit_bias = {{id(kVocab), 4.0f}};
    if (one_in(3)) p.min_tokens = 8;
    if (one_in(3)) p.stop_token_ids = {id(kVocab), id(kVocab)};
    if (one_in(2)) p.top_k = 20;
    if (one_in(3)) p.top_p = 0.8f;
    std::vector<int32_t> prompt, output;
    for (unsigned n = rng() % 40; n > 0; --n) prompt.push_back(id(kVocab));
    for (unsigned n = rng() % 16; n > 0; --n) output.push_back(id(20));
    const std::vector<int32_t> eos = {5, 6};

    const size_t begin = adjustments.size();
    const SamplingRow row = maker.make({p, prompt, output, eos}, adjustments);
    ASSERT_EQ(size_t(row.adjust_begin), begin);
    ASSERT_EQ(size_t(row.adjust_end), adjustments.size());
    const std::span<const LogitAdjustment> own = std::span(adjustments).subspan(begin);
    for (size_t a = 1; a < own.size(); ++a) ASSERT_LT(own[a - 1].token_id, own[a].token_id);
    changed += !own.empty();

    const SamplingParams plain{
        .temperature = row.temperature, .top_k = row.top_k, .top_p = row.top_p, .min_p = row.min_p, .seed = p.seed};
    const auto changed_logits = adjusted(logits, row, own);
    ASSERT_EQ(sampler.sample({changed_logits, plain, {}, output, {}}).id,
              sampler.sample({logits, p, prompt, output, eos}).id)
        << "case " << i;
    if (row.temperature > 0) {
      ASSERT_EQ(row.uniform, uniform_double(p.seed, output.size(), 0));
    }
  }
  EXPECT_GT(changed, 3000);
}

TEST(SamplingRows, FieldsAndAdjustments) {
  SamplingRowMaker maker(100);
  std::vector<LogitAdjustment> adjustments;
  const std::vector<int32_t> prompt = {9, 70, 9}, output = {70, 3, 70}, eos = {1};
  SamplingParams p{.temperature = 0.5f, .top_k = -1, .top_p = 0.9f, .min_p = 0.1f, .num_logprobs = 4};
  EXPECT_EQ(maker.make({p, prompt, output, eos}, adjustments).adjust_end, 0) << "nothing changes the logits";
  p.frequency_penalty = 0.25f;
  p.min_tokens = 4;
  p.stop_token_ids = {9};
  p.logit_bias = {{2, 1.5f}, {1, 3.0f}};
  const SamplingRow row = maker.make({p, prompt, output, eos}, adjustments);
  EXPECT_EQ(row.top_k, 0);
  EXPECT_EQ(row.top_p, 0.9f);
  EXPECT_EQ(row.min_p, 0.1f);
  EXPECT_EQ(row.frequency_penalty, 0.25f);
  EXPECT_EQ(row.num_logprobs, 4);
  struct Expected {
    int32_t id;
    float bias;
    int count, seen;
  };
  const Expected expected[] = {{1, -kInf, 0, 0}, {2, 1.5f, 0, 0}, {3, 0, 1, 1}, {9, -kInf, 0, 1}, {70, 0, 2, 1}};
  ASSERT_EQ(adjustments.size(), std::size(expected));
  for (size_t i = 0; i < adjustments.size(); ++i) {
    EXPECT_EQ(adjustments[i].token_id, expected[i].id);
    EXPECT_EQ(adjustments[i].bias, expected[i].bias);
    EXPECT_EQ(adjustments[i].count, expected[i].count);
    EXPECT_EQ(adjustments[i].seen, expected[i].seen);
  }
  EXPECT_EQ(maker.make({{.temperature = 0.0f, .min_tokens = 3}, prompt, output, eos}, adjustments).adjust_begin, 5);
  EXPECT_EQ(adjustments.size(), 5u) << "nothing is left over from the row before";
}

TEST(SamplingRows, TokensAndErrors) {
  SampledRow row{.token_id = 7, .logprob = -0.5f, .num_top = 2};
  row.top_ids[0] = 7, row.top_ids[1] = 4;
  row.top_logprobs[0] = -0.5f, row.top_logprobs[1] = -2.0f;
  const auto token = sampled_token(row, {}, 2);
  EXPECT_EQ(token.id, 7);
  EXPECT_EQ(token.logprob, -0.5f);
  ASSERT_EQ(token.top.size(), 2u);
  EXPECT_EQ(token.top[1].token_id, 4);
  EXPECT_EQ(token.top[1].logprob, -2.0f);
  EXPECT_TRUE(sampled_token(row, {}, -1).top.empty()) << "nobody asked";

  const auto error_of = [](auto&& f) -> Error {
    try {
      f();
    } catch (const Error& e) {
      return e;
    }
    return {Code::kInternal, ""};
  };
  const auto expect_same = [](const Error& a, const Error& b, Code code, const std::string& param) {
    EXPECT_STREQ(a.what(), b.what());
    EXPECT_STRNE(a.what(), "");
    EXPECT_EQ(a.code(), code);
    EXPECT_EQ(b.code(), code);
    EXPECT_EQ(a.param(), param);
    EXPECT_EQ(b.param(), param);
  };
  Sampler sampler(4);
  const std::vector<float> nan = {0, std::nanf(""), 0, 0}, only_eos = {-kInf, 1, -kInf, -kInf};
  const std::vector<int32_t> eos = {1};
  row.status = SampledStatus::kNotFinite;
  expect_same(error_of([&] { sampled_token(row, {}, -1); }), error_of([&] {
                sampler.sample({nan, {}, {}, {}, {}});
              }),
              Code::kInternal, "");
  row.status = SampledStatus::kNothingLeft;
  const SamplingParams masks = {.min_tokens = 2};
  expect_same(error_of([&] { sampled_token(row, masks, -1); }), error_of([&] {
                sampler.sample({only_eos, masks, {}, {}, eos});
              }),
              Code::kInvalidArgument, "min_tokens");
}

}  // namespace
}  // namespace moectl
