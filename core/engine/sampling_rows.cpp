#include "core/engine/sampling_rows.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "core/base/check.h"
#include "core/base/rng.h"
#include "core/engine/sampler.h"

namespace moectl {

SamplingRowMaker::SamplingRowMaker(int32_t vocab_size) {
  CHECK(vocab_size > 0, "vocab_size {}", vocab_size);
  changes_.resize(size_t(vocab_size));
  changed_.resize((size_t(vocab_size) + 63) / 64);
}

LogitAdjustment& SamplingRowMaker::change(int32_t id) {
  CHECK(id >= 0 && size_t(id) < changes_.size(), "token {} in a vocabulary of {}", id, changes_.size());
  changed_[size_t(id) / 64] |= uint64_t{1} << (id % 64);
  return changes_[size_t(id)];
}

SamplingRow SamplingRowMaker::make(const SamplingRowArgs& args, std::vector<LogitAdjustment>& adjustments) {
  const SamplingParams& p = args.params;
  SamplingRow row{.temperature = p.temperature,
                  .top_k = std::max(p.top_k, 0),
                  .top_p = p.top_p,
                  .min_p = p.min_p,
                  .repetition_penalty = p.repetition_penalty,
                  .presence_penalty = p.presence_penalty,
                  .frequency_penalty = p.frequency_penalty,
                  .num_logprobs = p.num_logprobs};
  const size_t output_idx = args.output_ids.size() + size_t(args.num_unknown);
  if (p.temperature >= kGreedyBelow) row.uniform = uniform_double(p.seed, output_idx, 0);

  const bool masked = output_idx < size_t(p.min_tokens);
  if (masked) {
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    for (int32_t id : args.eos_token_ids) change(id).bias = kNever;
    for (int32_t id : p.stop_token_ids) change(id).bias = kNever;
  }
  for (const auto& [id, bias] : p.logit_bias) change(id).bias += bias;
  const bool penalties = has_penalties(p);
  CHECK(args.num_unknown == 0 || (args.num_unknown == 1 && args.feedback_row >= 0), "{} unknown tokens, row {}",
        args.num_unknown, args.feedback_row);
  if (penalties && args.num_unknown > 0) row.pending_row = args.feedback_row;
  if (penalties) {
    for (int32_t id : args.prompt_ids) change(id).seen = 1;
    for (int32_t id : args.output_ids) {
      LogitAdjustment& c = change(id);
      c.seen = 1;
      ++c.count;
    }
  }

  row.adjust_begin = row.adjust_end = int32_t(adjustments.size());
  if (!masked && !penalties && p.logit_bias.empty()) return row;
  for (size_t word = 0; word < changed_.size(); ++word)
    for (uint64_t bits = std::exchange(changed_[word], 0); bits; bits &= bits - 1) {
      const size_t id = word * 64 + size_t(std::countr_zero(bits));
      adjustments.push_back(std::exchange(changes_[id], {}));
      adjustments.back().token_id = int32_t(id);
    }
  row.adjust_end = int32_t(adjustments.size());
  return row;
}

SamplingRow score_row(int32_t token_id, int num_top) {
  return {.num_logprobs = std::max(num_top, 0), .given_id = token_id};
}

GenerateOutput::Token sampled_token(const SampledRow& row, const SamplingParams& params, int num_logprobs) {
  if (row.status == SampledStatus::kNotFinite) throw Error(Code::kInternal, kLogitsNotFinite);
  if (row.status == SampledStatus::kNothingLeft) throw nothing_to_choose(params);
  GenerateOutput::Token token{.id = row.token_id};
  if (num_logprobs < 0) return token;
  token.logprob = row.logprob;
  CHECK(row.num_top >= 0 && row.num_top <= kMaxTopLogprobs, "{} logprobs", row.num_top);
  for (int i = 0; i < row.num_top; ++i) token.top.push_back({row.top_ids[i], row.top_logprobs[i]});
  return token;
}

}  // namespace moectl
