// Sampler: one row of logits becomes one token. A pure function of the row, the request's parameters, its text so far
// and (seed, output index); the object only keeps scratch memory. One per rank thread.
//
// Order of operations, as vLLM's sampler has it (vllm/v1/sample/sampler.py):
//   1. logprobs of the raw row (vLLM's default, raw_logprobs)
//   2. min_tokens masks eos and stop ids; logit_bias is added
//   3. repetition penalty over prompt and output; frequency and presence penalties over the output
//   4. temperature below 1e-5: the best id (ties: the lowest); else the row is divided by the temperature
//   5. min_p against the best token's probability, then top_k, then top_p of what is left
//   6. one draw by inverse CDF: candidates best first when top_k or top_p is on, by id otherwise
// Where vLLM keeps every tie at the k-th place and leaves the order of ties open, equal logits rank by id here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/engine/types.h"

namespace moectl {

// What a request ends with when no token can be chosen for it: Error{kInternal} when the model's own row is at fault,
inline constexpr char kLogitsNotFinite[] = "the model's logits contain NaN or infinity; this request cannot go on";
// Error{kInvalidArgument} naming a parameter when the row was finite before this request's parameters were applied.
Error nothing_to_choose(const SamplingParams& params);

struct SampleArgs {
  std::span<const float> logits;                    // [vocab_size] raw
  const SamplingParams& params;                     // valid by check_sampling_params
  std::span<const int32_t> prompt_ids, output_ids;  // the text so far; output_ids.size() is the output index
  std::span<const int32_t> eos_token_ids;
};

bool has_penalties(const SamplingParams& params);
// Throws Error{kInvalidArgument} with the parameter's name for values outside their range.
void check_sampling_params(const SamplingParams& params, int32_t vocab_size);

class Sampler {
 public:
  explicit Sampler(int32_t vocab_size);

  // The next token, with logprobs when params.num_logprobs >= 0. Throws Error{kInternal} for a row with NaN or infinity
  // and nothing_to_choose() when nothing is left to choose from: the request ends, nothing else does.
  GenerateOutput::Token sample(const SampleArgs& args);
  // The logprob of a given token, and of the `num_top` best.
  GenerateOutput::Token score(std::span<const float> logits, int32_t token_id, int num_top) const;

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };
  static bool before(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  }
  std::span<const float> process(const SampleArgs& args);
  void penalize(const SampleArgs& args);
  int32_t draw(std::span<const float> logits, float max, const SamplingParams& params, double u);
  std::span<const float> weight_block(size_t begin) const;
  double total_weight() const;  // of all ids, by blocks in the order of ids
  int32_t draw_by_id(double u) const;
  int32_t draw_best_first(std::span<const float> logits, const SamplingParams& params, double u);

  const size_t vocab_size_;
  std::vector<float> processed_, weights_;  // [vocab_size]
  std::vector<int32_t> counts_;             // [vocab_size] all zero between calls
  std::vector<Candidate> candidates_;
};

}  // namespace moectl
