// LinkBench of ranks on the CPU: stamps, copies, and signals that end with the peer's answer or without it.
#include "kernels/bench_link.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "kernels/ops.h"

namespace moectl {
namespace {

class BenchLinkTest : public testing::Test {
 protected:
  const std::unique_ptr<Ops> ops_ = make_ops({.device = "cpu"});
  const std::unique_ptr<LinkBench> link_ = make_link_bench(ops_->device());
};

TEST_F(BenchLinkTest, StampsAreInOrderAndBounded) {
  int64_t log[4] = {};
  for (int i = 0; i < 5; ++i) link_->stamp(View<int64_t>(log, {4}), {});
  EXPECT_EQ(log[0], 5) << "stamps without room are counted";
  EXPECT_GT(log[1], 0);
  EXPECT_LE(log[1], log[2]);
  EXPECT_LE(log[2], log[3]);
  EXPECT_GT(link_->clock_step_seconds(), 0);
  EXPECT_LT(link_->clock_step_seconds(), 1e-3);
}

TEST_F(BenchLinkTest, Copies) {
  std::vector<int> from(1000), to(1004, -1);
  for (size_t i = 0; i < from.size(); ++i) from[i] = int(i);
  link_->copy({.to = to.data(), .from = from.data(), .num_bytes = 4000, .num_blocks = link_->num_blocks().back()}, {});
  EXPECT_TRUE(std::equal(from.begin(), from.end(), to.begin()));
  EXPECT_EQ(to[1000], -1);
}

TEST_F(BenchLinkTest, PingPong) {
  PeerStatus status[2];
  uint32_t flags[2] = {0xfffffff0u, 0xfffffff0u};  // numbers may wrap
  const auto run = [&](int rank) {
    link_->ping_pong({.mine = &flags[rank],
                      .theirs = &flags[1 - rank],
                      .before = 0xfffffff0u,
                      .round_trips = 50,
                      .begins = rank == 0,
                      .peer = 1 - rank,
                      .wait = {.status = &status[rank], .timeout_ns = 60'000'000'000}},
                     {});
  };
  std::thread other([&] { run(1); });
  run(0);
  other.join();
  EXPECT_EQ(flags[0], 0xfffffff0u + 50);
  EXPECT_EQ(flags[1], 0xfffffff0u + 50);
  EXPECT_EQ(status[0].missing, 0);
  EXPECT_EQ(status[1].missing, 0);
}

TEST_F(BenchLinkTest, AWaitEndsWithoutItsPeer) {
  uint32_t mine = 0, theirs = 0;
  PeerStatus status;
  PingPongArgs args = {.mine = &mine, .theirs = &theirs, .round_trips = 3, .begins = true, .peer = 4};
  args.wait = {.status = &status, .timeout_ns = 1'000'000};
  link_->ping_pong(args, {});
  EXPECT_EQ(theirs, 1u);
  EXPECT_EQ(status.missing, 5);
  EXPECT_EQ(PeerOperation::of_code(status.operation).kind, PeerOperation::kBarrier);

  status = {.aborted = 1};
  args.wait.timeout_ns = 600'000'000'000;
  link_->ping_pong(args, {});  // returns at once
  EXPECT_EQ(status.missing, 0);
}

}  // namespace
}  // namespace moectl
