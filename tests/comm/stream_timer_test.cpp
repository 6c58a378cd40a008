// StreamTimer with a clock that only operations advance: every sum is known.
#include "core/comm/stream_timer.h"

#include <gtest/gtest.h>

#include "kernels/cpu_device.h"

namespace moectl {
namespace {

class FakeClock final : public LinkBench {
 public:
  std::string device_name() const override { return "none"; }
  double clock_step_seconds() const override { return 1e-9; }
  std::vector<int> num_blocks() const override { return {1}; }
  bool has_copy_engine() const override { return false; }
  void stamp(View<int64_t> log, Stream) override { log(1 + log(0)++) = now_ns; }
  void copy(const LinkCopyArgs&, Stream) override {}
  void ping_pong(const PingPongArgs&, Stream) override {}

  int64_t now_ns = 1'000'000'000'000;
};

class StreamTimerTest : public testing::Test {
 protected:
  CpuDevice device_;
  FakeClock clock_;
  const std::unique_ptr<Communicator> comm_ = std::move(make_local_communicators(1).front());
};

void expect_near(const Seconds& got, const std::vector<double>& expected_ns) {
  ASSERT_EQ(got.size(), expected_ns.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected_ns[i] * 1e-9, 1e-12) << i;
}

TEST_F(StreamTimerTest, AddsUpTheRoundsOfEachOperation) {
  StreamTimer timer(device_, *comm_, clock_, {.iterations = 4, .seconds = 60});
  int64_t calls = 0;
  // Two operations in turn, three rounds: 1, 2, 3 ns and 100, 200, 300 ns, and 7 ns more from call to call.
  const auto repetition = [&] {
    for (int64_t round = 1; round <= 3; ++round) {
      timer.timed([&] { clock_.now_ns += round + 7 * calls; });
      clock_.now_ns += 50'000;  // between operations: not timed
      timer.timed([&] { clock_.now_ns += 100 * round; });
    }
    ++calls;
  };
  const std::vector<RankTimes> times = timer.measure(2, 6, repetition);
  ASSERT_EQ(times.size(), 2u);
  EXPECT_EQ(calls, 1 + 4 + 4) << "one to learn what it takes, then each way";
  expect_near(times[0].back_to_back, {6 + 21 * 1, 6 + 21 * 2, 6 + 21 * 3, 6 + 21 * 4});
  expect_near(times[0].after_pause, {6 + 21 * 5, 6 + 21 * 6, 6 + 21 * 7, 6 + 21 * 8});
  expect_near(times[1].back_to_back, {600, 600, 600, 600});
  expect_near(times[1].after_pause, {600, 600, 600, 600});
}

TEST_F(StreamTimerTest, TakesFewIterationsWhereTimeIsShort) {
  StreamTimer timer(device_, *comm_, clock_, {.iterations = 100, .seconds = 1e-12});
  const RankTimes times = timer.measure(1, 1, [&] { timer.timed([&] { clock_.now_ns += 5; }); }).front();
  expect_near(times.back_to_back, {5, 5, 5});
  expect_near(times.after_pause, {5, 5, 5});
}

TEST_F(StreamTimerTest, NoticesAStampThatIsMissing) {
  StreamTimer timer(device_, *comm_, clock_, {});
  timer.timed([] {});
  EXPECT_THROW(timer.take(1, 1, 2), Error);
  EXPECT_THROW(timer.measure(1, 2, [&] { timer.timed([] {}); }), Error);
}

}  // namespace
}  // namespace moectl
