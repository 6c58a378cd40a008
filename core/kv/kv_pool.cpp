#include "core/kv/kv_pool.h"

#include <cstring>

#include "core/base/check.h"

namespace moectl {

void KvPool::write(int lane, int64_t page_id, const std::byte* data, int64_t num_bytes) const {
  for (std::byte* place : lanes[size_t(lane)]) std::memcpy(place + page_id * page_stride, data, size_t(num_bytes));
}

KvPool pool_of_group(const std::vector<KvPool>& ranks) {
  CHECK(!ranks.empty(), "a group without ranks");
  KvPool group = ranks.front();
  for (size_t r = 1; r < ranks.size(); ++r) {
    const KvPool& rank = ranks[r];
    CHECK(rank.num_lanes == group.num_lanes && rank.num_pages == group.num_pages && rank.page_size == group.page_size &&
              rank.page_bytes == group.page_bytes && rank.page_stride == group.page_stride &&
              rank.token_rows == group.token_rows,
          "TP ranks with different KV pools: {} lanes, {} pages of {} bytes; {}, {}, {}", group.num_lanes,
          group.num_pages, group.page_bytes, rank.num_lanes, rank.num_pages, rank.page_bytes);
    for (size_t lane = 0; lane < rank.lanes.size(); ++lane)
      group.lanes[lane].insert(group.lanes[lane].end(), rank.lanes[lane].begin(), rank.lanes[lane].end());
  }
  for (const auto& places : group.lanes) CHECK(!places.empty(), "no TP rank holds a lane of the KV pool");
  return group;
}

}  // namespace moectl
