#include "core/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/check.h"
#include "core/base/rng.h"
#include "core/engine/softmax.h"
#include "kernels/ops.h"

namespace moectl {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr size_t kDrawBlock = 256;   // ids a partial sum of the weights
constexpr size_t kFirstSorted = 64;  // candidates sorted before top_p looks for more

RowStats checked_stats(std::span<const float> logits) {
  const RowStats stats = row_stats(logits);
  if (!stats.valid || stats.argmax < 0) throw Error(Code::kInternal, kLogitsNotFinite);
  return stats;
}

// The `num_top` best of a row, best first, equal ones by id.
std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, int num_top, double log_sum) {
  std::vector<TokenLogprob> top;
  const size_t limit = std::min(size_t(num_top), logits.size());
  if (limit == 0) return top;
  top.reserve(limit + 1);
  for (size_t i = 0; i < logits.size(); ++i) {
    if (top.size() == limit && !(logits[i] > top.back().logprob)) continue;
    auto place = std::upper_bound(top.begin(), top.end(), logits[i],
                                  [](float x, const TokenLogprob& t) { return x > t.logprob; });
    top.insert(place, {int32_t(i), logits[i]});
    if (top.size() > limit) top.pop_back();
  }
  for (TokenLogprob& t : top) t.logprob = float(double(t.logprob) - log_sum);
  return top;
}

void require(bool ok, const char* param, const std::string& what) {
  if (!ok) throw Error(Code::kInvalidArgument, fmt::format("{} {}", param, what), param);
}

}  // namespace

