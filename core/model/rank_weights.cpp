#include "core/model/rank_weights.h"

#include <algorithm>

namespace moectl {

std::vector<Shard> rank_shards(const Config& config, const Parallelism& p, const ExpertPlacement& placement) {
  std::vector<Shard> shards;
  for (int r = 0; r < p.world_size(); ++r) {
    const int expert_rank = p.ep_size == 1 ? 0 : r;
    shards.push_back(rank_shard(config, p, r, placement.logical_experts(expert_rank)));
  }
  return shards;
}

std::vector<std::shared_ptr<const ModelWeights>> load_ranks(const Config& config, const Checkpoint& checkpoint,
                                                            std::span<Ops* const> ops, const Parallelism& p,
                                                            const ExpertPlacement& placement,
                                                            const LoadProgress& progress) {
  const bool host_memory = ops.front()->capabilities().host_readable;
  if (host_memory && p.tp_size == 1) return {ops.size(), load_weights(config, checkpoint, *ops.front(), progress)};
  const std::vector<Shard> shards = rank_shards(config, p, placement);
  std::vector<ShardTarget> targets;
  std::vector<size_t> target_of_rank;
  for (size_t r = 0; r < shards.size(); ++r) {
    const auto same = std::ranges::find(targets, shards[r], &ShardTarget::shard);
    target_of_rank.push_back(host_memory ? size_t(same - targets.begin()) : targets.size());
    if (target_of_rank[r] == targets.size()) targets.push_back({*ops[r], shards[r]});
  }
  const auto loaded = load_shards(config, checkpoint, targets, progress);
  std::vector<std::shared_ptr<const ModelWeights>> weights;
  for (const size_t target : target_of_rank) weights.push_back(loaded[target]);
  return weights;
}

}  // namespace moectl
