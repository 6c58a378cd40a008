// KV memory as the transfer between workers sees it: where pages are, what both sides must agree on, and which pages a
// request holds. Plain data; core/engine and core/pd/transfer share it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace moectl {

// The KV memory of one data-parallel rank, in lanes: what a layer keeps (MLA), or what one KV head of a layer keeps
// (GQA). Lanes are the whole model's, so a TP size does not show in them: lane layer * num_kv_heads + head, MTP layers
// last. A lane is pages of `page_bytes` bytes.
struct KvPool {
  int num_lanes = 0;
  int64_t num_pages = 0;
  int page_size = 0;        // tokens
  int64_t page_bytes = 0;   // of one lane
  int64_t page_stride = 0;  // bytes from a page of a lane to the next one
  bool token_rows = true;   // KvLayout
  // [num_lanes]: where page 0 is. Several places hold the same bytes (KV that TP ranks share); they are read from the
  // first. None: another TP rank holds the lane (RankHandle::kv_pool).
  std::vector<std::vector<std::byte*>> lanes;

  std::byte* page(int lane, int64_t page_id) const { return lanes[size_t(lane)].front() + page_id * page_stride; }
  // The first num_bytes bytes of a page, in all places.
  void write(int lane, int64_t page_id, const std::byte* data, int64_t num_bytes) const;
};

// The pool of a TP group from those of its ranks, whose pages have the same ids. Throws Error{kInternal} for ranks
// whose pools differ in shape, or that together lack a lane.
KvPool pool_of_group(const std::vector<KvPool>& ranks);

// What both sides must agree on before a byte moves. Compared field by field; a difference refuses the connection by
// name.
struct KvLayout {
  std::string model_hash;  // of config.json, all tensor headers and a sample of each tensor's bytes
  std::string kv_format;   // data type and version of the layout of a page: "bf16-1"
  int num_lanes = 0, page_size = 0;
  int64_t page_bytes = 0;
  // A page of a lane is its tokens one after the other (MLA). Else it is only moved whole (GQA: keys, then values). The
  // model says which, so it does not travel.
  bool token_rows = true;
  bool operator==(const KvLayout&) const = default;
};

// Pages of one request, all on one rank. Entry i holds tokens [(first_page + i) * page_size, ...).
struct KvPages {
  int rank = 0;
  int first_page = 0;          // index within the prompt of pages[0]
  std::vector<int32_t> pages;  // page ids of the rank's pool
  std::vector<uint32_t>
      epochs;  // of each page when it was reserved: a page whose epoch has changed is no longer this request's
};

}  // namespace moectl
