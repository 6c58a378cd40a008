// DeviceSampler: the tokens of a step where its logits are out of the host's reach: parameters go there in one copy,
// tokens come back in one (Ops::sample_rows). One a rank thread; a step is add() for each row of logits, launch(), and
// after Ops::synchronize() sampled().
#pragma once

#include <vector>

#include "core/engine/sampling_rows.h"
#include "core/model/model.h"
#include "kernels/ops.h"

namespace moectl {

class DeviceSampler {
 public:
  DeviceSampler(const ModelLimits& limits, int32_t vocab_size, Ops& ops);

  void begin() { rows_.clear(), adjustments_.clear(); }
  void add(const SamplingRowArgs& args) { rows_.push_back(maker_.make(args, adjustments_)); }
  void add(const SamplingRow& row) { rows_.push_back(row); }
  // logits [rows added, vocab_size], on the device.
  void launch(View<const float> logits);
  const SampledRow& sampled(int row) const { return reinterpret_cast<const SampledRow*>(host_out_.get())[row]; }

 private:
  void reserve_adjustments(int64_t count);

  Ops& ops_;
  const int64_t max_rows_;
  SamplingRowMaker maker_;
  std::vector<SamplingRow> rows_;
  std::vector<LogitAdjustment> adjustments_;
  Buffer host_rows_, device_rows_, host_out_, device_out_;
  Buffer host_adjustments_, device_adjustments_;
  int64_t max_adjustments_ = 0;
};

}  // namespace moectl
