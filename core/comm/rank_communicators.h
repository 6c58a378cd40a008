// RankCommunicators: the groups that a rank of an instance is in, and which implementation each of them has.
#pragma once

#include <memory>
#include <vector>

#include "core/comm/communicator.h"
#include "core/parallel/parallelism.h"

namespace moectl {

struct RankCommunicators {
  std::unique_ptr<Communicator> experts;  // the ranks that the experts are placed on: all, or with --ep-size 1 the rank
  std::unique_ptr<Communicator> tp;       // its TP group; null: tp_size 1
};

// By rank. `devices`: of all ranks, which are threads of this process; they outlive the communicators. GPUs with peer
// access: p2p, else local. Throws Error{kBadConfig} as make_p2p_communicators() does.
std::vector<RankCommunicators> make_rank_communicators(const std::vector<Device*>& devices, const Parallelism& p,
                                                       const LocalGroupOptions& options = {});

}  // namespace moectl
