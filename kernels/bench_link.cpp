// LinkBench of ranks that are threads on the CPU: the rank's thread copies and signals itself, by the wall clock.
#include "kernels/bench_link.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "core/base/check.h"

namespace moectl {
namespace {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int64_t clock_step_ns() {
  int64_t step = 1'000'000'000;
  for (int i = 0; i < 1000; ++i) {
    const int64_t begin = now_ns();
    int64_t end = begin;
    while (end == begin) end = now_ns();
    step = std::min(step, end - begin);
  }
  return step;
}

// False: the wait ended without the signal, and PeerStatus says why.
bool wait_for_signal(uint32_t* signal, uint32_t value, const PingPongArgs& a) {
  constexpr int kPollsPerCheck = 256;
  for (const int64_t begin = now_ns();;) {
    for (int i = 0; i < kPollsPerCheck; ++i)
      if (int32_t(std::atomic_ref(*signal).load(std::memory_order_acquire) - value) >= 0) return true;
    PeerStatus& status = *a.wait.status;
    if (std::atomic_ref(status.aborted).load() || std::atomic_ref(status.missing).load()) return false;
    if (now_ns() - begin > a.wait.timeout_ns) {
      std::atomic_ref(status.operation).store(PeerOperation{PeerOperation::kBarrier}.code());
      std::atomic_ref(status.missing).store(1 + a.peer);
      return false;
    }
    std::this_thread::yield();  // ranks may share a core
  }
}

class CpuLinkBench final : public LinkBench {
 public:
  std::string device_name() const override { return "CPU"; }
  double clock_step_seconds() const override { return step_; }
  std::vector<int> num_blocks() const override { return {1}; }
  bool has_copy_engine() const override { return false; }

  void stamp(View<int64_t> log, Stream) override {
    const int64_t n = log(0)++;
    if (n + 1 < log.size()) log(n + 1) = now_ns();
  }
  void copy(const LinkCopyArgs& a, Stream) override {
    CHECK(a.num_blocks == 1, "a copy by {} blocks on the CPU", a.num_blocks);
    std::memcpy(a.to, a.from, size_t(a.num_bytes));
  }
  void ping_pong(const PingPongArgs& a, Stream) override {
    const auto store = [&](uint32_t value) { std::atomic_ref(*a.theirs).store(value, std::memory_order_release); };
    for (int i = 1; i <= a.round_trips; ++i) {
      const uint32_t value = a.before + uint32_t(i);
      if (a.begins) store(value);
      if (!wait_for_signal(a.mine, value, a)) return;
      if (!a.begins) store(value);
    }
  }

 private:
  const double step_ = double(clock_step_ns()) * 1e-9;
};

}  // namespace

std::unique_ptr<LinkBench> make_cpu_link_bench() {
  return std::make_unique<CpuLinkBench>();
}

}  // namespace moectl
