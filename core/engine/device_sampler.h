// DeviceSampler: the tokens of a step where its logits are out of the host's reach: parameters go there in one copy,
// tokens come back in one (DeviceSampling). One a rank thread; a step is begin(), add() for each row of logits,
// launch(), and when the device is done with that, sampled(). Two steps may be on their way: the first one's tokens are
// there until the third begins.
#pragma once

#include <array>
#include <vector>

#include "core/engine/sampling_rows.h"
#include "core/model/model.h"
#include "kernels/ops.h"

namespace moectl {

class DeviceSampler {
 public:
  // `may_grow`: memory for adjustments may be allocated between steps; else all that requests can need is allocated
  // here, because an allocation may wait for a device that waits for this one.
  DeviceSampler(const ModelLimits& limits, int32_t vocab_size, Ops& ops, bool may_grow);

  void begin() { rows_.clear(), adjustments_.clear(); }
  void add(const SamplingRowArgs& args) { rows_.push_back(maker_.make(args, adjustments_)); }
  void add(const SamplingRow& row) { rows_.push_back(row); }
  // logits [rows added, vocab_size], on the device, where next_token_ids [as many, or more] has the tokens of the step
  // before and gets those of this one.
  // Returns the step, for sampled().
  int launch(View<const float> logits, View<int32_t> next_token_ids);
  const SampledRow& sampled(int step, int row) const {
    return reinterpret_cast<const SampledRow*>(sides_[size_t(step)].out.get())[row];
  }

 private:
  struct Side {  // host memory of a step
    Buffer rows, adjustments, out;
    int64_t max_adjustments = 0;
  };
  void reserve_adjustments(Side& side, int64_t count);

  Ops& ops_;
  const int64_t max_rows_;
  SamplingRowMaker maker_;
  std::vector<SamplingRow> rows_;
  std::vector<LogitAdjustment> adjustments_;
  std::array<Side, 2> sides_;
  int turn_ = 0;
  Buffer device_rows_, device_adjustments_, device_out_;
  Buffer device_previous_;       // the tokens of the step before, where rows are pending
  int64_t max_adjustments_ = 0;  // on the device
};

}  // namespace moectl
