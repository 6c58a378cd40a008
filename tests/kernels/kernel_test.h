// KernelTest: runs each test once a CPU path and once on a GPU, skipping what the machine lacks, and repeats an
// operation with teams of several sizes. Owns nothing but the Ops under test.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "tests/harness/compare.h"
#include "tests/harness/generate.h"
#include "tests/harness/mirror_ops.h"

namespace moectl::test {

class KernelTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    try {
      ops_ = make(1);
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
  Ops& ops() { return *ops_; }
  // Whether operations look at the host's copy of indexes and refuse those that are out of range; a GPU leaves such
  // rows out.
  bool refuses_bad_indexes() { return ops_->capabilities().host_readable; }

  // compute(ops) -> vector<float> must give the same bits with every number of threads (a GPU: every time).
  template <class Compute>
  void expect_same_with_threads(Compute&& compute) {
    const std::vector<float> expected = compute(ops());
    for (int threads : {2, 3, 5}) {
      if (GetParam() == "cuda") {
        ASSERT_TRUE(same_bits(compute(ops()), expected)) << "again";
        continue;
      }
      auto many = make(threads);
      ASSERT_TRUE(same_bits(compute(*many), expected)) << threads << " threads";
    }
  }

 private:
  static std::unique_ptr<Ops> make(int threads) {
    if (GetParam() == "cuda")
      return std::make_unique<MirrorOps>(make_ops({.device = "cuda", .num_threads = threads, .precise = true}));
    return make_ops({.cpu_path = GetParam(), .num_threads = threads, .spin = false});
  }

  std::unique_ptr<Ops> ops_;
};

inline std::vector<float> row_of(const std::vector<float>& v, int64_t row, int64_t size) {
  return {v.begin() + row * size, v.begin() + (row + 1) * size};
}

}  // namespace moectl::test

#define MOECTL_KERNEL_SUITE(Suite)                                                      \
  class Suite : public KernelTest {};                                                   \
  INSTANTIATE_TEST_SUITE_P(Paths, Suite, testing::Values("avx512", "portable", "cuda"), \
                           [](const auto& path) { return path.param; })
