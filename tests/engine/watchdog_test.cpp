// Faults of ranks whose devices execute by themselves: steps that never end, that stop, that fail; and what must not be
// taken for one. Ranks wait for each other on their devices, as on GPUs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>

#include "core/base/error.h"
#include "tests/engine/engine_client.h"
#include "tests/engine/streamed_engine.h"

namespace moectl::test {
namespace {

using std::chrono::milliseconds, std::chrono::seconds;
using Clock = std::chrono::steady_clock;
using testing::ContainsRegex, testing::HasSubstr, testing::Not, testing::StartsWith;

// More steps than the first ones, which may take longer (kFirstSteps).
constexpr size_t kWarmTokens = 20;

EngineConfig flags(int num_ranks, int max_num_batched_tokens = 16) {
  EngineConfig flags = demo_config();
  flags.parallelism = expert_parallel(num_ranks);
  flags.max_num_seqs = 2 * num_ranks;  // steps of one or two rows: these operations know no padding
  flags.max_num_batched_tokens = max_num_batched_tokens;
  flags.max_model_len = 512;
  flags.kv_cache_bytes = 0;
  return flags;
}

GenerateRequest endless() {
  return {.prompt_ids = golden_cases()[0].prompt_ids,
          .sampling = {.temperature = 0.0f, .max_tokens = 450, .ignore_eos = true}};
}

// Holds what arrives while it is shut, at most for a minute.
class Barrier {
 public:
  ~Barrier() { open(); }
  void shut() { set(true); }
  void open() { set(false); }
  void pass() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, seconds(60), [&] { return !shut_; });
  }

