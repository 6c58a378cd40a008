// Shard: what one rank holds of the model. With tp_size 1 only the routed experts differ from rank to rank. Pure; any
// thread.
#pragma once

#include <optional>
#include <vector>

#include "core/model/config.h"
#include "core/model/safetensors.h"
#include "core/parallel/expert_placement.h"
#include "core/parallel/local_dims.h"

namespace moectl {

struct Shard {
  LocalDims dims;
  std::vector<int32_t> experts;  // logical experts by local index; one may stand in it twice (redundant experts)
  bool operator==(const Shard&) const = default;
};

ModelDims model_dims(const Config& config);
// Of `ep_size` ranks; empty where the model has no experts. Throws Error{kBadConfig} that names
// --num-redundant-experts.
ExpertPlacement plan_placement(const Config& config, int ep_size, std::optional<int> num_redundant_experts);
Shard whole_model(const Config& config);
// `experts`: ExpertPlacement::logical_experts(rank); with --ep-size 1 all of them.
Shard rank_shard(const Config& config, const Parallelism& p, int rank, std::vector<int32_t> experts);

// For backends without Capabilities::splits_scale_blocks: throws Error{kBadConfig} when a boundary between TP ranks
// lies inside a scale block of a quantized tensor: names the tensor, the block and the nearest legal TP sizes. `p` has
// passed check_parallelism().
void check_shards(const Config& config, const Checkpoint& checkpoint, const Parallelism& p);

}  // namespace moectl
