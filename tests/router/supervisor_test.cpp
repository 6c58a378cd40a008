// The supervisor's decisions: order of the start, back-off, give up on a failed first start, orderly and forced end.
// Time is a number here.
#include "router/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moectl::router {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr Supervisor::TimePoint kStart{seconds(1000)};
constexpr int kPrefill = 0, kDecode = 1, kRouter = 2;

Supervisor make() {
  SupervisedInstance prefill, decode, router;
  prefill.id = "prefill/0";
  decode.id = "decode/0";
  router.id = "router/0";
  router.stage = 1;
  return Supervisor({prefill, decode, router}, {});
}

// All three ready at kStart.
Supervisor running() {
  Supervisor supervisor = make();
  supervisor.decide(kStart);
  supervisor.ready(kPrefill, kStart);
  supervisor.ready(kDecode, kStart);
  supervisor.decide(kStart);
  supervisor.ready(kRouter, kStart);
  return supervisor;
}

TEST(Supervisor, WorkersTogetherThenTheRouter) {
  Supervisor supervisor = make();
  EXPECT_THAT(supervisor.decide(kStart), ElementsAre(Action{Do::kStart, kPrefill}, Action{Do::kStart, kDecode}));
  EXPECT_THAT(supervisor.decide(kStart), IsEmpty());
  supervisor.ready(kDecode, kStart);
  EXPECT_THAT(supervisor.decide(kStart), IsEmpty());
  supervisor.ready(kPrefill, kStart);
  EXPECT_THAT(supervisor.decide(kStart), ElementsAre(Action{Do::kStart, kRouter}));
  EXPECT_FALSE(supervisor.all_ready());
  supervisor.ready(kRouter, kStart);
  EXPECT_TRUE(supervisor.all_ready());
  EXPECT_TRUE(supervisor.was_complete());
  EXPECT_EQ(supervisor.next_wakeup(), std::nullopt);
}

TEST(Supervisor, AFailedFirstStartEndsEverything) {
  Supervisor supervisor = make();
  supervisor.decide(kStart);
  supervisor.exited(kPrefill, kStart);
  EXPECT_EQ(supervisor.failed(), kPrefill);
  EXPECT_THAT(supervisor.decide(kStart), ElementsAre(Action{Do::kTerminate, kDecode}));
  EXPECT_FALSE(supervisor.ended());
  supervisor.exited(kDecode, kStart);
  EXPECT_TRUE(supervisor.ended());
  EXPECT_EQ(supervisor.failed(), kPrefill) << "the first cause stays";
}

TEST(Supervisor, RestartsWithGrowingDelays) {
  Supervisor supervisor = running();
  Supervisor::TimePoint now = kStart + seconds(1);
  for (const int delay : {500, 1000, 2000, 4000, 8000, 16000, 30000, 30000}) {
    supervisor.exited(kDecode, now);
    EXPECT_EQ(supervisor.instances()[kDecode].state, InstanceState::kBackoff);
    EXPECT_FALSE(supervisor.all_ready());
    EXPECT_EQ(supervisor.next_wakeup(), now + milliseconds(delay));
    EXPECT_THAT(supervisor.decide(now + milliseconds(delay - 1)), IsEmpty());
    now += milliseconds(delay);
    EXPECT_THAT(supervisor.decide(now), ElementsAre(Action{Do::kStart, kDecode}));
    now += milliseconds(10);
  }
  EXPECT_EQ(supervisor.instances()[kDecode].restarts, 8);
  EXPECT_EQ(supervisor.failed(), std::nullopt);
  supervisor.ready(kDecode, now);
  EXPECT_TRUE(supervisor.all_ready());
}

TEST(Supervisor, AStableInstanceIsForgiven) {
  Supervisor supervisor = running();
  supervisor.exited(kDecode, kStart + seconds(59));  // ready for less than a minute
  supervisor.decide(kStart + seconds(60));
  supervisor.ready(kDecode, kStart + seconds(60));
  supervisor.exited(kDecode, kStart + seconds(119));
  EXPECT_EQ(supervisor.next_wakeup(), kStart + seconds(120));
  supervisor.decide(kStart + seconds(120));
  supervisor.ready(kDecode, kStart + seconds(120));
  supervisor.exited(kDecode, kStart + seconds(180));
  EXPECT_EQ(supervisor.next_wakeup(), kStart + seconds(180) + milliseconds(500));
}

TEST(Supervisor, ARestartThatHangsIsKilledAndTriedAgain) {
  Supervisor supervisor = running();
  supervisor.exited(kRouter, kStart);
  const auto restarted = kStart + milliseconds(500);
  supervisor.decide(restarted);
  EXPECT_EQ(supervisor.next_wakeup(), restarted + seconds(600));
  EXPECT_THAT(supervisor.decide(restarted + seconds(599)), IsEmpty());
  EXPECT_THAT(supervisor.decide(restarted + seconds(600)), ElementsAre(Action{Do::kKill, kRouter}));
  EXPECT_THAT(supervisor.decide(restarted + seconds(601)), IsEmpty());
  EXPECT_EQ(supervisor.next_wakeup(), std::nullopt);
  supervisor.exited(kRouter, restarted + seconds(601));
  EXPECT_THAT(supervisor.decide(restarted + seconds(602)), ElementsAre(Action{Do::kStart, kRouter}));
}

