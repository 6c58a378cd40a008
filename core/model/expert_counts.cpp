#include "core/model/expert_counts.h"

#include <algorithm>

#include "core/base/check.h"

namespace moectl {
namespace {

bool has_redundant(const ExpertPlacement& placement) {
  return placement.num_physical != placement.num_experts;
}

}  // namespace

std::vector<int> moe_layers(const Config& config) {
  std::vector<int> layers;
  for (int i = 0; i < int(config.layers.size()); ++i)
    if (config.layers[size_t(i)].feed_forward == FeedForwardKind::kMoe) layers.push_back(i);
  return layers;
}

int64_t ExpertCounts::num_bytes(const Config& config, const ExpertPlacement& placement) {
  const int64_t counters = int64_t(moe_layers(config).size()) * placement.num_physical;
  return counters * int64_t(sizeof(int64_t)) +
         (has_redundant(placement) ? int64_t(placement.replica_begin.size() * sizeof(int32_t)) : 0);
}

ExpertCounts::ExpertCounts(const Config& config, const ExpertPlacement& placement, int rank, Device& device)
    : layers_(moe_layers(config)), rank_(rank), storage_(device.alloc(num_bytes(config, placement))) {
  counts_ =
      View<int64_t>(reinterpret_cast<int64_t*>(storage_.get()), {int64_t(layers_.size()), placement.num_physical});
  if (!has_redundant(placement)) return;
  const std::vector<int32_t>& begin = placement.replica_begin;
  auto* table = reinterpret_cast<int32_t*>(counts_.data + counts_.size());
  device.upload(table, begin.data(), int64_t(begin.size() * sizeof(int32_t)));
  replica_begin_ = View<const int32_t>(table, {int64_t(begin.size())});
}

ExpertCounting ExpertCounts::of_layer(int layer_idx, const View<const int32_t>& positions) const {
  const auto layer = std::ranges::lower_bound(layers_, layer_idx);
  CHECK(layer != layers_.end() && *layer == layer_idx, "layer {} has no experts", layer_idx);
  return {.counts = View<int64_t>(counts_.row(layer - layers_.begin()), {counts_.row_size()}),
          .positions = positions,
          .replica_begin = replica_begin_,
          .rank = rank_};
}

}  // namespace moectl
