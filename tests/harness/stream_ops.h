// StreamOps: real CPU operations as those of a device that executes by itself: a thread of its own runs them in order,
// and the host runs ahead of it as of a GPU's stream. With an ordinal it also has peers: ranks on such devices signal
// each other and wait on the devices' threads, bounded as on GPUs (kernels/cuda/comm/signal.cuh). Tests break it by
// hooks.
#pragma once

#include <algorithm>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "kernels/peer.h"
#include "tests/harness/wrapped_ops.h"

namespace moectl::test {

class StreamOps final : public WrappedOps, private Device, private DeviceSampling, private PeerOps {
 public:
  // May wait or throw; empty: nothing.
  struct Hooks {
    std::function<void(int64_t)> before;  // on the device's thread, before it begins an operation: its number
    std::function<void()> after;          // likewise, when it is done, whether or not it was executed
    std::function<void()> issue;          // on the calling thread, when it issues one
    std::function<void()> freed;          // when a buffer of the device is freed
  };
  // ordinal: of a device with peers.
  explicit StreamOps(std::unique_ptr<Ops> real, Hooks hooks = {}, std::optional<int> ordinal = {})
      : WrappedOps(std::move(real)), hooks_(std::move(hooks)), ordinal_(ordinal), thread_([this] { run(); }) {}
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
  // From now on operations end without being executed.
  void drop_operations() { drops_ = true; }
  int64_t num_fed_back() const { return num_fed_back_; }
  int64_t num_pending() const { return num_pending_; }

 protected:
  void around(std::function<void()> operation) override { put(std::move(operation)); }

 private:
  Device& memory_device() { return real().device(); }
  Buffer alloc(int64_t n) override {
    Buffer memory = memory_device().alloc(n);
    if (!hooks_.freed) return memory;
    std::byte* p = memory.get();
    return Buffer(p, [memory = std::move(memory), freed = hooks_.freed](std::byte*) { freed(); });
  }
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
  PeerOps* peers() override { return ordinal_ ? this : nullptr; }

  int ordinal() const override { return *ordinal_; }
  std::string connect(int) override { return ""; }
  void barrier(const PeerBarrierArgs& a, Stream) override {
    put([a = PeerBarrierArgs(a), flags = std::vector(a.flags.begin(), a.flags.end())]() mutable {
      a.flags = flags;
      wait_for_peers(a);
    });
  }
  void sum(const PeerSumArgs&, Stream) override { throw Error(Code::kInternal, "no sums on this device"); }
  void all_reduce(const PeerAllReduceArgs&, Stream) override { throw Error(Code::kInternal, "no all-reduce here"); }
  void mark(const PeerMarkArgs&, Stream) override { throw Error(Code::kInternal, "no marks on this device"); }
  void launch(const char*, Stream stream, const std::function<void(Stream)>& call) override { call(stream); }

  static void wait_for_peers(const PeerBarrierArgs& a) {
    const auto begin = std::chrono::steady_clock::now();
    PeerStatus& status = *a.wait.status;
    const uint32_t next = ++*a.generation;
    const int32_t code = PeerOperation{PeerOperation::kBarrier}.code();
    std::atomic_ref(status.at).store(code);
    if (*a.wait.ended) return;
    for (uint32_t* flags : a.flags) std::atomic_ref(flags[a.rank]).store(next, std::memory_order_release);
    std::mutex mutex;
    std::condition_variable never;
    int num_polls = 0;
    for (size_t peer = 0; peer < a.flags.size(); ++peer)
      while (int32_t(std::atomic_ref(a.flags[size_t(a.rank)][peer]).load(std::memory_order_acquire) - next) < 0) {
        const bool late = std::chrono::steady_clock::now() - begin > std::chrono::nanoseconds(a.wait.timeout_ns);
        if (late) {
          std::atomic_ref(status.operation).store(code);
          std::atomic_ref(status.missing).store(1 + int32_t(peer));
        }
        if (late || std::atomic_ref(status.aborted).load()) {
          *a.wait.ended = 1;
          return;
        }
        constexpr int kYields = 1000;
        std::unique_lock lock(mutex);
        if (++num_polls < kYields)
          std::this_thread::yield();
        else
          never.wait_for(lock, std::chrono::milliseconds(1));
      }
  }

  // Greedy rows.
  void sample_rows(const SampleRowsArgs& a, Stream) override {
    around([=, this] {
      for (int64_t i = 0; i < a.logits.dim(0); ++i) {
        CHECK(a.rows(i).temperature == 0, "this device samples greedy rows alone");
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
    if (hooks_.issue) hooks_.issue();
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
        if (works && hooks_.before) hooks_.before(number);
        if (works && !drops_) operation();  // else like a GPU: nothing runs after an error
      } catch (const std::exception& e) {
        error = e.what();
      }
      if (hooks_.after) hooks_.after();
      lock.lock();
      if (error_.empty()) error_ = error;
      ++num_done_;
      changed_.notify_all();
    }
  }

  const Capabilities capabilities_ = {.max_steps_in_flight = 2, .asynchronous = true};
  const Hooks hooks_;
  const std::optional<int> ordinal_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  int64_t num_put_ = 0, num_done_ = 0;
  std::string error_;
  bool stop_ = false;
  std::atomic<bool> drops_{false};
  std::atomic<int64_t> num_fed_back_{0}, num_pending_{0};
  std::thread thread_;
};

}  // namespace moectl::test
