#include "core/kv/kv_pool.h"

#include <cstring>

#include "core/base/check.h"

namespace moectl {

void KvPool::write(int layer, int64_t page_id, int64_t offset, const std::byte* data, int64_t num_bytes) const {
  const int64_t at = page_id * page_bytes + offset;
  std::memcpy(layers[size_t(layer)] + at, data, size_t(num_bytes));
  for (const auto& copy : copies) std::memcpy(copy[size_t(layer)] + at, data, size_t(num_bytes));
}

KvPool pool_of_group(const std::vector<KvPool>& ranks) {
  CHECK(!ranks.empty(), "a group without ranks");
  KvPool group = ranks.front();
  for (size_t r = 1; r < ranks.size(); ++r) {
    const KvPool& rank = ranks[r];
    CHECK(rank.num_layers == ranks[0].num_layers && rank.num_pages == group.num_pages &&
              rank.page_size == group.page_size && rank.page_bytes == group.page_bytes &&
              rank.token_rows == group.token_rows,
          "TP ranks with different KV pools: {} layers, {} pages of {} bytes; {}, {}, {}", ranks[0].num_layers,
          group.num_pages, group.page_bytes, rank.num_layers, rank.num_pages, rank.page_bytes);
    if (group.token_rows)
      group.copies.push_back(rank.layers);
    else
      group.layers.insert(group.layers.end(), rank.layers.begin(), rank.layers.end());
  }
  group.num_layers = int(group.layers.size());
  return group;
}

}  // namespace moectl
