#include "core/parallel/expert_placement.h"

#include "core/base/check.h"

namespace moectl {
namespace {

int redundant_experts(int num_experts, int num_ranks, std::optional<int> given) {
  const int padding = (num_ranks - num_experts % num_ranks) % num_ranks;  // the smallest legal number
  if (!given) return padding;
  const int n = *given;
  if (n < 0) throw Error(Code::kBadConfig, fmt::format("the number of redundant experts must be 0 or more, not {}", n));
  const int below = n < padding ? -1 : n - (n - padding) % num_ranks;
  if (below == n) return n;
  throw Error(Code::kBadConfig,
              fmt::format("{} experts and {} redundant experts do not divide evenly over {} ranks; give {} redundant "
                          "experts",
                          num_experts, n, num_ranks,
                          below < 0 ? fmt::format("{}", padding) : fmt::format("{} or {}", below, below + num_ranks)));
}

}  // namespace

ExpertPlacement make_placement(int num_experts, int num_ranks, std::optional<int> num_redundant) {
  if (num_experts < 1 || num_ranks < 1)
    throw Error(Code::kBadConfig,
                fmt::format("{} experts over {} ranks: both must be at least 1", num_experts, num_ranks));
  ExpertPlacement p = {.num_experts = num_experts, .num_ranks = num_ranks};
  p.num_physical = num_experts + redundant_experts(num_experts, num_ranks, num_redundant);
  // Slot s = rank * num_local + local holds logical expert s % num_experts: equal experts are num_experts slots apart,
  // which is never within a rank of num_local <= num_experts.
  for (int e = 0; e < num_experts; ++e) {
    p.replica_begin.push_back(int32_t(p.rank.size()));
    for (int slot = e; slot < p.num_physical; slot += num_experts) {
      p.rank.push_back(slot / p.num_local());
      p.local.push_back(slot % p.num_local());
    }
  }
  p.replica_begin.push_back(p.num_physical);
  return p;
}

std::vector<int32_t> ExpertPlacement::logical_experts(int of_rank) const {
  CHECK(of_rank >= 0 && of_rank < num_ranks, "rank {} of {}", of_rank, num_ranks);
  std::vector<int32_t> experts(size_t(num_local()), -1);
  for (int32_t e = 0; e < num_experts; ++e)
    for (int32_t p = replica_begin[size_t(e)]; p < replica_begin[size_t(e) + 1]; ++p)
      if (rank[size_t(p)] == of_rank) experts[size_t(local[size_t(p)])] = e;
  return experts;
}

int64_t placement_bytes(const ExpertPlacement& p) {
  if (p.is_identity()) return 0;
  return int64_t(sizeof(int32_t)) * (p.num_experts + 1 + 2 * p.num_physical + p.num_local());
}

PlacementTables upload_placement(const ExpertPlacement& p, int rank, Device& device) {
  PlacementTables tables;
  if (p.is_identity()) return tables;
  tables.storage = device.alloc(placement_bytes(p));
  auto* to = reinterpret_cast<int32_t*>(tables.storage.get());
  const auto table = [&](const std::vector<int32_t>& from) {
    const View<const int32_t> view(to, {int64_t(from.size())});
    device.upload(to, from.data(), int64_t(from.size() * sizeof(int32_t)));
    to += from.size();
    return view;
  };
  tables.view = {table(p.replica_begin), table(p.rank), table(p.local)};
  tables.logical_experts = table(p.logical_experts(rank));
  return tables;
}

}  // namespace moectl
