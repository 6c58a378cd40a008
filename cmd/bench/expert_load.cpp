#include "cmd/bench/expert_load.h"

#include <fmt/format.h>

#include <future>
#include <nlohmann/json.hpp>

namespace moectl {
namespace {

using Json = nlohmann::json;

Json json_of(std::optional<double> value) {
  return value ? Json(*value) : Json(nullptr);
}

Json json_of(const std::optional<LoadBalance>& balance) {
  if (!balance) return nullptr;
  return {{"mean", balance->mean}, {"lowest", balance->lowest}, {"lowest_layer", balance->lowest_layer}};
}

}  // namespace

ExpertLoad wait_for_expert_load(Engine& engine) {
  const auto promise = std::make_shared<std::promise<ExpertLoad>>();  // set_value() may return after get()
  engine.read_expert_load([promise](const ExpertLoad& load) { promise->set_value(load); });
  return promise->get_future().get();
}

Json expert_load_json(const ExpertLoad& load) {
  if (load.layers.empty()) return nullptr;
  Json json = {{"expert_balancedness", json_of(load_balance(load, &ExpertLoad::Layer::experts))},
               {"rank_balancedness", json_of(load_balance(load, &ExpertLoad::Layer::ranks))}};
  for (const ExpertLoad::Layer& layer : load.layers)
    json["layers"].push_back({{"layer", layer.layer_idx},
                              {"num_tokens", layer.num_tokens()},
                              {"expert_balancedness", json_of(balancedness(layer.experts))},
                              {"rank_balancedness", json_of(balancedness(layer.ranks))},
                              {"tokens_per_expert", layer.experts},
                              {"tokens_per_rank", layer.ranks}});
  return json;
}

std::string expert_load_text(const ExpertLoad& load) {
  const auto line = [](const char* what, const LoadBalance& balance) {
    return fmt::format("tokens per {:<12} {:>9.2f} mean / max over the MoE layers, {:.2f} in layer {}\n", what,
                       balance.mean, balance.lowest, balance.lowest_layer);
  };
  const auto experts = load_balance(load, &ExpertLoad::Layer::experts);
  if (!experts) return "";
  std::string text = line("expert", *experts);
  if (load.layers.front().ranks.size() > 1) text += line("rank", *load_balance(load, &ExpertLoad::Layer::ranks));
  return text;
}

}  // namespace moectl