TEST(Supervisor, AnUnhealthyInstanceIsKilledAndStartedAgain) {
  Supervisor supervisor = running();
  const auto at = [](int s) { return kStart + seconds(s); };
  for (int s = 1; s <= 30; ++s) {
    supervisor.probed(kDecode, false, at(s));
    EXPECT_EQ(supervisor.instances()[kDecode].state, InstanceState::kUnhealthy);
    EXPECT_FALSE(supervisor.all_ready());
    EXPECT_THAT(supervisor.decide(at(s)), IsEmpty()) << s;
  }
  supervisor.probed(kDecode, false, at(31));
  EXPECT_THAT(supervisor.decide(at(31)), ElementsAre(Action{Do::kKill, kDecode}));
  supervisor.probed(kDecode, true, at(32));
  EXPECT_EQ(supervisor.instances()[kDecode].state, InstanceState::kUnhealthy) << "its exit follows";
  EXPECT_THAT(supervisor.decide(at(32)), IsEmpty());
  supervisor.exited(kDecode, at(32));
  EXPECT_EQ(supervisor.instances()[kDecode].state, InstanceState::kBackoff);
  EXPECT_THAT(supervisor.decide(at(33)), ElementsAre(Action{Do::kStart, kDecode}));
  EXPECT_EQ(supervisor.instances()[kDecode].restarts, 1);
  supervisor.probed(kDecode, false, at(33));
  EXPECT_EQ(supervisor.instances()[kDecode].state, InstanceState::kStarting) << "it has not been ready";
}

TEST(Supervisor, AnInstanceThatRecoversLives) {
  Supervisor supervisor = running();
  for (int s = 1; s <= 100; ++s) {
    supervisor.probed(kDecode, s % 30 == 0, kStart + seconds(s));
    EXPECT_THAT(supervisor.decide(kStart + seconds(s)), IsEmpty()) << s;
  }
  supervisor.probed(kDecode, true, kStart + seconds(101));
  EXPECT_TRUE(supervisor.all_ready());
}

// The supervisor was stopped, or the machine slept: nobody saw that the instance was unhealthy all the time.
TEST(Supervisor, AGapBetweenProbesProvesNothing) {
  Supervisor supervisor = running();
  supervisor.probed(kDecode, false, kStart + seconds(1));
  EXPECT_THAT(supervisor.decide(kStart + seconds(100)), IsEmpty()) << "no probe, no evidence";
  supervisor.probed(kDecode, false, kStart + seconds(100));
  EXPECT_THAT(supervisor.decide(kStart + seconds(100)), IsEmpty());
  for (int s = 101; s <= 130; ++s) supervisor.probed(kDecode, false, kStart + seconds(s));
  EXPECT_THAT(supervisor.decide(kStart + seconds(130)), ElementsAre(Action{Do::kKill, kDecode}));
}

TEST(Supervisor, EndsAnUnhealthyInstanceInOrder) {
  Supervisor supervisor = running();
  supervisor.probed(kDecode, false, kStart);
  supervisor.stop(kStart);
  EXPECT_THAT(supervisor.decide(kStart), ElementsAre(Action{Do::kTerminate, kPrefill}, Action{Do::kTerminate, kDecode},
                                                     Action{Do::kTerminate, kRouter}));
  supervisor.probed(kDecode, true, kStart);
  EXPECT_EQ(supervisor.instances()[kDecode].state, InstanceState::kStopping);
}

TEST(Supervisor, EndsInOrderThenKills) {
  Supervisor supervisor = running();
  supervisor.exited(kPrefill, kStart);  // in back-off: nothing to end
  supervisor.stop(kStart);
  EXPECT_THAT(supervisor.decide(kStart), ElementsAre(Action{Do::kTerminate, kDecode}, Action{Do::kTerminate, kRouter}));
  supervisor.exited(kRouter, kStart + seconds(1));
  EXPECT_EQ(supervisor.next_wakeup(), kStart + seconds(30));
  EXPECT_THAT(supervisor.decide(kStart + seconds(29)), IsEmpty());
  EXPECT_THAT(supervisor.decide(kStart + seconds(30)), ElementsAre(Action{Do::kKill, kDecode}));
  EXPECT_THAT(supervisor.decide(kStart + seconds(31)), IsEmpty());
  EXPECT_FALSE(supervisor.ended());
  supervisor.exited(kDecode, kStart + seconds(31));
  EXPECT_TRUE(supervisor.ended());
  EXPECT_THAT(supervisor.decide(kStart + seconds(100)), IsEmpty()) << "nothing is started again";
}

TEST(Supervisor, KillEndsAtOnceWhatIsLeft) {
  Supervisor supervisor = running();
  supervisor.stop(kStart);
  supervisor.decide(kStart);
  supervisor.exited(kRouter, kStart);
  supervisor.kill();
  EXPECT_THAT(supervisor.decide(kStart), ElementsAre(Action{Do::kKill, kPrefill}, Action{Do::kKill, kDecode}));
}

TEST(Supervisor, ReadyAfterStopIsNotReady) {
  Supervisor supervisor = make();
  supervisor.decide(kStart);
  supervisor.stop(kStart);
  supervisor.decide(kStart);
  supervisor.ready(kDecode, kStart);
  EXPECT_EQ(supervisor.instances()[kDecode].state, InstanceState::kStopping);
}

}  // namespace
}  // namespace moectl::router
