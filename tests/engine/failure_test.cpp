// What the engine does when something happens amid a step: a rank throws, a row is not a number, the step hangs, its
// request is cancelled.
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <thread>

#include "core/base/error.h"
#include "tests/engine/engine_client.h"
#include "tests/harness/tampered_engine.h"

namespace moectl::test {
namespace {

// The demo model over several ranks, the last of which is tampered with.
std::unique_ptr<Engine> tampered_engine(const Parallelism& parallelism, TamperedOps::Tamper tamper,
                                        int max_num_batched_tokens = 512, const LocalGroupOptions& group = {}) {
  EngineConfig flags = demo_config();
  flags.parallelism = parallelism;
  flags.max_num_batched_tokens = max_num_batched_tokens;
  return test::tampered_engine(flags, std::move(tamper), group);
}

bool is_head(const LinearArgs& a, int tp_size = 1) {
  return a.weight.n == 4096 / tp_size;
}

GenerateRequest endless() {
  return {.prompt_ids = golden_cases()[0].prompt_ids,
          .sampling = {.temperature = 0.0f, .max_tokens = 500, .ignore_eos = true}};
}

TEST(EngineFailure, ARankThatThrowsEndsTheInstance) {
  for (const Parallelism& parallelism :
       {expert_parallel(1), expert_parallel(2), expert_parallel(4), Parallelism{.tp_size = 2, .ep_size = 2},
        Parallelism{.tp_size = 2, .dp_size = 2, .ep_size = 4}, Parallelism{.tp_size = 2, .dp_size = 2}}) {
    SCOPED_TRACE(fmt::format("TP {} DP {} EP {}", parallelism.tp_size, parallelism.dp_size, parallelism.ep_size));
    Gate gate;
    std::atomic<int> steps{0};
    auto engine = tampered_engine(parallelism, [&](const LinearArgs& a) {
      if (!is_head(a, parallelism.tp_size)) return;
      gate.arrive(++steps);
      if (steps == 6) throw std::runtime_error("the rank is on fire");
    });
    Client client(*engine);
    std::vector<size_t> sent;
    for (int i = 0; i < 5; ++i) sent.push_back(client.send(endless()));
    gate.open(Gate::kAll);
    for (size_t i : sent) {
      const Answer a = client.wait(i);
      EXPECT_EQ(a.finish, FinishReason::kError);
      EXPECT_NE(a.error.find("on fire"), std::string::npos) << a.error << ": the cause, not a peer's complaint";
      EXPECT_LE(a.ids.size(), 6u);
      EXPECT_EQ(a.num_outputs_after_end, 0);
    }
    const EngineStats s = engine->stats();
    EXPECT_TRUE(s.failed);
    EXPECT_NE(s.failure.find("on fire"), std::string::npos) << s.failure;
    try {
      client.send(endless());
      ADD_FAILURE() << "a failed engine took a request";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kUnavailable) << e.what();
    }
  }
}

// A TP rank that stops within a step: its peers' wait ends at the deadline, and the message names it as the instance
// numbers ranks.
TEST(EngineFailure, ATpRankThatStopsIsNamed) {
  Gate gate;
  std::atomic<int> steps{0};
  auto engine = tampered_engine({.tp_size = 2, .dp_size = 2},
                                [&](const LinearArgs& a) {
                                  if (is_head(a, 2) && a.out.dim(0) > 0) gate.arrive(++steps);
                                },
                                512, {.deadline = std::chrono::seconds(2)});
  Client client(*engine);
  const size_t first = client.send(endless()), second = client.send(endless());
  gate.wait_until_arrived(1);
  std::atomic<bool> ended{false};
  // The rank goes on when its peer has given up: until then the engine waits for it.
  std::thread opener([&] {
    while (engine->stats().seconds_since_progress < 3.0 && !ended) std::this_thread::yield();
    gate.open(Gate::kAll);
  });
  const Answer a = client.wait(first), b = client.wait(second);
  ended = true;
  opener.join();
  for (const Answer& answer : {a, b}) {
    EXPECT_EQ(answer.finish, FinishReason::kError);
    EXPECT_NE(answer.error.find("rank 2 waited 2 s in all_gather for rank 3"), std::string::npos) << answer.error;
  }
}

TEST(EngineFailure, ARowThatIsNotANumberEndsItsRequestAlone) {
  std::atomic<int> steps{0};
  auto engine = tampered_engine({}, [&](const LinearArgs& a) {
    if (is_head(a) && ++steps == 4 && a.out.dim(0) > 0) a.out(0, 17) = std::numeric_limits<float>::quiet_NaN();
  });
  Client client(*engine);
  const Answer broken = client.ask(endless());
  EXPECT_EQ(broken.finish, FinishReason::kError);
  EXPECT_EQ(broken.ids.size(), 3u);
  EXPECT_NE(broken.error.find("NaN"), std::string::npos) << broken.error;
  GenerateRequest r = endless();
  r.sampling.ignore_eos = false;
  EXPECT_EQ(client.ask(r).ids, golden_cases()[0].output_ids);
  EXPECT_FALSE(engine->stats().failed);
}

// With steps of 16 tokens a prompt of 200 takes 13: the third is amid the prompt, the sixteenth decodes.
TEST(EngineCancel, TheStepInProgressIsTheLast) {
  for (const int at_step : {1, 3, 16}) {
    Gate gate;
    std::atomic<int> steps{0};
    auto engine = tampered_engine(
        {},
        [&](const LinearArgs& a) {
          if (is_head(a)) gate.arrive(++steps);
        },
        16);
    Client client(*engine);
    GenerateRequest r = endless();
    r.prompt_ids = long_prompt(200);
    gate.open(at_step - 1);
    const size_t sent = client.send(r);
    gate.wait_until_arrived(at_step);
    engine->cancel(client.handle(sent));
    gate.open(Gate::kAll);
    EXPECT_EQ(client.wait(sent).finish, FinishReason::kCancelled);
    EXPECT_EQ(idle_stats(*engine).num_steps_total, at_step);
    EXPECT_EQ(steps, at_step);
    EXPECT_EQ(client.wait(sent).ids.size(), size_t(std::max(0, at_step - 12)));
  }
}

TEST(EngineFailure, AHangingStepShowsInTheStatistics) {
  Gate gate;
  std::atomic<int> steps{0};
  auto engine = tampered_engine({}, [&](const LinearArgs& a) {
    if (is_head(a)) gate.arrive(++steps);
  });
  EXPECT_EQ(engine->stats().seconds_since_progress, 0.0) << "idle";
  Client client(*engine);
  GenerateRequest r = endless();
  r.sampling.max_tokens = 3;
  const size_t sent = client.send(r);
  gate.wait_until_arrived(1);
  double before = engine->stats().seconds_since_progress;
  for (int i = 0; i < 3; ++i) {
    while (engine->stats().seconds_since_progress <= before) std::this_thread::yield();
    before = engine->stats().seconds_since_progress;
  }
  EXPECT_GT(before, 0.0);
  gate.open(Gate::kAll);
  EXPECT_EQ(client.wait(sent).ids.size(), 3u);
  while (engine->stats().seconds_since_progress != 0.0) std::this_thread::yield();  // ends: idle again
}

}  // namespace
}  // namespace moectl::test
