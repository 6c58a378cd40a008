// PagePool: the reference counts and states of one rank's KV pages. It owns the bookkeeping, not the storage
// (core/model's KvCache), and knows nothing of tokens or requests. Scheduler thread only; every operation is O(1).
//
// A page is in exactly one state:
//   free    its contents are invalid
//   used    held by one or more requests (reference count > 0), registered or not
//   cached  no references, but registered: the prefix cache can still serve its contents; evicted in LRU order
// Its epoch counts how often its contents were invalidated: a stale (page, epoch) pair is recognized by its epoch.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace moectl {

using PageId = int32_t;

class PagePool {
 public:
  explicit PagePool(int num_pages);

  int num_pages() const { return int(pages_.size()); }
  int num_free() const { return num_free_; }
  int num_used() const { return num_pages() - num_free_ - num_cached_; }
  int num_cached() const { return num_cached_; }
  int num_available() const { return num_free_ + num_cached_; }  // what requests can still get

  // A free page, now used with one reference; nullopt when none is free (then uncache(oldest_cached()) makes one).
  std::optional<PageId> allocate();
  // One more reference to a used or cached page.
  void retain(PageId page);
  // One reference less. The last one makes the page cached when it is registered, else free.
  void release(PageId page);

  // A used page whose contents the prefix cache will serve from now on.
  void register_page(PageId page);
  // Removed from the prefix cache: a cached page becomes free, a used one keeps its references.
  void unregister_page(PageId page);
  std::optional<PageId> oldest_cached() const;

  bool is_registered(PageId page) const { return at(page).registered; }
  int num_references(PageId page) const { return at(page).references; }
  uint32_t epoch(PageId page) const { return at(page).epoch; }

 private:
  static constexpr PageId kNone = -1;
  struct Page {
    int32_t references = 0;
    uint32_t epoch = 0;
    bool registered = false;
    PageId prev = kNone, next = kNone;  // in the free list (next only) or the list of cached pages
  };
  const Page& at(PageId page) const;
  Page& at(PageId page);
  void push_free(PageId page);
  void push_cached(PageId page);
  void unlink_cached(PageId page);

  std::vector<Page> pages_;
  PageId free_head_ = kNone, cached_oldest_ = kNone, cached_newest_ = kNone;
  int num_free_ = 0, num_cached_ = 0;
};

}  // namespace moectl
