// ExpertLoad: how many tokens each expert and each rank has computed since the start, per MoE layer. Plain data; any
// thread.
//
// Every computed row counts once per chosen expert: prompt and decode tokens, those of preempted requests again. Rows
// that pad a CUDA graph do not count.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace moectl {

struct ExpertPlacement;  // core/parallel/expert_placement.h

struct ExpertLoad {
  struct Layer {
    int layer_idx = 0;             // as in the checkpoint; MTP modules follow the decoder's layers
    std::vector<int64_t> experts;  // [num_experts]: tokens per logical expert
    std::vector<int64_t> ranks;    // [num_ranks]: tokens per rank, over its experts
    int64_t num_tokens() const;    // of all experts
    bool operator==(const Layer&) const = default;
  };
  std::vector<Layer> layers;  // ascending; none: the model has no experts
  bool operator==(const ExpertLoad&) const = default;
};

// `layers`: indices of the MoE layers; `counts` [layers.size(), num_physical]: tokens per physical expert.
ExpertLoad fold_expert_counts(std::span<const int> layers, const ExpertPlacement& placement, const int64_t* counts);
// sum += part, of the same model and placement.
void add(ExpertLoad& sum, const ExpertLoad& part);

// Mean / max: 1 where all are equal, 1 / size where one has everything. nullopt: all are 0.
std::optional<double> balancedness(std::span<const int64_t> counts);

// Balancedness over the layers that have computed tokens.
struct LoadBalance {
  double mean = 0, lowest = 0;
  int lowest_layer = 0;  // layer_idx
};
// `counts`: &ExpertLoad::Layer::experts or ::ranks. nullopt: no layer has computed a token.
std::optional<LoadBalance> load_balance(const ExpertLoad& load, std::vector<int64_t> ExpertLoad::Layer::*counts);

}  // namespace moectl
