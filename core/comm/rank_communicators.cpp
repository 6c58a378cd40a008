#include "core/comm/rank_communicators.h"

#include <algorithm>
#include <iterator>

#include "core/base/check.h"

namespace moectl {
namespace {

// Groups of `size` ranks that follow each other; by rank.
std::vector<std::unique_ptr<Communicator>> groups_of(int size, const std::vector<Device*>& devices,
                                                     LocalGroupOptions options) {
  std::vector<std::unique_ptr<Communicator>> all;
  for (auto first = devices.begin(); first != devices.end(); first += size) {
    options.first_rank = int(first - devices.begin());
    auto group = size > 1 && (*first)->peers() ? make_p2p_communicators({first, first + size}, options)
                                               : make_local_communicators(size, options);
    std::ranges::move(group, std::back_inserter(all));
  }
  return all;
}

}  // namespace

std::vector<RankCommunicators> make_rank_communicators(const std::vector<Device*>& devices, const Parallelism& p,
                                                       const LocalGroupOptions& options) {
  CHECK(int(devices.size()) == p.world_size(), "{} devices of {} ranks", devices.size(), p.world_size());
  std::vector<RankCommunicators> ranks(devices.size());
  auto experts = groups_of(p.ep_size, devices, options);
  for (size_t r = 0; r < ranks.size(); ++r) ranks[r].experts = std::move(experts[r]);
  if (p.tp_size == 1) return ranks;
  auto tp = groups_of(p.tp_size, devices, options);
  for (size_t r = 0; r < ranks.size(); ++r) ranks[r].tp = std::move(tp[r]);
  return ranks;
}

}  // namespace moectl
