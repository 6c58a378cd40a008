// Which cards a build has kernels for. Needs no card.
#include "kernels/gpu.h"

#include <gtest/gtest.h>

namespace moectl::test {
namespace {

TEST(GpuKernelsTest, ABuildForEveryCardNeedsOnlyA100OrLater) {
  EXPECT_EQ(why_no_kernels({7, 5}, PlainKernels::kEveryCard),
            "compute capability 7.5; the kernels need 8.0 (A100) or later");
  for (ComputeCapability card : {ComputeCapability{8, 0}, {8, 9}, {9, 0}, {10, 0}, {12, 0}})
    EXPECT_EQ(why_no_kernels(card, PlainKernels::kEveryCard), "") << card.major << "." << card.minor;
}

TEST(GpuKernelsTest, ABuildForHopperIsRefusedElsewhere) {
  EXPECT_EQ(why_no_kernels({9, 0}, PlainKernels::kHopper), "");
  EXPECT_EQ(why_no_kernels({7, 5}, PlainKernels::kHopper), "compute capability 7.5; the kernels need 9.0 (Hopper)");
  for (ComputeCapability card : {ComputeCapability{8, 0}, {8, 9}, {10, 0}, {12, 0}}) {
    const std::string why = why_no_kernels(card, PlainKernels::kHopper);
    EXPECT_EQ(why, "compute capability " + std::to_string(card.major) + "." + std::to_string(card.minor) +
                       ", and this moectl was built for 9.0 (Hopper) alone: build it with -DMOECTL_CUDA_PORTABLE=ON");
  }
}

TEST(GpuKernelsTest, HoppersKernelsAreForHopperAlone) {
  EXPECT_TRUE(is_hopper({9, 0}));
  for (ComputeCapability card : {ComputeCapability{7, 5}, {8, 0}, {8, 9}, {10, 0}, {12, 0}})
    EXPECT_FALSE(is_hopper(card)) << card.major << "." << card.minor;
}

}  // namespace
}  // namespace moectl::test
