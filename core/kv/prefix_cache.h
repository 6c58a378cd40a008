// PrefixCache: finds the pages that already hold the KV of a prompt's prefix. It owns the index of one rank's pages
// over a PagePool; scheduler thread only; it never touches the pages' contents.
//
// The index is keyed by chained hashes of a page's token ids (vLLM's block hashes, core/text/block_hash.h). A hash
// match is verified: an entry is a hit when its ids, its parent entry and, at the root, its salt are equal, so a
// collision never serves another text's page. Entries of evicted parents are unreachable; they stay in the pool's LRU
// list of cached pages until they are evicted.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/kv/page_pool.h"
#include "core/text/block_hash.h"

namespace moectl {

// Position of one sequence in the index: the last page it found or inserted.
struct PrefixCursor {
  std::string salt;
  BlockHash hash;      // of the last page's ids; the root's before the first
  uint64_t entry = 0;  // identity of the last page's entry; 0 at the root
  int num_pages = 0;
  bool detached = false;  // its last page is not in the index: later pages cannot be inserted
};

class PrefixCache {
 public:
  using HashFunction = BlockHash (*)(const BlockHash&, std::span<const int32_t>);
  // `page_size`: tokens per page. Disabled: finds nothing, keeps nothing. `hash`: tests pass a bad one.
  PrefixCache(PagePool& pool, int page_size, bool enabled, HashFunction hash = block_hash);

  PrefixCursor root(std::string_view salt) const;
  // Number of pages, at most `max_pages`, that hold the beginning of `ids`; changes nothing.
  int num_matching_pages(std::string_view salt, std::span<const int32_t> ids, int max_pages) const;
  // The same pages, each with a reference for the caller; advances `cursor` from the root.
  std::vector<PageId> acquire(PrefixCursor& cursor, std::span<const int32_t> ids, int max_pages);
  // `page` (referenced by the caller) now holds the KV of the tokens after the cursor, whose ids are `ids` (page_size
  // of them). When the index has an equal page already, that one stays and `page` remains private. The cursor either
  // advances or is detached.
  void insert(PrefixCursor& cursor, PageId page, std::span<const int32_t> ids);
  // A page for new contents: a free one, else the least recently used cached one; nullopt when all are used.
  std::optional<PageId> allocate();
  // Releases a sequence's pages, last first, so that suffixes are evicted before their prefixes.
  void release(std::span<const PageId> pages);
  // Evicts every page that no request references.
  void flush();

  int num_entries() const { return int(entries_.size()); }

 private:
  struct Entry {
    PageId page = -1;
    uint64_t id = 0, parent = 0;
    std::vector<int32_t> ids;
    std::string salt;  // of first pages
  };
  const Entry* find(const BlockHash& hash, const PrefixCursor& cursor, std::span<const int32_t> ids) const;
  bool advance(PrefixCursor& cursor, std::span<const int32_t> ids) const;
  void evict(PageId page);

  PagePool& pool_;
  const int page_size_;
  const bool enabled_;
  const HashFunction hash_;
  uint64_t next_entry_ = 1;
  std::unordered_map<BlockHash, Entry, BlockHasher> entries_;
  std::vector<BlockHash> hash_of_page_;  // valid where the pool has the page registered
};

}  // namespace moectl
