// PrefixCache: finds the pages that already hold the KV of a text's beginning. It owns the index of one rank's pages
// over a BlockPool; scheduler thread only; it never touches the pages' contents.
//
// The index is keyed by chained block hashes, but a hash only proposes: an entry counts as a hit when its ids, its
// parent entry and, at the root, its salt are equal, so a collision can never serve another text's page. Entries of
// evicted parents cannot be reached; they stay in the pool's list of cached pages and are evicted in their turn.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/kv/block_pool.h"
#include "core/text/block_hash.h"

namespace moectl {

// Where one sequence stands in the index: the last block it found or inserted.
struct PrefixCursor {
  std::string salt;
  BlockHash hash;      // of the last block; the root's before the first
  uint64_t entry = 0;  // identity of the last block's entry; 0 at the root
  int num_blocks = 0;
  bool detached = false;  // its last block is not in the index: later blocks cannot be inserted
};

class PrefixCache {
 public:
  using HashFunction = BlockHash (*)(const BlockHash&, std::span<const int32_t>);
  // `page_size`: tokens a page. Disabled: finds nothing, keeps nothing. `hash`: tests pass a bad one.
  PrefixCache(BlockPool& pool, int page_size, bool enabled, HashFunction hash = block_hash);

  PrefixCursor root(std::string_view salt) const;
  // Number of pages, at most `max_pages`, that hold the beginning of `ids`; changes nothing.
  int num_matching_pages(std::string_view salt, std::span<const int32_t> ids, int max_pages) const;
  // The same pages, each with a reference for the caller; advances `cursor` from the root.
  std::vector<PageId> acquire(PrefixCursor& cursor, std::span<const int32_t> ids, int max_pages);
  // `page` (held by the caller) now holds the KV of the block after the cursor, whose ids are `ids` (page_size of
  // them). When the index has an equal block already, that one stays and `page` remains private. Either the cursor
  // moves on or it is detached.
  void insert(PrefixCursor& cursor, PageId page, std::span<const int32_t> ids);
  // A page for new contents: a free one, else the least recently used cached one; nullopt when all are used.
  std::optional<PageId> allocate();
  // Gives back a sequence's pages, last first, so that the ends of texts are evicted before their beginnings.
  void release(std::span<const PageId> pages);
  // Forgets every page that no request holds.
  void flush();

  int num_entries() const { return int(entries_.size()); }

 private:
  struct Entry {
    PageId page = -1;
    uint64_t id = 0, parent = 0;
    std::vector<int32_t> ids;
    std::string salt;  // of first blocks
  };
  const Entry* find(const BlockHash& hash, const PrefixCursor& cursor, std::span<const int32_t> ids) const;
  bool advance(PrefixCursor& cursor, std::span<const int32_t> ids) const;
  void evict(PageId page);

  BlockPool& pool_;
  const int page_size_;
  const bool enabled_;
  const HashFunction hash_;
  uint64_t next_entry_ = 1;
  std::unordered_map<BlockHash, Entry, BlockHasher> entries_;
  std::vector<BlockHash> hash_of_page_;  // valid where the pool has the page registered
};

}  // namespace moectl
