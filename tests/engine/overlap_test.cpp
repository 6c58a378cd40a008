// Two steps in flight, with a device that executes by itself: real CPU operations, executed in order by a thread of
// their own, so that the host runs ahead of them as it does of a GPU. (On a real GPU tests/golden/cuda_test.cpp and
// tests/e2e/cuda_test.py do the same with everything that samples.)
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <future>
#include <map>
#include <mutex>
#include <thread>

#include "core/base/error.h"
#include "core/engine/engine_impl.h"
#include "core/engine/engine_setup.h"
#include "core/engine/rank_worker.h"
#include "core/model/weights.h"
#include "tests/engine/engine_client.h"
#include "tests/harness/wrapped_ops.h"

namespace moectl::test {
namespace {

class StreamOps final : public WrappedOps, private Device, private DeviceSampling {
 public:
  // `before` sees the number of each operation before the device's thread begins it: it may wait or throw.
  StreamOps(std::unique_ptr<Ops> real, std::function<void(int64_t)> before)
      : WrappedOps(std::move(real)), before_(std::move(before)), thread_([this] { run(); }) {}
  ~StreamOps() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  Device& device() override { return *this; }
  const Capabilities& capabilities() const override { return capabilities_; }
  DeviceSampling* device_sampling() override { return this; }

  void embed(const EmbedArgs& a, Stream s) override {
    around([=, this] {
      std::vector<int32_t> ids;
      for (int64_t i = 0; i < a.token_ids.dim(0); ++i) {
        const int32_t id = a.token_ids(i);
        ids.push_back(id < 0 ? a.sampled(-1 - id) : id);
        num_fed_back_ += id < 0;
      }
      real().embed({View<const int32_t>(ids.data(), {int64_t(ids.size())}), a.table, a.out}, s);
    });
  }
  // What these point to ends with the call.
  void moe_permute(const MoePermuteArgs& a, Stream s) override {
    around([=, this, args = a, sources = std::vector(a.sources.begin(), a.sources.end())]() mutable {
      args.sources = sources;
      real().moe_permute(args, s);
    });
  }
  void moe_locate(const MoeLocateArgs& a, Stream s) override {
    around([=, this, args = a, results = std::vector(a.results.begin(), a.results.end())]() mutable {
      args.results = results;
      real().moe_locate(args, s);
    });
  }
  int64_t num_fed_back() const { return num_fed_back_; }
  int64_t num_pending() const { return num_pending_; }

 protected:
  void around(std::function<void()> operation) override { put(std::move(operation)); }

 private:
  Device& memory_device() { return real().device(); }
  Buffer alloc(int64_t n) override { return memory_device().alloc(n); }
  Buffer alloc_host(int64_t n) override { return memory_device().alloc_host(n); }
  void upload(void* device, const void* host, int64_t n) override {
    synchronize({});
    memory_device().upload(device, host, n);
  }
  void copy(void* to, const void* from, int64_t n, Stream s) override {
    put([=, this] { memory_device().copy(to, from, n, s); });
  }
  Memory memory() const override { return {}; }
  Stream stream() override { return {}; }
  void synchronize(Stream s) override { wait(record_event(s)); }
  Event record_event(Stream) override {
    auto number = std::make_shared<int64_t>();
    std::lock_guard lock(mutex_);
    *number = num_put_;
    return number;
  }
  void wait(const Event& event) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_done_ >= *static_cast<const int64_t*>(event.get()); });
    if (!error_.empty()) throw Error(Code::kUnavailable, error_);
  }
  double seconds_between(const Event&, const Event&) override { return 1; }
  void fork(const std::function<void()>& work) override { work(); }
  void join() override {}
  GraphCapture* graphs() override { return nullptr; }
  PeerOps* peers() override { return nullptr; }

  // Greedy rows.
  void sample_rows(const SampleRowsArgs& a, Stream) override {
    around([=, this] {
      for (int64_t i = 0; i < a.logits.dim(0); ++i) {
        EXPECT_EQ(a.rows(i).temperature, 0);
        const std::vector<float> row = adjusted(a, i);
        a.out(i) = {.token_id = int32_t(std::ranges::max_element(row) - row.begin())};
        a.next_token_ids(i) = a.out(i).token_id;
      }
    });
  }

  // kernels/ops.h, LogitAdjustment and SamplingRow::pending_row.
  std::vector<float> adjusted(const SampleRowsArgs& a, int64_t i) {
    const SamplingRow& row = a.rows(i);
    std::map<int32_t, LogitAdjustment> adjustments;
    for (int32_t k = row.adjust_begin; k < row.adjust_end; ++k)
      adjustments[a.adjustments(k).token_id] = a.adjustments(k);
    if (row.pending_row >= 0) {
      LogitAdjustment& pending = adjustments[a.sampled(row.pending_row)];
      pending.seen = 1;
      ++pending.count;
      ++num_pending_;
    }
    std::vector<float> logits(a.logits.row(i), a.logits.row(i) + a.logits.row_size());
    for (const auto& [id, change] : adjustments) {
      float& x = logits[size_t(id)];
      x += change.bias;
      if (change.seen) x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
      if (change.count > 0) x = x - row.frequency_penalty * float(change.count) - row.presence_penalty;
    }
    return logits;
  }

  void put(std::function<void()> operation) {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(operation));
      ++num_put_;
    }
    changed_.notify_all();
  }

  void run() {
    for (std::unique_lock lock(mutex_);;) {
      changed_.wait(lock, [&] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      const std::function<void()> operation = std::move(queue_.front());
      queue_.pop_front();
      const int64_t number = num_done_;
      const bool works = error_.empty();
      lock.unlock();
      std::string error;
      try {
        if (works) before_(number);
        if (works) operation();  // else like a GPU: nothing runs after an error
      } catch (const std::exception& e) {
        error = e.what();
      }
      lock.lock();
      if (error_.empty()) error_ = error;
      ++num_done_;
      changed_.notify_all();
    }
  }

  const Capabilities capabilities_ = {.max_steps_in_flight = 2, .host_readable = false};
  const std::function<void(int64_t)> before_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  int64_t num_put_ = 0, num_done_ = 0;
  std::string error_;
  bool stop_ = false;
  std::atomic<int64_t> num_fed_back_{0}, num_pending_{0};
  std::thread thread_;
};

