#include "core/kv/page_pool.h"

#include "core/base/check.h"

namespace moectl {

PagePool::PagePool(int num_pages) {
  CHECK(num_pages >= 0, "{} pages", num_pages);
  pages_.resize(size_t(num_pages));
  for (PageId page = num_pages; page-- > 0;) push_free(page);  // page 0 comes out first
}

const PagePool::Page& PagePool::at(PageId page) const {
  CHECK(page >= 0 && page < num_pages(), "page {} of {}", page, num_pages());
  return pages_[size_t(page)];
}

PagePool::Page& PagePool::at(PageId page) {
  CHECK(page >= 0 && page < num_pages(), "page {} of {}", page, num_pages());
  return pages_[size_t(page)];
}

void PagePool::push_free(PageId page) {
  pages_[size_t(page)].next = free_head_;
  free_head_ = page;
  ++num_free_;
}

void PagePool::push_cached(PageId page) {
  Page& p = pages_[size_t(page)];
  p.prev = cached_newest_;
  p.next = kNone;
  (cached_newest_ == kNone ? cached_oldest_ : pages_[size_t(cached_newest_)].next) = page;
  cached_newest_ = page;
  ++num_cached_;
}

void PagePool::unlink_cached(PageId page) {
  Page& p = pages_[size_t(page)];
  (p.prev == kNone ? cached_oldest_ : pages_[size_t(p.prev)].next) = p.next;
  (p.next == kNone ? cached_newest_ : pages_[size_t(p.next)].prev) = p.prev;
  p.prev = p.next = kNone;
  --num_cached_;
}

std::optional<PageId> PagePool::allocate() {
  if (free_head_ == kNone) return std::nullopt;
  const PageId page = free_head_;
  Page& p = pages_[size_t(page)];
  free_head_ = p.next;
  p.next = kNone;
  --num_free_;
  p.references = 1;
  return page;
}

void PagePool::retain(PageId page) {
  Page& p = at(page);
  CHECK(p.references > 0 || p.registered, "page {} is free", page);
  if (p.references++ == 0) unlink_cached(page);
}

void PagePool::release(PageId page) {
  Page& p = at(page);
  CHECK(p.references > 0, "page {} has no references", page);
  if (--p.references > 0) return;
  if (p.registered) {
    push_cached(page);
  } else {
    ++p.epoch;
    push_free(page);
  }
}

void PagePool::register_page(PageId page) {
  Page& p = at(page);
  CHECK(p.references > 0 && !p.registered, "page {} has {} references, registered: {}", page, p.references,
        p.registered);
  p.registered = true;
}

void PagePool::unregister_page(PageId page) {
  Page& p = at(page);
  CHECK(p.registered, "page {} is not registered", page);
  p.registered = false;
  if (p.references > 0) return;
  unlink_cached(page);
  ++p.epoch;
  push_free(page);
}

std::optional<PageId> PagePool::oldest_cached() const {
  if (cached_oldest_ == kNone) return std::nullopt;
  return cached_oldest_;
}

}  // namespace moectl
