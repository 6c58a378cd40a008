#include "core/parallel/parallelism.h"

#include <algorithm>
#include <cstdint>

#include "core/base/error.h"
#include "core/parallel/local_dims.h"

namespace moectl {
namespace {

template <class... Args>
void require(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) throw Error(Code::kBadConfig, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace

Parallelism expert_parallel(int ep_size) {
  return {.dp_size = ep_size, .ep_size = ep_size};
}

Parallelism resolve_parallelism(const GivenParallelism& given) {
  for (const auto* size : {&given.tp_size, &given.dp_size, &given.ep_size})
    require(!*size || (*size)->value >= 1, "{}: must be at least 1", *size ? (*size)->text : "");
  Parallelism p;
  if (given.tp_size) p.tp_size = given.tp_size->value;
  if (given.dp_size) {
    p.dp_size = given.dp_size->value;
  } else if (given.ep_size && given.ep_size->value > 1) {
    const int ep = given.ep_size->value, below = ep / p.tp_size * p.tp_size;
    require(ep % p.tp_size == 0,
            "{} is not a multiple of {}: experts are placed on all TP x DP ranks, or on none (1); use {} or {}",
            given.ep_size->text, given.tp_size ? given.tp_size->text : "", below > 0 ? below : 1, below + p.tp_size);
    p.dp_size = ep / p.tp_size;
  }
  p.ep_size = given.ep_size ? given.ep_size->value : p.world_size();
  require(p.ep_size == p.world_size() || p.ep_size == 1,
          "{} contradicts {}{}: the expert parallel size must be TP x DP = {} x {} = {}, or 1; give one of them",
          given.ep_size ? given.ep_size->text : "", given.tp_size ? given.tp_size->text + " and " : "",
          given.dp_size ? given.dp_size->text : "", p.tp_size, p.dp_size, p.world_size());
  return p;
}

std::string tp_fault(const Parallelism& p, const ModelDims& model) {
  const int tp = p.tp_size;
  if (model.num_heads % tp != 0)
    return fmt::format("it does not divide the model's {} attention heads", model.num_heads);
  if (const int kv = model.num_kv_heads; kv > 0 && kv % tp != 0 && tp % kv != 0)
    return fmt::format("it neither divides the model's {} KV heads nor is a multiple of them", kv);
  const auto width = [&](const char* name, int size) {
    return size % tp == 0 ? "" : fmt::format("it does not divide {} {}", name, size);
  };
  for (const std::string& fault :
       {width("intermediate_size", model.intermediate_size),
        width("shared experts' intermediate_size", model.shared_intermediate_size),
        p.ep_size == p.world_size() ? std::string() : width("moe_intermediate_size", model.moe_intermediate_size)})
    if (!fault.empty()) return fault;
  if ((tp - 1) * vocab_part(model.vocab_size, tp) >= model.vocab_size)
    return fmt::format("the vocabulary of {} leaves the last rank no row", model.vocab_size);
  return "";
}

std::string nearest_sizes(const std::vector<int>& legal, int size) {
  const auto above = std::upper_bound(legal.begin(), legal.end(), size);
  const auto below = std::lower_bound(legal.begin(), legal.end(), size);
  std::string text;
  if (below != legal.begin()) text = std::to_string(below[-1]);
  if (above != legal.end()) text += (text.empty() ? "" : " or ") + std::to_string(*above);
  return text;
}

void check_parallelism(const Parallelism& p, const ModelDims& model) {
  require(p.tp_size >= 1, "--tensor-parallel-size must be at least 1, not {}", p.tp_size);
  require(p.dp_size >= 1, "--data-parallel-size must be at least 1, not {}", p.dp_size);
  require(p.ep_size >= 1, "--ep-size must be at least 1, not {}", p.ep_size);
  require(p.ep_size == p.world_size() || p.ep_size == 1, "--ep-size {} must be TP x DP = {} x {} = {}, or 1", p.ep_size,
          p.tp_size, p.dp_size, p.world_size());
  require(p.num_nodes >= 1 && p.node_rank >= 0 && p.node_rank < p.num_nodes,
          "node {} of {}: nodes are numbered from 0, and there is at least one", p.node_rank, p.num_nodes);
  require(p.world_size() % p.num_nodes == 0, "{} ranks (TP x DP) over {} nodes: every node must have equally many",
          p.world_size(), p.num_nodes);
  require(p.devices.empty() || int(p.devices.size()) == p.ranks_per_node(),
          "--devices names {} GPU(s) for {} rank(s): name one per rank, or leave it out", p.devices.size(),
          p.ranks_per_node());
  require(std::all_of(p.devices.begin(), p.devices.end(), [](int d) { return d >= 0; }),
          "a device is an ordinal, 0 or more");
  require(p.ep_size == 1 || model.num_experts > 0, "--ep-size {}: this checkpoint has no experts to distribute; use 1",
          p.ep_size);
  const std::string fault = tp_fault(p, model);
  if (fault.empty()) return;
  std::vector<int> legal;
  for (Parallelism other = {.dp_size = p.dp_size}; other.tp_size <= model.num_heads; ++other.tp_size) {
    other.ep_size = p.ep_size == 1 ? 1 : other.world_size();
    if (tp_fault(other, model).empty()) legal.push_back(other.tp_size);
  }
  throw Error(Code::kBadConfig,
              fmt::format("--tensor-parallel-size {}: {}; use {}", p.tp_size, fault, nearest_sizes(legal, p.tp_size)));
}

void check_runnable(const Parallelism& p) {
  require(p.num_nodes == 1, "{} nodes: several nodes are not in this version; use 1", p.num_nodes);
}

}  // namespace moectl
