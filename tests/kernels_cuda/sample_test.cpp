// sample_rows against core/engine's Sampler: the same rows, parameters and texts must give the same tokens, the same
// best tokens and the same errors. Logprobs may differ by one unit in the last place (sums of other order, another
// log).
#include "kernels/cuda/sample/sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "core/engine/sampler.h"
#include "core/engine/sampling_rows.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

using SampleCudaTest = GpuTest;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Request {
  SamplingParams params;
  std::vector<int32_t> prompt, output, eos = {0};
  int32_t given_id = -1;  // 0 or more: Sampler::score
};

struct RowsCase {
  int32_t vocab_size = 0;
  std::vector<float> logits;  // [requests, vocab_size]
  std::vector<Request> requests;

  int64_t num_rows() const { return int64_t(requests.size()); }
  std::span<const float> row(size_t i) const {
    return std::span(logits).subspan(i * size_t(vocab_size), size_t(vocab_size));
  }
  RowsCase alone(size_t i) const { return {vocab_size, {row(i).begin(), row(i).end()}, {requests[i]}}; }
};

// What sample_rows reads, on the device.
// `fed_back`: the last token of every output is known to the device alone.
struct DeviceRows {
  explicit DeviceRows(const RowsCase& c, bool fed_back = false)
      : logits(c.logits),
        rows(make_rows(c, fed_back)),
        previous(last_tokens),
        adjustments(changes),
        out(c.num_rows()),
        next(c.num_rows()),
        scratch(cuda::sample_scratch_bytes(c.num_rows(), c.vocab_size)) {
    args.logits = View<const float>(logits.data(), {c.num_rows(), c.vocab_size});
    args.rows = View<const SamplingRow>(rows.data(), {c.num_rows()});
    args.adjustments = View<const LogitAdjustment>(adjustments.data(), {adjustments.size()});
    args.out = View<SampledRow>(out.data(), {c.num_rows()});
    args.next_token_ids = View<int32_t>(next.data(), {c.num_rows()});
    args.sampled = View<const int32_t>(previous.data(), {c.num_rows()});
  }
  std::vector<SamplingRow> make_rows(const RowsCase& c, bool fed_back) {
    SamplingRowMaker maker(c.vocab_size);
    std::vector<SamplingRow> made;
    for (const Request& r : c.requests) {
      const int num_unknown = fed_back && !r.output.empty(), row = int(last_tokens.size());
      last_tokens.push_back(r.output.empty() ? -1 : r.output.back());
      const std::span known(r.output.data(), r.output.size() - size_t(num_unknown));
      made.push_back(r.given_id >= 0 ? score_row(r.given_id, r.params.num_logprobs)
                                     : maker.make({r.params, r.prompt, known, r.eos, num_unknown, row}, changes));
    }
    return made;
  }

  std::vector<LogitAdjustment> changes;
  std::vector<int32_t> last_tokens;
  DeviceArray<float> logits;
  DeviceArray<SamplingRow> rows;
  DeviceArray<int32_t> previous;
  DeviceArray<LogitAdjustment> adjustments;
  DeviceArray<SampledRow> out;
  DeviceArray<int32_t> next;
  DeviceArray<std::byte> scratch;
  SampleRowsArgs args;
};

std::vector<SampledRow> sample(const RowsCase& c, bool fed_back = false) {
  DeviceRows d(c, fed_back);
  cuda::sample_rows(d.args, d.scratch.data(), {});
  const auto out = d.out.host();
  const auto next = d.next.host();
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(next[i], out[i].token_id) << "row " << i;
  return out;
}

struct Tally {
  int rows = 0, errors = 0, drawn = 0, logprobs = 0, inexact_logprobs = 0;
};

// Sums in another order move the logarithm, in double precision, by some units in the last place, which the rounding to
// float may show; where logit and logarithm cancel, their difference has this absolute error.
bool same_logprob(float a, float b) {
  return a == b || std::nextafter(a, b) == b || std::abs(double(a) - double(b)) < 1e-13;
}