 private:
  void set(bool shut) {
    std::lock_guard lock(mutex_);
    shut_ = shut;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool shut_ = false;
};

// Takes its time on the calling thread.
void spend(milliseconds time) {
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable never;
  never.wait_for(lock, time, [] { return false; });
}

struct Running {
  std::unique_ptr<Client> client;  // outlives the engine
  StreamedEngine parts;
  std::vector<size_t> sent;
  Engine& engine() { return *parts.engine; }
};

// An engine amid answers, two requests per rank.
Running running(int num_ranks, StreamedEngineOptions options) {
  Running r;
  r.parts = streamed_engine(flags(num_ranks), std::move(options));
  r.client = std::make_unique<Client>(*r.parts.engine);
  for (int i = 0; i < 2 * num_ranks; ++i) r.sent.push_back(r.client->send(endless()));
  for (size_t i : r.sent) r.client->wait_for_tokens(i, kWarmTokens);
  return r;
}

// Every request gets its error, and the engine takes no more; the failure.
std::string failure_of(Running& r) {
  for (size_t i : r.sent) {
    const Answer a = r.client->wait(i);
    EXPECT_EQ(a.finish, FinishReason::kError);
    EXPECT_EQ(a.error, r.engine().stats().failure);
    EXPECT_EQ(a.num_outputs_after_end, 0);
  }
  EXPECT_TRUE(r.engine().stats().failed);
  EXPECT_THROW(r.client->send(endless()), Error);
  const auto promise = std::make_shared<std::promise<size_t>>();
  r.engine().read_expert_load([promise](const ExpertLoad& load) { promise->set_value(load.layers.size()); });
  EXPECT_EQ(promise->get_future().get(), 0u) << "a failed engine still answers who asks";
  return r.engine().stats().failure;
}

TEST(EngineWatchdog, AStepThatNeverEndsFailsTheEngine) {
  Barrier barrier;
  auto r = running(1, {.hooks = {{.before = [&](int64_t) { barrier.pass(); }}}, .step_timeout = milliseconds(400)});
  barrier.shut();
  const auto begin = Clock::now();
  EXPECT_THAT(failure_of(r), ContainsRegex("^rank 0 did not end its step, no progress within 0\\.4 s: .* issued$"));
  EXPECT_LT(Clock::now() - begin, seconds(20)) << "it did not wait for the rank";
  barrier.open();
}

TEST(EngineWatchdog, AThreadThatHangsInItsDriverFailsTheEngine) {
  Barrier barrier;
  auto r = running(1, {.hooks = {{.issue = [&] { barrier.pass(); }}}, .step_timeout = milliseconds(400)});
  barrier.shut();
  EXPECT_THAT(failure_of(r), ContainsRegex("no progress within 0\\.4 s: [0-9]+ of [0-9]+ layers issued$"));
  barrier.open();
}

TEST(EngineWatchdog, APeerNamesTheRankWhoseStreamStops) {
  auto r = running(2, {.peer_timeout = milliseconds(300)});
  r.parts.ops[1]->drop_operations();
  EXPECT_EQ(failure_of(r), "rank 0 waited 0.3 s for rank 1 in a barrier");
}

TEST(EngineWatchdog, TheEngineFailsWithItsPeerWhileARankHangs) {
  Barrier barrier;
  auto r = running(2, {.hooks = {{}, {.before = [&](int64_t) { barrier.pass(); }}},
                       .peer_timeout = milliseconds(300),
                       .step_timeout = seconds(10)});
  barrier.shut();
  const auto begin = Clock::now();
  EXPECT_THAT(failure_of(r), ContainsRegex("^rank 0 waited 0\\.3 s for rank 1 in a barrier; rank 1 did not end its "
                                           "step: .* issued; its last wait for peers: a barrier$"));
  EXPECT_LT(Clock::now() - begin, seconds(8)) << "before the watchdog";
  barrier.open();
}

// Waits of the peers end at once, with the abort.
TEST(EngineWatchdog, AFailureOfADeviceOrACallEndsThePeersWaits) {
  for (const bool on_device : {true, false}) {
    std::atomic<bool> breaks{false};
    const auto fail = [&] {
      if (breaks) throw std::runtime_error("the device fell off the bus");
    };
    StreamOps::Hooks hooks;
    if (on_device)
      hooks.before = [&](int64_t) { fail(); };
    else
      hooks.issue = fail;
    auto r = running(2, {.hooks = {{}, hooks}, .peer_timeout = seconds(60)});
    const auto begin = Clock::now();
    breaks = true;
    EXPECT_EQ(failure_of(r), "rank 1: the device fell off the bus; its last wait for peers: a barrier");
    EXPECT_LT(Clock::now() - begin, seconds(20)) << on_device;
  }
}

// Each layer ends in time, the step does not.
TEST(EngineWatchdog, ALongStepThatMakesProgressGoesOn) {
  std::atomic<bool> slow{false};
  const auto before = [&](int64_t) {
    if (slow) spend(milliseconds(20));
  };
  const auto s = streamed_engine(flags(1, 512), {.hooks = {{.before = before}}, .step_timeout = milliseconds(1000)});
  Client client(*s.engine);
  GenerateRequest short_one = endless();
  short_one.sampling.max_tokens = int(kWarmTokens);
  EXPECT_EQ(client.ask(short_one).ids.size(), kWarmTokens);
  slow = true;
  const auto begin = Clock::now();
  GenerateRequest long_prompt_one = {.prompt_ids = long_prompt(300),
                                     .sampling = {.temperature = 0.0f, .max_tokens = 1}};
  const Answer a = client.ask(long_prompt_one);
  EXPECT_EQ(a.ids.size(), 1u) << a.error;
  EXPECT_GT(Clock::now() - begin, milliseconds(1500)) << "the step was too short to prove anything";
}

// Kernels may have to be loaded or compiled.
TEST(EngineWatchdog, TheFirstStepsMayTakeLonger) {
  const auto before = [](int64_t number) {
    if (number == 40) spend(milliseconds(1200));
  };
  const auto s = streamed_engine(flags(1), {.hooks = {{.before = before}}, .step_timeout = milliseconds(600)});
  Client client(*s.engine);
  GenerateRequest r = endless();
  r.sampling.max_tokens = 5;
  const auto begin = Clock::now();
  const Answer a = client.ask(r);
  EXPECT_EQ(a.ids.size(), 5u) << a.error;
  EXPECT_GT(Clock::now() - begin, milliseconds(1200));
}

// A rank fails half way through the issue of a step, and the devices are slow: what they have yet to execute writes to
// buffers of both.
TEST(EngineWatchdog, NoMemoryIsFreedBeforeAllDevicesAreDone) {
  for (const size_t failing : {0u, 1u}) {
    std::atomic<int64_t> num_pending{0}, num_freed{0}, num_freed_too_early{0};
    std::atomic<int> num_issued{0};
    std::atomic<bool> ending{false};
    std::vector<StreamOps::Hooks> hooks(2);
    for (size_t rank = 0; rank < 2; ++rank) {
      hooks[rank].issue = [&, rank] {
        if (rank == failing && ++num_issued == 60) throw std::runtime_error("a refused launch");
        ++num_pending;
      };
      hooks[rank].before = [](int64_t) { spend(milliseconds(5)); };
      hooks[rank].after = [&] { --num_pending; };
      hooks[rank].freed = [&] {
        num_freed += ending;
        num_freed_too_early += ending && num_pending > 0;
      };
    }
    auto s = streamed_engine(flags(2), {.hooks = hooks});
    Client client(*s.engine);
    const Answer a = client.ask(endless());
    EXPECT_THAT(a.error, HasSubstr("a refused launch"));
    EXPECT_GT(num_pending, 0) << "the devices were too fast to prove anything";
    ending = true;
    s.engine.reset();
    EXPECT_GT(num_freed, 20);
    EXPECT_EQ(num_freed_too_early, 0) << "rank " << failing << " failed";
  }
}

}  // namespace
}  // namespace moectl::test
