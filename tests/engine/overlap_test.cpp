// Two steps in flight, with a device that executes by itself (StreamOps): the host runs ahead of it as it does of a
// GPU. (On a real GPU tests/golden/cuda_test.cpp and tests/e2e/cuda_test.py do the same with everything that samples.)
#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "tests/engine/engine_client.h"
#include "tests/engine/streamed_engine.h"

namespace moectl::test {
namespace {

EngineConfig overlapped_config() {
  EngineConfig flags = demo_config();
  flags.max_num_seqs = 2;  // steps of one or two rows: these operations know no padding
  flags.max_num_batched_tokens = 16;
  flags.max_model_len = 256;
  flags.kv_cache_bytes = 0;
  return flags;
}

StreamedEngine overlapped_engine(std::function<void(int64_t)> before = {}) {
  return streamed_engine(overlapped_config(), {.hooks = {{.before = std::move(before)}}});
}

GenerateRequest greedy(size_t i, int max_tokens) {
  return {.prompt_ids = golden_cases()[i].prompt_ids, .sampling = {.temperature = 0.0f, .max_tokens = max_tokens}};
}

TEST(EngineOverlap, AnswersAreWhatOneStepAtATimeGives) {
  const StreamedEngine o = overlapped_engine();
  Client client(*o.engine);
  std::vector<size_t> sent;
  const size_t num = std::min<size_t>(golden_cases().size(), 12);
  for (size_t i = 0; i < num; ++i) sent.push_back(client.send(greedy(i, 100)));
  for (size_t i = 0; i < num; ++i) {
    const Answer a = client.wait(sent[i]);
    const std::vector<int32_t> expected = golden_cases()[i].output_ids;
    ASSERT_GE(a.ids.size(), std::min<size_t>(expected.size(), 2)) << a.error;
    EXPECT_TRUE(
        std::equal(expected.begin(), expected.begin() + long(std::min(expected.size(), a.ids.size())), a.ids.begin()))
        << "case " << i << ": " << ::testing::PrintToString(a.ids);
    EXPECT_EQ(a.num_outputs_after_end, 0);
  }
  EXPECT_GT(o.ops[0]->num_fed_back(), 100) << "most tokens are fed back before the host knows them";
  const EngineStats s = idle_stats(*o.engine);
  EXPECT_EQ(s.kv_pages_used, 0);
  EXPECT_GT(s.idle_seconds_total, 0);
}

// A rank's mirror lags one token behind what the device samples: penalties count that token on the device.
TEST(EngineOverlap, PenaltiesCountTheTokenInFlight) {
  const auto requests = [] {
    std::vector<GenerateRequest> all;
    for (size_t i = 0; i < 6; ++i) {
      GenerateRequest r = greedy(i, 40);
      r.sampling.ignore_eos = i % 2;
      r.sampling.repetition_penalty = i % 3 == 0 ? 1.3f : 1.0f;
      r.sampling.frequency_penalty = i % 3 != 0 ? 0.6f : 0.0f;
      r.sampling.presence_penalty = i % 3 == 2 ? 0.8f : 0.0f;
      r.sampling.logit_bias = {{7, 1.5f}};
      r.sampling.min_tokens = 30;
      all.push_back(std::move(r));
    }
    return all;
  };
  const auto one_step_at_a_time = Engine::create(overlapped_config());
  const StreamedEngine o = overlapped_engine();
  Client expected(*one_step_at_a_time), client(*o.engine);
  std::vector<size_t> sent;
  for (GenerateRequest& r : requests()) sent.push_back(client.send(std::move(r)));
  size_t i = 0;
  for (GenerateRequest& r : requests()) {
    const std::vector<int32_t> ids = expected.ask(std::move(r)).ids;
    EXPECT_GE(ids.size(), 30u);
    EXPECT_EQ(client.wait(sent[i]).ids, ids) << i;
    ++i;
  }
  EXPECT_GT(o.ops[0]->num_pending(), 100);
}

TEST(EngineOverlap, ADeviceThatFailsEndsTheInstance) {
  for (int64_t number : {5, 400, 2000}) {
    std::atomic<bool> both_sent{false};
    const StreamedEngine o = overlapped_engine([&, number](int64_t i) {
      if (i < number) return;
      both_sent.wait(false);
      throw std::runtime_error("the device fell off the bus");
    });
    Client client(*o.engine);
    GenerateRequest r = greedy(0, 200);
    r.sampling.ignore_eos = true;
    const size_t first = client.send(r), second = client.send(r);
    both_sent = true;
    both_sent.notify_all();
    for (size_t i : {first, second}) {
      const Answer a = client.wait(i);
      EXPECT_EQ(a.finish, FinishReason::kError);
      EXPECT_NE(a.error.find("off the bus"), std::string::npos) << a.error;
      EXPECT_EQ(a.num_outputs_after_end, 0);
    }
    EXPECT_TRUE(o.engine->stats().failed);
  }
}

// The host copy is ordered behind its step and ahead of the next one, which the device's thread may already run: layers
// that a step has not reached would have fewer tokens.
TEST(EngineOverlap, TheExpertLoadIsOfTheEndOfAStep) {
  const StreamedEngine o = overlapped_engine();
  Client client(*o.engine);
  GenerateRequest r = greedy(0, 200);
  r.sampling.ignore_eos = true;
  const size_t first = client.send(r), second = client.send(r);
  for (size_t n = 1; n < 180; n += 5) {
    client.wait_for_tokens(first, n);
    const auto promise = std::make_shared<std::promise<ExpertLoad>>();
    o.engine->read_expert_load([promise](const ExpertLoad& load) { promise->set_value(load); });
    const ExpertLoad load = promise->get_future().get();
    ASSERT_EQ(load.layers.size(), 6u);
    const int64_t num_tokens = load.layers[0].num_tokens();
    EXPECT_GT(num_tokens, 0);
    for (size_t layer = 1; layer < 5; ++layer) EXPECT_EQ(load.layers[layer].num_tokens(), num_tokens);
  }
  EXPECT_EQ(client.wait(first).ids, client.wait(second).ids);
}

TEST(EngineOverlap, RequestsComeAndGoAtAnyTime) {
  const StreamedEngine o = overlapped_engine();
  Client client(*o.engine);
  const auto expected = client.ask(greedy(0, 20)).ids;
  for (int i = 0; i < 30; ++i) {
    GenerateRequest r = greedy(size_t(i) % golden_cases().size(), 200);
    r.sampling.ignore_eos = true;
    const size_t cancelled = client.send(r), kept = client.send(greedy(0, 20));
    if (i % 3) client.wait_for_tokens(cancelled, size_t(i % 7));
    o.engine->cancel(client.handle(cancelled));
    EXPECT_EQ(client.wait(kept).ids, expected) << i;
    EXPECT_NE(client.wait(cancelled).finish, FinishReason::kError);
  }
  EXPECT_EQ(idle_stats(*o.engine).kv_pages_used, 0);
}

// The destructor must not leave a step behind that reads what it frees.
TEST(EngineOverlap, AnEngineMayEndWithStepsInFlight) {
  for (int i = 0; i < 5; ++i) {
    StreamedEngine o = overlapped_engine();
    Client client(*o.engine);
    GenerateRequest r = greedy(0, 200);
    r.sampling.ignore_eos = true;
    const size_t sent = client.send(r);
    client.wait_for_tokens(sent, 3 * size_t(i));
    o.engine.reset();
    EXPECT_EQ(client.wait(sent).finish, FinishReason::kCancelled);
  }
}

}  // namespace
}  // namespace moectl::test
