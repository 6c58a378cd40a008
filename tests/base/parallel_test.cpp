#include "core/base/parallel.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace moectl::test {
namespace {

class ThreadPoolTest : public testing::TestWithParam<std::tuple<int, bool>> {
 protected:
  ThreadPool pool_{std::get<0>(GetParam()), std::get<1>(GetParam())};
};

TEST_P(ThreadPoolTest, EveryChunkRunsOnce) {
  EXPECT_EQ(pool_.size(), std::get<0>(GetParam()));
  for (int num_chunks : {0, 1, 2, 3, 7, 8, 64, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<size_t>(num_chunks));
    pool_.run(num_chunks, [&](int chunk) { ++runs[size_t(chunk)]; });
    for (const auto& r : runs) ASSERT_EQ(r.load(), 1);
  }
}

// Plain memory: what the chunks wrote is visible to the caller, and what the caller wrote to the next job's chunks.
TEST_P(ThreadPoolTest, ManyShortJobs) {
  constexpr int kChunks = 6;
  std::array<int64_t, kChunks> count{};
  int64_t job = 0;
  for (job = 0; job < 3000; ++job) {
    const int num_chunks = 1 + int(job % kChunks);
    pool_.run(num_chunks, [&](int chunk) { count[size_t(chunk)] += job; });
  }
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    int64_t expected = 0;
    for (int64_t j = 0; j < job; ++j)
      if (j % kChunks >= chunk) expected += j;
    EXPECT_EQ(count[size_t(chunk)], expected);
  }
}

TEST_P(ThreadPoolTest, PartsCoverTheRange) {
  for (int64_t n : {0, 1, 2, 5, 16, 17, 1000})
    for (int64_t min_items : {0, 1, 3, 100, 5000}) {
      std::vector<int> runs(static_cast<size_t>(n));
      std::atomic<int> calls{0};
      pool_.parallel_for(n, min_items, [&](int64_t begin, int64_t end) {
        EXPECT_LT(begin, end);
        ++calls;
        for (int64_t i = begin; i < end; ++i) ++runs[size_t(i)];
      });
      for (int r : runs) ASSERT_EQ(r, 1);
      if (n > 0 && n < 2 * min_items) {
        EXPECT_EQ(calls.load(), 1) << n << " items, at least " << min_items;
      }
    }
}

TEST_P(ThreadPoolTest, ExceptionsReachTheCallerAndThePoolGoesOn) {
  for (int round = 0; round < 20; ++round) {
    try {
      pool_.run(16, [&](int chunk) {
        if (chunk % 5 == 3) throw std::runtime_error("round " + std::to_string(round));
      });
      ADD_FAILURE() << "no exception in round " << round;
    } catch (const std::runtime_error& e) {
      EXPECT_EQ(e.what(), "round " + std::to_string(round));
    }
    std::atomic<int> runs{0};
    pool_.run(16, [&](int) { ++runs; });
    ASSERT_EQ(runs.load(), 16);
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadPoolTest,
                         testing::Combine(testing::Values(1, 2, 3, 4, 5, 6, 7, 8), testing::Bool()),
                         [](const auto& info) {
                           return std::to_string(std::get<0>(info.param)) +
                                  (std::get<1>(info.param) ? "_spin" : "_park");
                         });

// Members that never got a job, or are just about to park, end too.
TEST(ThreadPool, EndsAtAnyTime) {
  for (int i = 0; i < 100; ++i) {
    ThreadPool pool(1 + i % 8, i % 2 == 0);
    if (i % 3 == 0) pool.run(8, [](int) {});
  }
}

// A chunk that waits for another chunk gets it as long as there is a member for each.
TEST(ThreadPool, ChunksRunAtTheSameTime) {
  ThreadPool pool(4, false);
  std::atomic<int> arrived{0};
  pool.run(4, [&](int) {
    ++arrived;
    arrived.notify_all();
    for (int seen = arrived.load(); seen < 4; seen = arrived.load()) arrived.wait(seen);
  });
  EXPECT_EQ(arrived.load(), 4);
}

}  // namespace
}  // namespace moectl::test
