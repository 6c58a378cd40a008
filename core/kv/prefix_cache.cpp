#include "core/kv/prefix_cache.h"

#include <algorithm>

#include "core/base/check.h"

namespace moectl {

PrefixCache::PrefixCache(PagePool& pool, int page_size, bool enabled, HashFunction hash)
    : pool_(pool), page_size_(page_size), enabled_(enabled), hash_(hash), hash_of_page_(size_t(pool.num_pages())) {
  CHECK(page_size > 0, "page size {}", page_size);
}

PrefixCursor PrefixCache::root(std::string_view salt) const {
  return {.salt = std::string(salt), .hash = root_hash(salt)};
}

const PrefixCache::Entry* PrefixCache::find(const BlockHash& hash, const PrefixCursor& cursor,
                                            std::span<const int32_t> ids) const {
  const auto it = entries_.find(hash);
  if (it == entries_.end()) return nullptr;
  const Entry& entry = it->second;
  const bool equal = entry.parent == cursor.entry && std::ranges::equal(entry.ids, ids) &&
                     (cursor.entry != 0 || entry.salt == cursor.salt);
  return equal ? &entry : nullptr;
}

bool PrefixCache::advance(PrefixCursor& cursor, std::span<const int32_t> ids) const {
  const BlockHash hash = hash_(cursor.hash, ids);
  const Entry* entry = find(hash, cursor, ids);
  if (!entry) return false;
  cursor.hash = hash;
  cursor.entry = entry->id;
  ++cursor.num_pages;
  return true;
}

int PrefixCache::num_matching_pages(std::string_view salt, std::span<const int32_t> ids, int max_pages) const {
  if (!enabled_) return 0;
  PrefixCursor cursor = root(salt);
  const int num_pages = int(std::min<size_t>(ids.size() / size_t(page_size_), size_t(std::max(max_pages, 0))));
  while (cursor.num_pages < num_pages &&
         advance(cursor, ids.subspan(size_t(cursor.num_pages) * page_size_, size_t(page_size_)))) {
  }
  return cursor.num_pages;
}

std::vector<PageId> PrefixCache::acquire(PrefixCursor& cursor, std::span<const int32_t> ids, int max_pages) {
  CHECK(cursor.num_pages == 0, "a cursor that stands at page {}", cursor.num_pages);
  std::vector<PageId> pages;
  if (!enabled_) return pages;
  const int num_pages = int(std::min<size_t>(ids.size() / size_t(page_size_), size_t(std::max(max_pages, 0))));
  while (cursor.num_pages < num_pages &&
         advance(cursor, ids.subspan(size_t(cursor.num_pages) * page_size_, size_t(page_size_)))) {
    pages.push_back(entries_.at(cursor.hash).page);
    pool_.retain(pages.back());
  }
  return pages;
}

void PrefixCache::insert(PrefixCursor& cursor, PageId page, std::span<const int32_t> ids) {
  CHECK(int(ids.size()) == page_size_, "{} ids for a page of {}", ids.size(), page_size_);
  cursor.detached = cursor.detached || !enabled_;
  if (cursor.detached) return;
  if (cursor.entry != 0) {  // the parent may have been another request's page that was evicted since
    const auto parent = entries_.find(cursor.hash);
    if (parent == entries_.end() || parent->second.id != cursor.entry) {
      cursor.detached = true;
      return;
    }
  }
  if (advance(cursor, ids)) return;
  const BlockHash hash = hash_(cursor.hash, ids);
  if (const auto it = entries_.find(hash); it != entries_.end()) {  // an unreachable or colliding entry is replaced
    pool_.unregister_page(it->second.page);
    entries_.erase(it);
  }
  pool_.register_page(page);
  hash_of_page_[size_t(page)] = hash;
  const uint64_t id = next_entry_++;
  entries_.emplace(
      hash, Entry{page, id, cursor.entry, {ids.begin(), ids.end()}, cursor.entry == 0 ? cursor.salt : std::string()});
  cursor.hash = hash;
  cursor.entry = id;
  ++cursor.num_pages;
}

void PrefixCache::evict(PageId page) {
  entries_.erase(hash_of_page_[size_t(page)]);
  pool_.unregister_page(page);
}

std::optional<PageId> PrefixCache::allocate() {
  if (pool_.num_free() == 0)
    if (const auto oldest = pool_.oldest_cached()) evict(*oldest);
  return pool_.allocate();
}

void PrefixCache::release(std::span<const PageId> pages) {
  for (size_t i = pages.size(); i-- > 0;) pool_.release(pages[i]);
}

void PrefixCache::flush() {
  while (const auto oldest = pool_.oldest_cached()) evict(*oldest);
}

}  // namespace moectl
