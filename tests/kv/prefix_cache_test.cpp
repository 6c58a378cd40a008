// PrefixCache: what it finds, what it must never find, and that no page is lost, with good and with bad hashes.
#include "core/kv/prefix_cache.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <random>

namespace moectl {
namespace {

constexpr int kPage = 4;

std::vector<int32_t> iota(int n, int32_t first = 0) {
  std::vector<int32_t> ids(size_t(n), 0);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

// What the scheduler does with one text: take what is cached, fill the rest, register full pages.
struct Text {
  std::vector<PageId> pages;
  PrefixCursor cursor;
  int num_hits = 0;
};

Text run_text(PrefixCache& cache, std::span<const int32_t> ids, std::string_view salt = "") {
  Text t{.cursor = cache.root(salt)};
  t.pages = cache.acquire(t.cursor, ids, int(ids.size() - 1) / kPage);
  t.num_hits = int(t.pages.size());
  for (size_t begin = t.pages.size() * kPage; begin < ids.size(); begin += kPage) {
    const auto page = cache.allocate();
    if (!page) break;
    t.pages.push_back(*page);
    if (begin + kPage <= ids.size()) cache.insert(t.cursor, *page, ids.subspan(begin, kPage));
  }
  return t;
}

TEST(PrefixCache, FindsTheLongestPrefixOfWholePages) {
  PagePool pool(16);
  PrefixCache cache(pool, kPage, true);
  const auto ids = iota(14);
  Text first = run_text(cache, ids);
  EXPECT_EQ(first.num_hits, 0);
  EXPECT_EQ(cache.num_entries(), 3) << "14 tokens fill three pages of four";
  EXPECT_EQ(cache.num_matching_pages("", ids, 99), 3);
  EXPECT_EQ(cache.num_matching_pages("", ids, 2), 2) << "capped";
  EXPECT_EQ(cache.num_matching_pages("", std::span(ids).first(11), 99), 2) << "a partial page is no hit";
  auto other = ids;
  other[5] = 77;
  EXPECT_EQ(cache.num_matching_pages("", other, 99), 1) << "a later difference keeps the page before it";
  other[0] = 78;
  EXPECT_EQ(cache.num_matching_pages("", other, 99), 0);
  Text second = run_text(cache, ids);
  EXPECT_EQ(std::vector(second.pages.begin(), second.pages.begin() + 3),
            std::vector(first.pages.begin(), first.pages.begin() + 3));
  EXPECT_NE(second.pages[3], first.pages[3]) << "the page being written is private";
  EXPECT_EQ(pool.num_used(), 5);
  cache.release(first.pages);
  cache.release(second.pages);
  EXPECT_EQ(pool.num_used(), 0);
  EXPECT_EQ(pool.num_cached(), 3);
}

TEST(PrefixCache, SaltsSeparateTenants) {
  PagePool pool(16);
  PrefixCache cache(pool, kPage, true);
  const auto ids = iota(9);
  run_text(cache, ids, "a");
  EXPECT_EQ(cache.num_matching_pages("a", ids, 99), 2);
  EXPECT_EQ(cache.num_matching_pages("b", ids, 99), 0);
  EXPECT_EQ(cache.num_matching_pages("", ids, 99), 0);
}

TEST(PrefixCache, DisabledFindsAndKeepsNothing) {
  PagePool pool(4);
  PrefixCache cache(pool, kPage, false);
  const auto ids = iota(9);
  Text t = run_text(cache, ids);
  EXPECT_EQ(cache.num_matching_pages("", ids, 99), 0);
  cache.release(t.pages);
  EXPECT_EQ(pool.num_free(), 4);
}

TEST(PrefixCache, EndsOfTextsAreEvictedBeforeTheirBeginnings) {
  PagePool pool(4);
  PrefixCache cache(pool, kPage, true);
  const auto ids = iota(16);
  cache.release(run_text(cache, ids).pages);
  EXPECT_EQ(pool.num_cached(), 4);
  for (int left = 3; left >= 0; --left) {
    ASSERT_TRUE(cache.allocate());
    EXPECT_EQ(cache.num_matching_pages("", ids, 99), left);
  }
  EXPECT_EQ(cache.allocate(), std::nullopt) << "everything is in use";
  EXPECT_EQ(cache.num_entries(), 0);
}

TEST(PrefixCache, OrphansOfEvictedParentsAreNotServedAndNotLost) {
  PagePool pool(6);
  PrefixCache cache(pool, kPage, true);
  const auto ids = iota(12);
  // Two requests compute the same first page at once: the second's copy stays private.
  PrefixCursor a = cache.root(""), b = cache.root("");
  const PageId a0 = *cache.allocate(), b0 = *cache.allocate(), b1 = *cache.allocate();
  cache.insert(a, a0, std::span(ids).subspan(0, 4));
  cache.insert(b, b0, std::span(ids).subspan(0, 4));
  cache.insert(b, b1, std::span(ids).subspan(4, 4));
  EXPECT_EQ(cache.num_entries(), 2);
  EXPECT_FALSE(pool.is_registered(b0));
  cache.release(std::vector{a0});
  cache.flush();  // the first page is evicted, the second is still referenced
  EXPECT_EQ(cache.num_matching_pages("", ids, 99), 0) << "a child without its parent";
  const PageId b2 = *cache.allocate();
  cache.insert(b, b2, std::span(ids).subspan(8, 4));
  EXPECT_EQ(cache.num_entries(), 2) << "b1 is in the index, so its child may be";
  cache.release(std::vector{b0, b1, b2});
  EXPECT_EQ(pool.num_used(), 0);
  EXPECT_EQ(pool.num_cached(), 2);
  // The text comes back: its pages replace the orphans.
  Text again = run_text(cache, ids);
  EXPECT_EQ(again.num_hits, 0);
  EXPECT_EQ(cache.num_matching_pages("", ids, 99), 3);
  cache.release(again.pages);
  cache.flush();
  EXPECT_EQ(pool.num_free(), 6);
  EXPECT_EQ(cache.num_entries(), 0);
}

TEST(PrefixCache, DetachedTextInsertsNothing) {
  PagePool pool(4);
  PrefixCache cache(pool, kPage, true);
  const auto ids = iota(8);
  PrefixCursor a = cache.root(""), b = cache.root("");
  const PageId a0 = *cache.allocate(), b0 = *cache.allocate(), b1 = *cache.allocate();
  cache.insert(a, a0, std::span(ids).first(4));
  cache.insert(b, b0, std::span(ids).first(4));
  cache.release(std::vector{a0});
  cache.flush();
  cache.insert(b, b1, std::span(ids).last(4));
  EXPECT_EQ(cache.num_entries(), 0) << "an entry below a forgotten parent could never be found";
  cache.release(std::vector{b0, b1});
  EXPECT_EQ(pool.num_free(), 4);
}

TEST(PrefixCache, FlushKeepsWhatRequestsHold) {
  PagePool pool(8);
  PrefixCache cache(pool, kPage, true);
  const auto held = iota(8), idle = iota(8, 100);
  Text h = run_text(cache, held);
  cache.release(run_text(cache, idle).pages);
  cache.flush();
  EXPECT_EQ(cache.num_matching_pages("", idle, 99), 0);
  EXPECT_EQ(cache.num_matching_pages("", held, 99), 2);
  EXPECT_EQ(pool.num_free(), 6);
  cache.release(h.pages);
}

BlockHash one_hash(const BlockHash&, std::span<const int32_t>) {
  return {1, 1};
}
BlockHash two_bits(const BlockHash& parent, std::span<const int32_t> ids) {
  BlockHash h = block_hash(parent, ids);
  return {h.low & 3, 0};
}

// Every hit is checked against the text that was written to the page, whatever the hash does.
void random_texts(PrefixCache::HashFunction hash, bool expect_hits) {
  constexpr int kPages = 24;
  PagePool pool(kPages);
  PrefixCache cache(pool, kPage, true, hash);
  std::mt19937 rng(7);
  std::map<PageId, std::pair<std::string, std::vector<int32_t>>> written;  // page -> salt and whole text up to its end
  std::vector<Text> running;
  int num_hits = 0;
  for (int step = 0; step < 20000; ++step) {
    if (running.size() > 3 || (rng() % 3 == 0 && !running.empty())) {
      const size_t i = rng() % running.size();
      cache.release(running[i].pages);
      running.erase(running.begin() + long(i));
    } else if (rng() % 50 == 0) {
      cache.flush();
    } else {
      std::vector<int32_t> ids;
      for (int n = 1 + int(rng() % 22); n-- > 0;)
        ids.push_back(int32_t(rng() % 8 == 0));  // few texts, shared beginnings
      const std::string salt(rng() % 4 == 0, 'x');
      const int expected = cache.num_matching_pages(salt, ids, int(ids.size() - 1) / kPage);
      Text t = run_text(cache, ids, salt);
      ASSERT_EQ(t.num_hits, expected);
      num_hits += t.num_hits;
      for (size_t i = 0; i < t.pages.size(); ++i) {
        const std::vector<int32_t> upto(ids.begin(), ids.begin() + long(std::min(ids.size(), (i + 1) * kPage)));
        if (int(i) < t.num_hits) {
          ASSERT_EQ(written[t.pages[i]], std::pair(salt, upto)) << "another text's page was served";
        } else {
          written[t.pages[i]] = {salt, upto};
        }
      }
      running.push_back(std::move(t));
    }
    ASSERT_EQ(pool.num_used() + pool.num_cached() + pool.num_free(), kPages);
    int registered = 0;
    for (PageId p = 0; p < kPages; ++p) registered += pool.is_registered(p);
    ASSERT_EQ(registered, cache.num_entries());
  }
  for (const Text& t : running) cache.release(t.pages);
  cache.flush();
  EXPECT_EQ(pool.num_free(), kPages);
  EXPECT_EQ(cache.num_entries(), 0);
  if (expect_hits) {
    EXPECT_GT(num_hits, 1000);
  }
}

TEST(PrefixCache, RandomTexts) {
  random_texts(block_hash, true);
}
TEST(PrefixCache, CollidingHashesServeNoOtherText) {
  random_texts(two_bits, true);
  random_texts(one_hash, false);
}

}  // namespace
}  // namespace moectl
