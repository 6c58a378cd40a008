// Parallelism: how the ranks of an instance split the model. Resolved values: nothing is "not given" in it. A rank is a
// thread with one device, a process is a node. Pure; any thread; knows sizes, nothing of checkpoints or devices.
//
// Attention, dense layers, shared experts and the vocabulary: dp_size groups of tp_size ranks; rank r is TP rank
// r % tp_size of group r / tp_size. Routed experts: placed on all ranks (expert parallel), or split inside each TP
// group.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace moectl {

struct ModelDims;  // local_dims.h

struct Parallelism {
  int tp_size = 1;
  int dp_size = 1;
  int ep_size = 1;           // tp_size x dp_size: experts are placed on all ranks; 1: each TP group splits every expert
  std::vector<int> devices;  // GPU ordinals of this node's ranks; empty: 0, 1, 2, ...
  int num_nodes = 1, node_rank = 0;

  int world_size() const { return tp_size * dp_size; }
  int ranks_per_node() const { return world_size() / num_nodes; }
  int tp_rank(int rank) const { return rank % tp_size; }
  int device_index(int rank) const {  // of a rank of this node
    const int local_rank = rank % ranks_per_node();
    return devices.empty() ? local_rank : devices[size_t(local_rank)];
  }
  bool operator==(const Parallelism&) const = default;
};

// "--ep-size N" alone.
Parallelism expert_parallel(int ep_size);

// One size as the user gave it; `text` for messages: "EP_SIZE=4".
struct GivenSize {
  int value = 0;
  std::string text;
};
struct GivenParallelism {
  std::optional<GivenSize> tp_size, dp_size, ep_size;
};

// Fills in what is not given: tp_size 1, ep_size tp_size x dp_size, dp_size ep_size / tp_size. Throws Error{kBadConfig}
// for sizes that contradict each other.
Parallelism resolve_parallelism(const GivenParallelism& given);

// Every rule between the sizes themselves, and between them and the model's. Throws Error{kBadConfig} that names the
// rule and the nearest legal sizes. check_shards() (core/model/shard.h) adds those of quantized checkpoints.
void check_parallelism(const Parallelism& p, const ModelDims& model);
// Throws Error{kBadConfig} for what is legal but cannot run in this version. (What a backend cannot do: its
// Capabilities.)
void check_runnable(const Parallelism& p);

// Why `p`'s TP size cannot split the model; empty: it can.
std::string tp_fault(const Parallelism& p, const ModelDims& model);
// "2 or 8": of the sizes in ascending `legal`, the nearest ones below and above `size`.
std::string nearest_sizes(const std::vector<int>& legal, int size);

}  // namespace moectl
