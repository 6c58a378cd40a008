// RandomPlacement: tables of an expert placement in host memory, in a random order, so that nothing but the tables says
// where an expert is.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/harness/generate.h"

namespace moectl::test {

struct RandomPlacement {
  std::vector<int32_t> replica_begin, rank, local;  // PlacementView's
  int64_t num_local = 0;                            // physical experts per rank

  // Expert e has 1 + e % max_replicas replicas; some more of the last expert make the ranks even.
  RandomPlacement(int64_t num_experts, int64_t num_ranks, int64_t max_replicas, uint64_t seed) {
    int32_t num_physical = 0;
    for (int64_t e = 0; e < num_experts; ++e) {
      replica_begin.push_back(num_physical);
      num_physical += int32_t(1 + e % max_replicas);
    }
    num_physical = int32_t((num_physical + num_ranks - 1) / num_ranks * num_ranks);
    replica_begin.push_back(num_physical);
    num_local = num_physical / num_ranks;
    std::vector<int32_t> slots;
    for (int32_t p = 0; p < num_physical; ++p) slots.push_back(p);
    Random random(seed);
    random.shuffle(slots);
    for (int32_t slot : slots) {
      rank.push_back(int32_t(slot / num_local));
      local.push_back(int32_t(slot % num_local));
    }
  }
  // The definition in ops.h.
  size_t physical(int32_t expert, int64_t source, int64_t token) const {
    const int64_t first = replica_begin[size_t(expert)], num = replica_begin[size_t(expert) + 1] - first;
    return size_t(first + (source + token) % num);
  }
  // [num_local]: the logical expert that each local expert of a rank is.
  std::vector<int32_t> logical_experts(int of_rank) const {
    std::vector<int32_t> logical(static_cast<size_t>(num_local), -1);
    for (size_t e = 0; e + 1 < replica_begin.size(); ++e)
      for (size_t p = size_t(replica_begin[e]); p < size_t(replica_begin[e + 1]); ++p)
        if (rank[p] == of_rank) logical[size_t(local[p])] = int32_t(e);
    return logical;
  }
  PlacementView view() const {
    return {View<const int32_t>(replica_begin.data(), {int64_t(replica_begin.size())}),
            View<const int32_t>(rank.data(), {int64_t(rank.size())}),
            View<const int32_t>(local.data(), {int64_t(local.size())})};
  }
};

}  // namespace moectl::test
