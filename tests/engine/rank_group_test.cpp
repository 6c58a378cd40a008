#include "core/engine/rank_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <mutex>

#include "core/base/error.h"

namespace moectl {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

// A rank that ends steps when the test says so, or never.
struct FakeRank final : RankHandle {
  struct State {  // outlives the rank
    std::deque<RankStepResult> results;
    int num_steps_of_one_layer = 0;  // waits that see a layer end
    bool stops = true, asked_to_stop = false, destroyed = false;
    std::string aborted;
    FakeRank* rank = nullptr;
  };
  FakeRank(State& s, std::string name) : state(s), name_(std::move(name)) { s.rank = this; }
  ~FakeRank() override { state.destroyed = true; }

  std::optional<RankFailure> wait_until_built() override { return std::nullopt; }
  void launch(RankStepPlan) override {}
  std::optional<RankStepResult> wait(milliseconds limit) override {
    if (state.results.empty()) {
      pass(limit);
      if (state.num_steps_of_one_layer > 0) --state.num_steps_of_one_layer, ++num_layers_;
      return std::nullopt;
    }
    RankStepResult result = std::move(state.results.front());
    state.results.pop_front();
    return result;
  }
  void stop() override { state.asked_to_stop = true; }
  bool wait_until_stopped(milliseconds limit) override {
    if (!state.stops) pass(limit);
    return state.stops;
  }
  KvPool kv_pool() const override { return {}; }
  void abort(const std::string& reason) override { state.aborted = reason; }
  std::string name() const override { return name_; }
  int64_t num_layers_done() const override { return num_layers_; }
  std::string activity() const override { return "3 of 7 layers issued"; }

  State& state;

 private:
  static void pass(milliseconds time) {
    std::mutex mutex;
    std::unique_lock lock(mutex);
    std::condition_variable never;
    never.wait_for(lock, time, [] { return false; });
  }
  const std::string name_;
  int64_t num_layers_ = 0;
};

struct Group {
  explicit Group(int size, milliseconds step_timeout = milliseconds(40)) {
    std::vector<std::unique_ptr<RankHandle>> ranks;
    for (int r = 0; r < size; ++r) {
      states.push_back(std::make_unique<FakeRank::State>());
      ranks.push_back(std::make_unique<FakeRank>(*states.back(), fmt::format("rank {} (GPU {})", r, 7 - r)));
    }
    group = std::make_unique<RankGroup>(std::move(ranks), size, step_timeout);
  }
  // Past the first steps.
  void warm_up() {
    for (int i = 0; i < 10; ++i) {
      for (auto& state : states) state->results.emplace_back();
      group->wait();
    }
  }
  std::string failure() {
    try {
      group->wait();
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kUnavailable);
      return e.what();
    }
    return "no failure";
  }
  std::vector<std::unique_ptr<FakeRank::State>> states;
  std::unique_ptr<RankGroup> group;
};

TEST(RankGroup, AStepHasTheResultsOfAllRanksInOrder) {
  Group g(3);
  for (size_t r = 0; r < 3; ++r) g.states[r]->results.push_back({.busy_seconds = double(r)});
  const std::vector<RankStepResult> results = g.group->wait();
  ASSERT_EQ(results.size(), 3u);
  for (size_t r = 0; r < 3; ++r) EXPECT_EQ(results[r].busy_seconds, double(r));
}

TEST(RankGroup, TheCauseIsReportedRatherThanItsPeers) {
  Group g(3);
  g.states[0]->results.push_back({.failure = RankFailure{.what = "rank 2 is gone", .by_peer = true}});
  g.states[1]->results.emplace_back();
  g.states[2]->results.push_back({.failure = RankFailure{.what = "rank 2: on fire"}});
  EXPECT_EQ(g.failure(), "rank 2: on fire");
}

TEST(RankGroup, AFailureDoesNotWaitForARankThatHangs) {
  Group g(3, milliseconds(200));
  g.states[1]->results.push_back({.failure = RankFailure{.what = "rank 1 waited 15 s for rank 0", .by_peer = true}});
  g.states[2]->results.emplace_back();
  EXPECT_EQ(g.failure(), "rank 1 waited 15 s for rank 0; rank 0 (GPU 7) did not end its step: 3 of 7 layers issued");
}

TEST(RankGroup, TheWatchdogNamesEveryRankThatDidNotEndItsStep) {
  Group g(3);
  g.warm_up();
  g.states[1]->results.emplace_back();
  EXPECT_EQ(g.failure(),
            "rank 0 (GPU 7) did not end its step, no progress within 0.04 s: 3 of 7 layers issued; "
            "rank 2 (GPU 5) did not end its step, no progress within 0.04 s: 3 of 7 layers issued");
  EXPECT_THAT(g.states[0]->aborted, HasSubstr("rank 2 (GPU 5) did not end its step")) << "waits of the others end";
}

TEST(RankGroup, ProgressOfAnyRankKeepsAStepAlive) {
  Group g(2);
  g.warm_up();
  g.states[0]->results.emplace_back();
  g.states[1]->num_steps_of_one_layer = 100;  // for five times the limit
  EXPECT_THAT(g.failure(), HasSubstr("rank 1 (GPU 6) did not end its step"));
  EXPECT_EQ(g.states[1]->num_steps_of_one_layer, 0);
}

TEST(RankGroup, RanksThatHangAreLeftAloneWithAllMemory) {
  Group g(3);
  g.warm_up();
  g.states[1]->stops = false;
  g.failure();
  g.group.reset();
  for (const auto& state : g.states) {
    EXPECT_TRUE(state->asked_to_stop);
    ASSERT_FALSE(state->destroyed) << "what a peer may access was freed";
    delete state->rank;
  }
}

TEST(RankGroup, RanksThatStopAreFreed) {
  Group g(3);
  g.warm_up();
  g.failure();
  g.group.reset();
  for (const auto& state : g.states) EXPECT_TRUE(state->destroyed);
}

}  // namespace
}  // namespace moectl
