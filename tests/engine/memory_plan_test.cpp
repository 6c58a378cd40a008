#include "core/engine/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/error.h"

namespace moectl::test {
namespace {

constexpr int64_t kGB = 1'000'000'000, kPage = 7'000'001;

MemoryPlan gpu() {
  return {.total_bytes = 140 * kGB,
          .free_bytes = 139 * kGB,
          .weight_bytes = 30 * kGB,
          .workspace_bytes = 2 * kGB,
          .graph_bytes = kGB};
}

std::string refusal(MemoryPlan plan, int64_t min_kv_bytes) {
  try {
    plan.complete(kPage, min_kv_bytes);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kBadConfig);
    return e.what();
  }
  return "accepted";
}

TEST(MemoryPlan, TheCacheTakesWhatUtilizationLeavesInWholePages) {
  MemoryPlan plan = gpu();
  plan.complete(kPage, kGB);
  EXPECT_EQ(plan.kv_bytes, 93 * kGB / kPage * kPage);  // 126 - 33
  EXPECT_THAT(plan.text(), testing::HasSubstr("weights 30.00 GB"));
}

TEST(MemoryPlan, AFullGpuCountsBeforeUtilization) {
  MemoryPlan plan = gpu();
  plan.free_bytes = 40 * kGB;
  plan.complete(kPage, kGB);
  EXPECT_EQ(plan.kv_bytes, 7 * kGB / kPage * kPage);
}

TEST(MemoryPlan, AGivenCacheIsKept) {
  MemoryPlan plan = gpu();
  plan.kv_bytes = 100 * kGB;  // more than utilization allows, but it fits
  plan.complete(kPage, kGB);
  EXPECT_EQ(plan.kv_bytes, 100 * kGB);
}

TEST(MemoryPlan, RefusalsCarryTheNumbers) {
  MemoryPlan plan = gpu();
  plan.weight_bytes = 400 * kGB;
  EXPECT_THAT(refusal(plan, kGB),
              testing::AllOf(testing::HasSubstr("weights 400.00 GB"), testing::HasSubstr("139.00 GB of 140.00 GB"),
                             testing::HasSubstr("--gpu-memory-utilization 0.90 allows 126.00 GB")));
  EXPECT_THAT(refusal(gpu(), 94 * kGB), testing::HasSubstr("needs 94.00 GB"));
  plan = gpu();
  plan.kv_bytes = 107 * kGB;
  EXPECT_THAT(refusal(plan, kGB), testing::HasSubstr("at most 106000000000 bytes"));
  plan.kv_bytes = 12345;
  EXPECT_THAT(refusal(plan, kGB), testing::AllOf(testing::HasSubstr("--kv-cache-memory-bytes 12345 is less"),
                                                 testing::HasSubstr("at least 1000000000 bytes")));
}

// Of several ranks each has its plan; --kv-cache-memory-bytes is of all together.
TEST(MemoryPlan, NamesTheRankOfSeveral) {
  MemoryPlan plan = gpu();
  plan.rank = "rank 1 (GPU 3)";
  plan.num_ranks = 2;
  EXPECT_EQ(plan.text().find("rank 1 (GPU 3): weights 30.00 GB"), 0u);
  plan.kv_bytes = 107 * kGB;
  EXPECT_THAT(refusal(plan, kGB),
              testing::AllOf(testing::HasSubstr("rank 1 (GPU 3)"), testing::HasSubstr("at most 212000000000 bytes")));
  plan.kv_bytes = 12345;
  EXPECT_THAT(refusal(plan, kGB), testing::AllOf(testing::HasSubstr("--kv-cache-memory-bytes 24690 is less"),
                                                 testing::HasSubstr("at least 2000000000 bytes")));
}

}  // namespace
}  // namespace moectl::test
