// ExpertPlacement: which rank computes which expert. Plain data, the same on every rank, made once; the kernels read it
// from PlacementTables in each rank's device memory.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/ops.h"

namespace moectl {

// A logical expert is one of the checkpoint; a physical expert is a copy of it on one rank. A logical expert with
// several physical ones (replicas) has redundant experts. Every rank holds equally many physical experts.
struct ExpertPlacement {
  int num_experts = 0;   // logical
  int num_physical = 0;  // num_experts and the redundant experts; a multiple of num_ranks
  int num_ranks = 1;
  // As PlacementView: physical experts are numbered by logical expert, replicas of one expert side by side.
  std::vector<int32_t> replica_begin;  // [num_experts + 1]
  std::vector<int32_t> rank, local;    // [num_physical]: rank, and index among the experts of that rank

  int num_local() const { return num_physical / num_ranks; }  // physical experts per rank
  // One rank holds every expert once: the kernels need no tables.
  bool is_identity() const { return num_ranks == 1 && num_physical == num_experts; }
  // [num_local]: the logical expert of each local expert of a rank.
  std::vector<int32_t> logical_experts(int rank) const;
};

// Even placement over `num_ranks` ranks. Redundant experts are replicas of logical experts 0, 1, 2, ...; no rank holds
// two replicas of one expert unless it holds more experts than there are logical ones. num_redundant not given: as few
// as make the number of physical experts divisible (256 experts over 72 ranks: 32). Throws Error{kBadConfig} that names
// the rule and the nearest legal numbers.
ExpertPlacement make_placement(int num_experts, int num_ranks, std::optional<int> num_redundant = {});

// The placement in one rank's device memory.
struct PlacementTables {
  PlacementView view;                   // empty: identity
  View<const int32_t> logical_experts;  // [num_local] of the rank; empty: identity
  Buffer storage;
};
PlacementTables upload_placement(const ExpertPlacement& placement, int rank, Device& device);
int64_t placement_bytes(const ExpertPlacement& placement);  // of PlacementTables

}  // namespace moectl
