#include "core/model/rank_memory.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/error.h"
#include "core/model/model.h"
#include "core/model/shard.h"
#include "core/model/weights.h"
#include "core/parallel/expert_placement.h"

namespace moectl {
namespace {

Shard first_shard(const Config& config, const Parallelism& p, const ExpertPlacement& placement) {
  return rank_shard(config, p, 0, placement.num_physical > 0 ? placement.logical_experts(0) : std::vector<int32_t>{});
}

// What fits on one GPU.
class GpuFit {
 public:
  GpuFit(const Config& config, const Checkpoint& checkpoint, const RankMemoryQuery& query)
      : config_(config), checkpoint_(checkpoint), query_(query) {
    gpu_.memory_bytes = query.gpu_memory_bytes;
    gpu_.usable_bytes = int64_t(double(query.gpu_memory_bytes) * query.gpu_memory_utilization);
    gpu_.max_model_len = query.max_model_len > 0 ? query.max_model_len : config.max_position_embeddings;
  }

  RankMemory::Gpu of(const RankMemory& rank) {
    gpu_.kv_tokens = kv_tokens(rank.weight_bytes, rank.kv_bytes_per_token_bf16);
    gpu_.fits = gpu_.kv_tokens >= gpu_.max_model_len;
    const Parallelism& p = rank.parallelism;
    if (rank.num_experts > 0 && p.ep_size == p.world_size())
      gpu_.smallest_ep_size = smallest_ep_size(p.tp_size, rank);
    else if (gpu_.fits && rank.num_experts == 0)
      gpu_.smallest_ep_size = 1;
    return gpu_;
  }

 private:
  // In whole pages.
  int64_t kv_tokens(int64_t weight_bytes, int64_t kv_bytes_per_token) const {
    const int64_t left = gpu_.usable_bytes - weight_bytes - kBufferBytes;
    return std::max<int64_t>(left, 0) / (kv_bytes_per_token * kPageSize) * kPageSize;
  }

  // Bytes change only where the number of local experts does.
  std::optional<int> smallest_ep_size(int tp_size, const RankMemory& rank) const {
    int num_local = 0;
    for (int ep = tp_size; num_local != 1; ep += tp_size) {
      const Parallelism p = {.tp_size = tp_size, .dp_size = ep / tp_size, .ep_size = ep};
      const ExpertPlacement placement = plan_placement(config_, ep, {});
      if (placement.num_local() == num_local) continue;
      num_local = placement.num_local();
      const int64_t weights = shard_bytes(config_, checkpoint_, first_shard(config_, p, placement));
      if (kv_tokens(weights, rank.kv_bytes_per_token_bf16) >= gpu_.max_model_len) return ep;
    }
    return std::nullopt;
  }

  const Config& config_;
  const Checkpoint& checkpoint_;
  const RankMemoryQuery& query_;
  RankMemory::Gpu gpu_;
};

}  // namespace

RankMemory rank_memory(const Config& config, const Checkpoint& checkpoint, const RankMemoryQuery& query) {
  const Parallelism& p = query.parallelism;
  check_parallelism(p, model_dims(config));
  check_shards(config, checkpoint, p);
  if (query.max_model_len > config.max_position_embeddings)
    throw Error(Code::kBadConfig, fmt::format("--max-model-len {}: the checkpoint was made for {} tokens",
                                              query.max_model_len, config.max_position_embeddings));
  const ExpertPlacement placement = plan_placement(config, p.ep_size, query.num_redundant_experts);
  const Shard shard = first_shard(config, p, placement);
  RankMemory rank{.parallelism = p,
                  .num_experts = placement.num_experts,
                  .num_local_experts = int(shard.experts.size()),
                  .num_redundant_experts = placement.num_physical - placement.num_experts,
                  .weight_bytes = shard_bytes(config, checkpoint, shard),
                  .kv_bytes_per_token_f32 = KvCache::bytes_per_token(config, shard.dims, DType::kF32),
                  .kv_bytes_per_token_bf16 = KvCache::bytes_per_token(config, shard.dims, DType::kBF16)};
  if (query.gpu_memory_bytes > 0) rank.gpu = GpuFit(config, checkpoint, query).of(rank);
  return rank;
}

}  // namespace moectl
