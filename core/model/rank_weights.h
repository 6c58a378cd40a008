// The weights of all ranks of an instance: which shard each rank loads, and what ranks share.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/model/weights.h"
#include "core/parallel/expert_placement.h"

namespace moectl {

// By rank. `placement`: of the model's experts; without experts an empty one.
std::vector<Shard> rank_shards(const Config& config, const Parallelism& p, const ExpertPlacement& placement);

// By rank; `ops` of all ranks, which have equal capabilities. Ranks whose devices are host memory share: with tp_size 1
// one object with all experts, else one object per different shard. Throws as load_shards() does.
std::vector<std::shared_ptr<const ModelWeights>> load_ranks(const Config& config, const Checkpoint& checkpoint,
                                                            std::span<Ops* const> ops, const Parallelism& p,
                                                            const ExpertPlacement& placement,
                                                            const LoadProgress& progress = {});

}  // namespace moectl