struct OverlappedEngine {
  std::unique_ptr<Engine> engine;
  StreamOps* ops = nullptr;
};

EngineConfig overlapped_config() {
  EngineConfig flags = demo_config();
  flags.max_num_seqs = 2;  // steps of one or two rows: these operations know no padding
  flags.max_num_batched_tokens = 16;
  flags.max_model_len = 256;
  flags.kv_cache_bytes = 0;
  return flags;
}

OverlappedEngine overlapped_engine(std::function<void(int64_t)> before = [](int64_t) {}) {
  const EngineConfig flags = overlapped_config();
  const Config config = read_config(flags.model_dir);
  const OpsOptions backend = plan_ops(flags, config, 1);
  const Checkpoint checkpoint = Checkpoint::open(flags.model_dir);
  EngineSetup setup = plan_setup(flags, config, config.eos_token_ids, {{*make_ops(backend)}});
  setup.scheduler.max_steps_in_flight = 2;
  auto comms = make_local_communicators(1);
  auto real = make_ops(backend);
  auto weights = load_weights(config, checkpoint, *real);
  auto ops = std::make_unique<StreamOps>(std::move(real), std::move(before));
  OverlappedEngine result{.ops = ops.get()};
  std::vector<RankSetup> ranks;
  ranks.push_back({.weights = weights,
                   .ops = std::move(ops),
                   .comm = std::move(comms[0]),
                   .placement = setup.placement,
                   .num_pages = setup.scheduler.num_pages,
                   .limits = setup.limits});
  result.engine = start_engine({}, setup.scheduler, start_rank_workers(config, std::move(ranks)));
  return result;
}

GenerateRequest greedy(size_t i, int max_tokens) {
  return {.prompt_ids = golden_cases()[i].prompt_ids, .sampling = {.temperature = 0.0f, .max_tokens = max_tokens}};
}

TEST(EngineOverlap, AnswersAreWhatOneStepAtATimeGives) {
  const OverlappedEngine o = overlapped_engine();
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
  EXPECT_GT(o.ops->num_fed_back(), 100) << "most tokens are fed back before the host knows them";
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
  const OverlappedEngine o = overlapped_engine();
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
  EXPECT_GT(o.ops->num_pending(), 100);
}

TEST(EngineOverlap, ADeviceThatFailsEndsTheInstance) {
  for (int64_t number : {5, 400, 2000}) {
    std::atomic<bool> both_sent{false};
    const OverlappedEngine o = overlapped_engine([&, number](int64_t i) {
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
  const OverlappedEngine o = overlapped_engine();
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
  const OverlappedEngine o = overlapped_engine();
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
    OverlappedEngine o = overlapped_engine();
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
