#include "core/engine/expert_load.h"

#include <algorithm>
#include <numeric>

#include "core/base/check.h"
#include "core/parallel/expert_placement.h"

namespace moectl {
namespace {

int64_t sum_of(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

void add(std::vector<int64_t>& sum, const std::vector<int64_t>& part) {
  CHECK(sum.size() == part.size(), "a load of {} and one of {} experts or ranks", sum.size(), part.size());
  std::ranges::transform(sum, part, sum.begin(), std::plus());
}

}  // namespace

int64_t ExpertLoad::Layer::num_tokens() const {
  return sum_of(experts);
}

ExpertLoad fold_expert_counts(std::span<const int> layers, const ExpertPlacement& placement, const int64_t* counts) {
  ExpertLoad load;
  for (const int layer_idx : layers) {
    ExpertLoad::Layer& layer = load.layers.emplace_back();
    layer.layer_idx = layer_idx;
    layer.ranks.resize(size_t(placement.num_ranks));
    for (int e = 0; e < placement.num_experts; ++e) {
      const auto begin = size_t(placement.replica_begin[size_t(e)]),
                 end = size_t(placement.replica_begin[size_t(e) + 1]);
      layer.experts.push_back(sum_of({counts + begin, end - begin}));
      for (size_t p = begin; p < end; ++p) layer.ranks[size_t(placement.rank[p])] += counts[p];
    }
    counts += placement.num_physical;
  }
  return load;
}

void add(ExpertLoad& sum, const ExpertLoad& part) {
  CHECK(sum.layers.size() == part.layers.size(), "loads of {} and {} layers", sum.layers.size(), part.layers.size());
  for (size_t i = 0; i < sum.layers.size(); ++i) {
    ExpertLoad::Layer& to = sum.layers[i];
    CHECK(to.layer_idx == part.layers[i].layer_idx, "loads of layers {} and {}", to.layer_idx,
          part.layers[i].layer_idx);
    add(to.experts, part.layers[i].experts);
    add(to.ranks, part.layers[i].ranks);
  }
}

std::optional<double> balancedness(std::span<const int64_t> counts) {
  const int64_t sum = sum_of(counts);
  if (sum == 0) return std::nullopt;
  return double(sum) / double(counts.size()) / double(std::ranges::max(counts));
}

std::optional<LoadBalance> load_balance(const ExpertLoad& load, std::vector<int64_t> ExpertLoad::Layer::*counts) {
  std::optional<LoadBalance> result;
  int num_layers = 0;
  double sum = 0;
  for (const ExpertLoad::Layer& layer : load.layers) {
    const std::optional<double> value = balancedness(layer.*counts);
    if (!value) continue;
    ++num_layers;
    sum += *value;
    if (!result || *value < result->lowest) result = {.lowest = *value, .lowest_layer = layer.layer_idx};
  }
  if (result) result->mean = sum / num_layers;
  return result;
}

}  // namespace moectl