void expect_as_on_cpu(const RowsCase& c, size_t i, Sampler& sampler, const SampledRow& row, Tally& tally) {
  const Request& r = c.requests[i];
  ++tally.rows;
  GenerateOutput::Token expected, token;
  std::string expected_error, error;
  try {
    expected = r.given_id >= 0 ? sampler.score(c.row(i), r.given_id, r.params.num_logprobs)
                               : sampler.sample({c.row(i), r.params, r.prompt, r.output, r.eos});
  } catch (const Error& e) {
    expected_error = e.what();
    ++tally.errors;
  }
  try {
    token = sampled_token(row, r.params, r.params.num_logprobs);
  } catch (const Error& e) {
    error = e.what();
    EXPECT_EQ(row.token_id, 0);
  }
  const SamplingParams& p = r.params;
  SCOPED_TRACE(fmt::format("vocabulary {}, row {}: temperature {}, top_k {}, top_p {}, min_p {}, logprobs {}",
                           c.vocab_size, i, p.temperature, p.top_k, p.top_p, p.min_p, p.num_logprobs));
  ASSERT_EQ(error, expected_error);
  ASSERT_EQ(token.id, expected.id);
  ASSERT_EQ(token.top.size(), expected.top.size());
  tally.drawn += error.empty() && r.given_id < 0 && p.temperature >= kGreedyBelow;
  const auto expect_logprob = [&](float a, float b) {
    ++tally.logprobs;
    tally.inexact_logprobs += a != b;
    EXPECT_TRUE(same_logprob(a, b)) << a << " and " << b;
  };
  expect_logprob(token.logprob, expected.logprob);
  for (size_t t = 0; t < expected.top.size(); ++t) {
    ASSERT_EQ(token.top[t].token_id, expected.top[t].token_id) << "place " << t;
    expect_logprob(token.top[t].logprob, expected.top[t].logprob);
  }
}