bool has_penalties(const SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

Error nothing_to_choose(const SamplingParams& p) {
  const char* param = !p.logit_bias.empty()          ? "logit_bias"
                      : p.min_tokens > 0             ? "min_tokens"
                      : p.repetition_penalty != 1.0f ? "repetition_penalty"
                      : p.frequency_penalty != 0.0f  ? "frequency_penalty"
                                                     : "presence_penalty";
  return {Code::kInvalidArgument, "logit_bias, min_tokens and the penalties leave no token to choose", param};
}

void check_sampling_params(const SamplingParams& p, int32_t vocab_size) {
  const auto finite = [](float x) { return std::isfinite(x); };
  const auto in_vocab = [&](int32_t id) { return id >= 0 && id < vocab_size; };
  require(finite(p.temperature) && p.temperature >= 0.0f, "temperature",
          fmt::format("must be 0 or more, not {}", p.temperature));
  require(p.top_p > 0.0f && p.top_p <= 1.0f, "top_p", fmt::format("must be in (0, 1], not {}", p.top_p));
  require(p.min_p >= 0.0f && p.min_p <= 1.0f, "min_p", fmt::format("must be in [0, 1], not {}", p.min_p));
  require(p.top_k >= -1, "top_k", fmt::format("must be 0 or -1 (off) or more, not {}", p.top_k));
  require(finite(p.presence_penalty), "presence_penalty", "must be finite");
  require(finite(p.frequency_penalty), "frequency_penalty", "must be finite");
  require(finite(p.repetition_penalty) && p.repetition_penalty > 0.0f, "repetition_penalty",
          fmt::format("must be more than 0, not {}", p.repetition_penalty));
  require(p.max_tokens >= 0, "max_tokens", fmt::format("must be 0 or more, not {}", p.max_tokens));
  require(p.min_tokens >= 0 && p.min_tokens <= p.max_tokens, "min_tokens",
          fmt::format("must be between 0 and max_tokens ({}), not {}", p.max_tokens, p.min_tokens));
  require(p.num_logprobs >= -1 && p.num_logprobs <= kMaxTopLogprobs, "logprobs",
          fmt::format("must be at most {}, not {}", kMaxTopLogprobs, p.num_logprobs));
  for (const auto& [id, bias] : p.logit_bias)
    require(in_vocab(id) && finite(bias), "logit_bias",
            fmt::format("has id {} with bias {}; ids are 0 .. {} and a bias is finite", id, bias, vocab_size - 1));
  for (int32_t id : p.stop_token_ids)
    require(in_vocab(id), "stop_token_ids", fmt::format("has id {}; ids are 0 .. {}", id, vocab_size - 1));
}

Sampler::Sampler(int32_t vocab_size) : vocab_size_(size_t(vocab_size)) {
  CHECK(vocab_size > 0, "vocab_size {}", vocab_size);
  processed_.resize(vocab_size_);
  weights_.resize(vocab_size_);
  counts_.resize(vocab_size_);
  candidates_.reserve(vocab_size_);
}

GenerateOutput::Token Sampler::score(std::span<const float> logits, int32_t token_id, int num_top) const {
  CHECK(logits.size() == vocab_size_ && size_t(token_id) < vocab_size_, "token {} in a row of {}", token_id,
        logits.size());
  const double log_sum = log_sum_exp(logits, checked_stats(logits).max);
  return {.id = token_id,
          .logprob = float(double(logits[size_t(token_id)]) - log_sum),
          .top = top_logprobs(logits, std::max(num_top, 0), log_sum)};
}

GenerateOutput::Token Sampler::sample(const SampleArgs& args) {
  CHECK(args.logits.size() == vocab_size_, "a row of {} logits, the vocabulary has {}", args.logits.size(),
        vocab_size_);
  const SamplingParams& params = args.params;
  RowStats stats = checked_stats(args.logits);
  const std::span<const float> logits = process(args);
  if (logits.data() != args.logits.data()) {
    stats = row_stats(logits);
    if (!stats.valid || stats.argmax < 0) throw nothing_to_choose(params);
  }
  int32_t id = stats.argmax;
  if (params.temperature >= kGreedyBelow)
    id = draw(logits, stats.max, params, uniform_double(params.seed, args.output_ids.size(), 0));
  if (params.num_logprobs < 0) return {.id = id};
  return score(args.logits, id, params.num_logprobs);
}

// The row after steps 2 and 3: `args.logits` itself when nothing changes it, else processed_.
std::span<const float> Sampler::process(const SampleArgs& args) {
  const SamplingParams& params = args.params;
  const bool masked = args.output_ids.size() < size_t(params.min_tokens);
  if (!masked && params.logit_bias.empty() && !has_penalties(params)) return args.logits;
  std::ranges::copy(args.logits, processed_.begin());
  if (masked) {
    for (int32_t id : args.eos_token_ids) processed_[size_t(id)] = kMinusInf;
    for (int32_t id : params.stop_token_ids) processed_[size_t(id)] = kMinusInf;
  }
  for (const auto& [id, bias] : params.logit_bias) processed_[size_t(id)] += bias;
  if (has_penalties(params)) penalize(args);
  return processed_;
}

// Walks the text instead of keeping counts a request: nothing to carry through preemption.
void Sampler::penalize(const SampleArgs& args) {
  const SamplingParams& params = args.params;
  for (int32_t id : args.output_ids) ++counts_[size_t(id)];
  const auto repeat = [&](float x) { return x > 0.0f ? x / params.repetition_penalty : x * params.repetition_penalty; };
  for (int32_t id : args.output_ids) {
    int32_t& count = counts_[size_t(id)];
    if (count <= 0) continue;
    float& x = processed_[size_t(id)];
    x = repeat(x) - params.frequency_penalty * float(count) - params.presence_penalty;
    count = -1;  // done
  }
  for (int32_t id : args.prompt_ids) {
    int32_t& count = counts_[size_t(id)];
    if (count == 0) processed_[size_t(id)] = repeat(processed_[size_t(id)]);
    count = -1;
  }
  for (int32_t id : args.output_ids) counts_[size_t(id)] = 0;
  for (int32_t id : args.prompt_ids) counts_[size_t(id)] = 0;
}

int32_t Sampler::draw(std::span<const float> logits, float max, const SamplingParams& params, double u) {
  softmax_weights(logits, max, 1.0f / params.temperature, weights_);
  if (params.min_p > 0.0f)  // the best token's weight is 1
    for (float& w : weights_) w = w < params.min_p ? 0.0f : w;
  const bool top_k = params.top_k > 0 && size_t(params.top_k) < vocab_size_;
  return top_k || params.top_p < 1.0f ? draw_best_first(logits, params, u) : draw_by_id(u);
}

std::span<const float> Sampler::weight_block(size_t begin) const {
  return std::span(weights_).subspan(begin, std::min(kDrawBlock, vocab_size_ - begin));
}

double Sampler::total_weight() const {
  double total = 0.0;
  for (size_t begin = 0; begin < vocab_size_; begin += kDrawBlock) total += lane_sum(weight_block(begin));
  return total;
}

int32_t Sampler::draw_by_id(double u) const {
  const double total = total_weight();
  const double target = std::min(u * total, std::nextafter(total, 0.0));  // u * total may round up to total

  size_t begin = 0;
  double below = 0.0, sum = lane_sum(weight_block(0));
  while (below + sum <= target) {
    below += sum;
    begin += kDrawBlock;
    sum = lane_sum(weight_block(begin));
  }
  int32_t last = -1;  // the block's two sums may differ in the last bit: then its last id with any weight
  for (size_t i = begin; i < begin + weight_block(begin).size(); ++i) {
    if (weights_[i] == 0.0f) continue;
    last = int32_t(i);
    below += double(weights_[i]);
    if (below > target) break;
  }
  return last;
}

int32_t Sampler::draw_best_first(std::span<const float> logits, const SamplingParams& params, double u) {
  const bool top_k = params.top_k > 0 && size_t(params.top_k) < vocab_size_;
  double total = total_weight();
  // Without top_k: ids lighter than this have less than 1 - top_p of the whole together, so top_p cannot reach them.
  const double floor = top_k ? 0.0 : (1.0 - double(params.top_p)) * total / double(vocab_size_);
  candidates_.clear();
  for (size_t i = 0; i < vocab_size_; ++i)
    if (weights_[i] > 0.0f && double(weights_[i]) >= floor) candidates_.push_back({logits[i], int32_t(i)});

  size_t sorted = 0;
  const auto sort_up_to = [&](size_t n) {
    n = std::min(n, candidates_.size());
    const auto begin = candidates_.begin() + long(sorted), end = candidates_.begin() + long(n);
    if (n < candidates_.size()) std::nth_element(begin, end, candidates_.end(), before);
    std::sort(begin, end, before);
    sorted = n;
  };
  if (top_k) {
    sort_up_to(size_t(params.top_k));
    candidates_.resize(sorted);
    total = 0.0;
    for (const Candidate& c : candidates_) total += double(weights_[size_t(c.id)]);
  }
  size_t kept = 0;
  double mass = 0.0;
  while (kept == 0 || (kept < candidates_.size() && (params.top_p >= 1.0f || mass < double(params.top_p) * total))) {
    if (kept == sorted) sort_up_to(std::max(kFirstSorted, 4 * sorted));
    mass += double(weights_[size_t(candidates_[kept].id)]);
    ++kept;
  }
  const double target = u * mass;
  double cumulative = 0.0;
  for (size_t i = 0; i < kept; ++i) {
    cumulative += double(weights_[size_t(candidates_[i].id)]);
    if (cumulative > target) return candidates_[i].id;
  }
  return candidates_[kept - 1].id;
}

}  // namespace moectl
