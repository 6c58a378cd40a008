// ExpertCounts: the tokens that a rank's gates have sent to each expert, per MoE layer, since the model was built. The
// counters are in device memory: moe_gate adds to them within a step, captured steps included, and the host copies them
// in stream order when the load is read. One object per rank, used on its thread.
#pragma once

#include <vector>

#include "core/model/config.h"
#include "core/parallel/expert_placement.h"
#include "kernels/ops.h"

namespace moectl {

// Indices of the layers with experts, ascending; MTP modules follow the decoder's layers, as in the checkpoint.
std::vector<int> moe_layers(const Config& config);

class ExpertCounts {
 public:
  ExpertCounts(const Config& config, const ExpertPlacement& placement, int rank, Device& device);
  static int64_t num_bytes(const Config& config, const ExpertPlacement& placement);  // of device memory

  // For the gate of layer `layer_idx`, of tokens at these positions.
  ExpertCounting of_layer(int layer_idx, const View<const int32_t>& positions) const;
  View<const int64_t> view() const { return counts_; }  // [moe_layers().size(), num_physical]

 private:
  const std::vector<int> layers_;
  const int rank_;
  Buffer storage_;
  View<int64_t> counts_;
  View<const int32_t> replica_begin_;  // empty where no expert is redundant
};

}  // namespace moectl
