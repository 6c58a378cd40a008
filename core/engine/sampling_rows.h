// Sampling on the device, host side: the parameters by which a sequence's next token is chosen (kernels/ops.h,
// SamplingRow), and the token in return. Sampler chooses the same token from the same row.
//
// The object only keeps scratch memory. One per rank thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/engine/types.h"
#include "kernels/ops.h"

namespace moectl {

struct SamplingRowArgs {
  const SamplingParams& params;                     // valid by check_sampling_params
  std::span<const int32_t> prompt_ids, output_ids;  // the text so far
  std::span<const int32_t> eos_token_ids;
  // Output tokens after output_ids that the host does not know yet, at most one, and the row that samples it.
  int num_unknown = 0;
  int feedback_row = -1;
};

class SamplingRowMaker {
 public:
  explicit SamplingRowMaker(int32_t vocab_size);

  // Appends the row's adjustments to `adjustments`. Reads the ids only for penalties.
  SamplingRow make(const SamplingRowArgs& args, std::vector<LogitAdjustment>& adjustments);

 private:
  LogitAdjustment& change(int32_t id);

  std::vector<LogitAdjustment> changes_;  // [vocab_size] by id, all default between calls
  std::vector<uint64_t> changed_;         // [vocab_size / 64] bits; walked in order, so that adjustments are sorted
};

// Asks for what Sampler::score gives: the logprob of a given token, and of the `num_top` best.
SamplingRow score_row(int32_t token_id, int num_top);

// Throws the Error that Sampler throws for such a row. `num_logprobs` as in SamplingRow.
GenerateOutput::Token sampled_token(const SampledRow& row, const SamplingParams& params, int num_logprobs);

}  // namespace moectl
