#include "core/comm/rank_communicators.h"

#include <algorithm>
#include <iterator>

#include "core/base/check.h"

namespace moectl {
namespace {

// Groups of `size` ranks that follow each other; by rank.
std::vector<std::unique_ptr<Communicator>> groups_of(int size, Collectives collectives,
                                                     const std::vector<Device*>& devices, bool deterministic,
                                                     LocalGroupOptions options) {
  std::vector<std::unique_ptr<Communicator>> all;
  for (auto first = devices.begin(); first != devices.end(); first += size) {
    options.first_rank = int(first - devices.begin());
    std::ranges::move(make_communicators(collectives, {first, first + size}, deterministic, options),
                      std::back_inserter(all));
  }
  return all;
}

}  // namespace

std::vector<RankCommunicators> make_rank_communicators(Collectives collectives, const std::vector<Device*>& devices,
                                                       const Parallelism& p, bool deterministic,
                                                       LocalGroupOptions options) {
  CHECK(int(devices.size()) == p.world_size(), "{} devices of {} ranks", devices.size(), p.world_size());
  std::vector<RankCommunicators> ranks(devices.size());
  auto experts = groups_of(p.ep_size, collectives, devices, deterministic, options);
  for (size_t r = 0; r < ranks.size(); ++r) ranks[r].experts = std::move(experts[r]);
  if (p.tp_size == 1) return ranks;
  // Longer sums are of f32 values: with f32 slots, too, the bits of a row do not depend on how many there are.
  options.one_shot_bytes = kOneShotBytes;
  auto tp = groups_of(p.tp_size, collectives, devices, deterministic, options);
  for (size_t r = 0; r < ranks.size(); ++r) ranks[r].tp = std::move(tp[r]);
  return ranks;
}

int64_t rank_communicator_bytes(Collectives collectives, const Parallelism& p) {
  return collectives == Collectives::kP2p ? p2p_slots_bytes(p.tp_size, {.one_shot_bytes = kOneShotBytes}) : 0;
}

}  // namespace moectl