void expect_all_as_on_cpu(const RowsCase& c, Tally& tally) {
  Sampler sampler(c.vocab_size);
  for (const bool fed_back : {false, true}) {
    const auto out = sample(c, fed_back);
    for (size_t i = 0; i < out.size(); ++i) {
      expect_as_on_cpu(c, i, sampler, out[i], tally);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

// ------------------------------------------------------------------------------------------------ random rows

using Rng = std::mt19937_64;

template <class... V>
double pick(Rng& rng, V... values) {
  const double v[] = {double(values)...};
  return v[rng() % sizeof...(values)];
}

// Distributions of every kind: a model's (few good tokens, a long tail), normal ones, ties, flat ones, holes.
void fill_row(Rng& rng, std::span<float> row) {
  const uint64_t kind = rng() % 8;
  std::normal_distribution<float> normal(0.0f, float(pick(rng, 0.1, 1, 3, 10)));
  const float offset = float(pick(rng, 0, -30, 12));
  for (float& x : row) x = normal(rng) + offset;
  if (kind == 0 || kind == 1) {  // falls with the rank, as words do
    const float slope = float(pick(rng, 1.2, 2, 3));
    for (size_t i = 0; i < row.size(); ++i) row[i] = offset - slope * std::log(1.0f + float(i)) + 0.1f * row[i];
    std::ranges::shuffle(row, rng);
  }
  if (kind == 2)
    for (float& x : row) x = std::round(x);
  if (kind == 3) std::ranges::fill(row, offset);
  if (kind == 4)
    for (float& x : row) x = rng() % 3 ? -kInf : x;
  if (kind == 5) row[rng() % row.size()] += 25.0f;
  for (float& x : row)
    if (x == 0.0f && rng() % 2) x = -0.0f;
}

Request random_request(Rng& rng, int32_t vocab) {
  Request r;
  SamplingParams& p = r.params;
  const auto id = [&] { return int32_t(rng() % uint64_t(vocab)); };
  p.temperature = float(pick(rng, 0, 0.2, 0.7, 1, 1, 1.8, 30));
  p.top_k = int(pick(rng, 0, 0, 0, 1, 5, 50, 1000, 4096, 5000, 100000));
  p.top_p = float(pick(rng, 1, 1, 1e-6, 0.1, 0.5, 0.95, 0.999, 0.9999999));
  p.min_p = float(pick(rng, 0, 0, 0, 0.05, 0.3, 1));
  p.num_logprobs = int(pick(rng, -1, -1, 0, 1, 5, 20));
  if (rng() % 10 == 0) {
    r.given_id = id();
    p.num_logprobs = std::max(p.num_logprobs, 0);
  }
  p.seed = rng();
  p.max_tokens = 100;
  if (rng() % 4 == 0) {
    p.repetition_penalty = float(pick(rng, 1, 1.3, 0.8));
    p.presence_penalty = float(pick(rng, 0, 0.6));
    p.frequency_penalty = float(pick(rng, 0, -0.4, 0.3));
    for (uint64_t n = rng() % 6000; n > 0; --n) r.prompt.push_back(id());
  }
  for (uint64_t n = rng() % 60; n > 0; --n) r.output.push_back(int32_t(rng() % uint64_t(std::min(vocab, 20))));
  if (rng() % 5 == 0) p.min_tokens = 30;
  if (rng() % 5 == 0)
    for (int32_t token : {id(), id()})
      if (p.logit_bias.empty() || p.logit_bias[0].first != token)
        p.logit_bias.push_back({token, float(pick(rng, 3, -100, 1e38))});
  if (rng() % 4 == 0) p.stop_token_ids = {id(), id()};
  return r;
}

RowsCase random_case(int32_t vocab_size, int num_rows, uint64_t seed) {
  Rng rng(seed);
  RowsCase c{vocab_size, std::vector<float>(size_t(num_rows) * size_t(vocab_size)), {}};
  for (int i = 0; i < num_rows; ++i) {
    const std::span<float> row = std::span(c.logits).subspan(size_t(i) * size_t(vocab_size), size_t(vocab_size));
    fill_row(rng, row);
    if (rng() % 40 == 0) row[rng() % row.size()] = float(pick(rng, kNan, kInf, -kNan));
    if (rng() % 100 == 0) std::ranges::fill(row, -kInf);
    c.requests.push_back(random_request(rng, vocab_size));
  }
  return c;
}

TEST_F(SampleCudaTest, ChoosesWhatTheSamplerChooses) {
  for (const auto& [vocab, rows, batches] : {std::tuple(1, 300, 1),
                                             {2, 300, 1},
                                             {7, 512, 4},
                                             {1000, 512, 6},
                                             {4097, 300, 2},
                                             {129280, 100, 6},
                                             {201088, 60, 4},
                                             {262144, 40, 1}}) {
    Tally tally;
    for (int batch = 0; batch < batches; ++batch) {
      expect_all_as_on_cpu(random_case(vocab, rows, uint64_t(vocab) * 100 + uint64_t(batch)), tally);
      if (HasFatalFailure()) return;
    }
    std::printf("vocabulary %6d: %d rows, %d drawn, %d errors, tokens equal; %d of %d logprobs differ by rounding\n",
                vocab, tally.rows, tally.drawn, tally.errors, tally.inexact_logprobs, tally.logprobs);
    EXPECT_GT(tally.drawn, tally.rows / 3);
  }
}

// Draws at the very ends of [0, 1), which no seed gives soon: sample_rows takes the number as it is, so the reference
// here is the order of tokens.
TEST_F(SampleCudaTest, TheEndsOfTheInterval) {
  constexpr int kVocab = 20000, kRows = 6;
  RowsCase c{kVocab, {}, {}};
  Rng rng(3);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  for (int i = 0; i < kRows * kVocab; ++i) c.logits.push_back(normal(rng));
  for (int top_k : {0, 0, 37, 37, 5000, 5000}) c.requests.push_back({.params = {.top_k = top_k}});
  DeviceRows d(c);
  auto rows = d.rows.host();
  for (size_t i = 0; i < rows.size(); ++i) rows[i].uniform = i % 2 ? 1.0 - 0x1p-53 : 0.0;
  d.rows.upload(rows);
  cuda::sample_rows(d.args, d.scratch.data(), {});
  const auto out = d.out.host();
  for (size_t i = 0; i < rows.size(); ++i) {
    std::vector<int32_t> order(kVocab);
    std::iota(order.begin(), order.end(), 0);
    if (rows[i].top_k) {
      std::ranges::stable_sort(order, [&](int a, int b) { return c.row(i)[size_t(a)] > c.row(i)[size_t(b)]; });
      order.resize(size_t(rows[i].top_k));
    }
    EXPECT_EQ(out[i].token_id, i % 2 ? order.back() : order.front()) << i;
  }
}

TEST_F(SampleCudaTest, ARowDoesNotDependOnTheOthers) {
  for (int32_t vocab : {1000, 129280}) {
    const RowsCase c = random_case(vocab, 48, 17);
    const auto together = sample(c);
    for (size_t i = 0; i < together.size(); ++i) {
      const SampledRow alone = sample(c.alone(i))[0];
      ASSERT_EQ(alone.status, together[i].status);
      ASSERT_EQ(alone.token_id, together[i].token_id);
      ASSERT_EQ(alone.num_top, together[i].num_top);
      ASSERT_EQ(std::memcmp(&alone.logprob, &together[i].logprob, sizeof(float)), 0);
      const size_t n = size_t(alone.num_top);
      ASSERT_TRUE(std::equal(alone.top_ids, alone.top_ids + n, together[i].top_ids));
      ASSERT_EQ(std::memcmp(alone.top_logprobs, together[i].top_logprobs, n * sizeof(float)), 0);
    }
  }
}

TEST_F(SampleCudaTest, AGraphServesRowsThatCameAfterIt) {
  const RowsCase first = random_case(1000, 40, 5), second = random_case(1000, 40, 6);
  DeviceRows d(first), other(second);
  const int64_t num_changes = std::max(d.adjustments.size(), other.adjustments.size());
  DeviceArray<LogitAdjustment> adjustments(num_changes);
  d.args.adjustments = View<const LogitAdjustment>(adjustments.data(), {num_changes});
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  CUDA_CHECK(cudaStreamCreate(&stream));
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  cuda::sample_rows(d.args, d.scratch.data(), {stream});
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  Tally tally;
  for (const RowsCase* c : {&first, &second, &first}) {
    DeviceRows source(*c);
    const auto copy = [](auto& to, const auto& from) {
      CUDA_CHECK(cudaMemcpy(to.data(), from.data(), size_t(from.size()) * sizeof(*from.data()), cudaMemcpyDefault));
    };
    copy(d.logits, source.logits);
    copy(d.rows, source.rows);
    copy(adjustments, source.adjustments);
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    const auto out = d.out.host();
    Sampler sampler(c->vocab_size);
    for (size_t i = 0; i < out.size(); ++i) expect_as_on_cpu(*c, i, sampler, out[i], tally);
  }
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaStreamDestroy(stream));
}

TEST_F(SampleCudaTest, WrongSizesAreRefused) {
  float* logits = nullptr;
  SamplingRow* rows = nullptr;
  SampledRow* out = nullptr;
  SampleRowsArgs args;
  args.logits = View<const float>(logits, {2, cuda::kMaxSampledVocab + 1});
  args.rows = View<const SamplingRow>(rows, {2});
  args.out = View<SampledRow>(out, {2});
  EXPECT_THROW(cuda::sample_rows(args, nullptr, {}), Error);
  args.logits = View<const float>(logits, {3, 1000});
  EXPECT_THROW(cuda::sample_rows(args, nullptr, {}), Error);
}

}  // namespace
}  // namespace moectl::test
