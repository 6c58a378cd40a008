// KV memory as the transfer between workers sees it: where pages are, what both sides must agree on, and which pages a
// request holds. Plain data; core/engine and core/pd/transfer share it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace moectl {

// The KV memory of one data-parallel rank: in each layer, pages of `page_bytes` bytes one after the other.
struct KvPool {
  int num_layers = 0;  // MTP layers included
  int64_t num_pages = 0;
  int page_size = 0;               // tokens
  int64_t page_bytes = 0;          // of one layer
  bool token_rows = true;          // KvLayout
  std::vector<std::byte*> layers;  // [num_layers]: page p of layer l is layers[l] + p * page_bytes
  // [any][num_layers]: further memory that holds the same bytes. They are read from `layers`.
  std::vector<std::vector<std::byte*>> copies;
  std::byte* page(int layer, int64_t page_id) const { return layers[size_t(layer)] + page_id * page_bytes; }
  // Bytes [offset, offset + num_bytes) of a page, in all copies.
  void write(int layer, int64_t page_id, int64_t offset, const std::byte* data, int64_t num_bytes) const;
};

// The pool of a TP group from those of its ranks, whose pages have the same ids. Compressed KV (token_rows) is the same
// on all ranks: copies. Else each rank has other heads: its layers follow those of the rank before, so that num_layers
// is tp_size times the model's. Throws Error{kInternal} for ranks whose pools differ in shape.
KvPool pool_of_group(const std::vector<KvPool>& ranks);

// What both sides must agree on before a byte moves. Compared field by field; a difference refuses the connection by
// name.
struct KvLayout {
  std::string model_hash;   // of config.json, all tensor headers and a sample of each tensor's bytes
  std::string numerics_id;  // instruction-set path, kernel version, KV dtype
  int num_layers = 0, page_size = 0;
  int64_t page_bytes = 0;
  // A page is its tokens one after the other (MLA). Else it is only moved whole (GQA: a page's keys lie by head). The
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
