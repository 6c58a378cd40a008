// PagePool against a naive model under random operations, and its rules one by one.
#include "core/kv/page_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>

#include "core/base/error.h"

namespace moectl {
namespace {

TEST(PagePool, PageGoesThroughItsStates) {
  PagePool pool(2);
  const PageId page = *pool.allocate();
  EXPECT_EQ(pool.num_used(), 1);
  pool.retain(page);
  pool.release(page);
  EXPECT_EQ(pool.num_used(), 1);
  pool.register_page(page);
  EXPECT_EQ(pool.epoch(page), 0u);
  pool.release(page);
  EXPECT_EQ(pool.num_cached(), 1);
  EXPECT_EQ(pool.epoch(page), 0u) << "its contents can still be served";
  pool.retain(page);
  EXPECT_EQ(pool.num_cached(), 0);
  pool.release(page);
  pool.unregister_page(page);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.epoch(page), 1u);
}

TEST(PagePool, EpochCountsEveryGivingUp) {
  PagePool pool(1);
  for (uint32_t i = 0; i < 5; ++i) {
    EXPECT_EQ(pool.epoch(0), i);
    ASSERT_EQ(pool.allocate(), PageId{0});
    EXPECT_EQ(pool.allocate(), std::nullopt);
    pool.release(0);
  }
}

TEST(PagePool, RefusesWhatMakesNoSense) {
  PagePool pool(2);
  EXPECT_THROW(pool.retain(0), Error) << "free";
  EXPECT_THROW(pool.release(0), Error) << "free";
  EXPECT_THROW(pool.register_page(0), Error) << "free";
  EXPECT_THROW(pool.unregister_page(0), Error) << "not registered";
  EXPECT_THROW(pool.retain(2), Error) << "no such page";
  EXPECT_THROW(pool.release(-1), Error) << "no such page";
  EXPECT_EQ(pool.num_free(), 2);
}

TEST(PagePool, RandomOperationsAgreeWithANaiveModel) {
  constexpr int kPages = 13, kSteps = 100000;
  for (unsigned seed = 0; seed < 3; ++seed) {
    std::mt19937 rng(seed);
    PagePool pool(kPages);
    struct Naive {
      int references = 0;
      bool registered = false;
      uint32_t epoch = 0;
    };
    std::map<PageId, Naive> pages;
    for (PageId p = 0; p < kPages; ++p) pages[p] = {};
    std::deque<PageId> cached;  // oldest first
    auto drop = [&](PageId p) { cached.erase(std::find(cached.begin(), cached.end(), p)); };
    for (int step = 0; step < kSteps; ++step) {
      const PageId p = PageId(rng() % kPages);
      Naive& n = pages[p];
      switch (rng() % 6) {
        case 0: {
          const auto got = pool.allocate();
          const bool any_free =
              std::ranges::any_of(pages, [](auto& e) { return !e.second.references && !e.second.registered; });
          ASSERT_EQ(got.has_value(), any_free);
          if (!got) break;
          ASSERT_TRUE(pages[*got].references == 0 && !pages[*got].registered) << "a page in use";
          pages[*got].references = 1;
          break;
        }
        case 1:
          if (n.references == 0 && !n.registered) break;
          if (n.references == 0) drop(p);
          ++n.references;
          pool.retain(p);
          break;
        case 2:
        case 3:
          if (n.references == 0) break;
          pool.release(p);
          if (--n.references > 0) break;
          if (n.registered)
            cached.push_back(p);
          else
            ++n.epoch;
          break;
        case 4:
          if (n.references == 0 || n.registered) break;
          n.registered = true;
          pool.register_page(p);
          break;
        case 5: {
          const PageId victim = rng() % 2 && !cached.empty() ? cached.front() : p;
          Naive& v = pages[victim];
          if (!v.registered) break;
          v.registered = false;
          if (v.references == 0) {
            drop(victim);
            ++v.epoch;
          }
          pool.unregister_page(victim);
          break;
        }
      }
      int used = 0;
      for (auto& [id, e] : pages) {
        used += e.references > 0;
        ASSERT_EQ(pool.num_references(id), e.references);
        ASSERT_EQ(pool.is_registered(id), e.registered);
        ASSERT_EQ(pool.epoch(id), e.epoch);
      }
      ASSERT_EQ(pool.num_used(), used);
      ASSERT_EQ(pool.num_cached(), int(cached.size()));
      ASSERT_EQ(pool.num_free(), kPages - used - int(cached.size()));
      ASSERT_EQ(pool.oldest_cached(), cached.empty() ? std::nullopt : std::optional(cached.front()));
    }
  }
}

}  // namespace
}  // namespace moectl
