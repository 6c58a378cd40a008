// RankCommunicators: the groups that a rank of an instance is in, and which implementation each of them has.
#pragma once

#include <memory>
#include <vector>

#include "core/comm/collectives.h"
#include "core/parallel/parallelism.h"

namespace moectl {

struct RankCommunicators {
  std::unique_ptr<Communicator> experts;  // the ranks that the experts are placed on: all, or with --ep-size 1 the rank
  std::unique_ptr<Communicator> tp;       // its TP group; null: tp_size 1
};

// By rank. `devices`: of all ranks, which are threads of this process; they outlive the communicators. `collectives`,
// of both groups: by choose_collectives(). deterministic: every sum is added in rank order. Throws Error{kBadConfig} as
// make_communicators() does.
std::vector<RankCommunicators> make_rank_communicators(Collectives collectives, const std::vector<Device*>& devices,
                                                       const Parallelism& p, bool deterministic,
                                                       LocalGroupOptions options = {});
// Device memory of each rank that these take.
int64_t rank_communicator_bytes(Collectives collectives, const Parallelism& p);

}  // namespace moectl
