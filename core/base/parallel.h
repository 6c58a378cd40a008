// ThreadPool: a fixed team that runs one function on every member. One per rank; run() is called from that rank's thread only,
// which is member 0. Members spin for some microseconds between calls and park after that; a team that shares its cores with
// other teams does not spin at all.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace moectl {

class ThreadPool {
 public:
  // `num_threads` >= 1 counts the caller. `spin`: whether waiting members may burn cycles.
  ThreadPool(int num_threads, bool spin);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return int(workers_.size()) + 1; }

  // f(member index) on every member; returns when all have returned. The first exception is thrown here.
  template <class F>
  void run(F&& f) {
    if (workers_.empty()) {
      f(0);
      return;
    }
    run_erased([](void* ctx, int member) { (*static_cast<std::remove_reference_t<F>*>(ctx))(member); }, &f);
  }

  // f(begin, end) on contiguous parts of [0, n). With less than `min_per_member` items a member, fewer take part.
  template <class F>
  void parallel_for(int64_t n, int64_t min_per_member, F&& f) {
    int64_t members = std::min<int64_t>(size(), min_per_member > 0 ? n / min_per_member : n);
    if (members <= 1) {
      if (n > 0) f(int64_t{0}, n);
      return;
    }
    run([&](int member) {
      if (member >= members) return;
      int64_t begin = n * member / members, end = n * (member + 1) / members;
      if (begin < end) f(begin, end);
    });
  }

 private:
  using Call = void (*)(void*, int);
  void run_erased(Call call, void* ctx);
  void worker(int member);
  void invoke(int member);

  const bool spin_;
  std::vector<std::thread> workers_;
  alignas(64) std::atomic<uint32_t> generation_{0};  // odd steps start work; kStop ends
  alignas(64) std::atomic<int> remaining_{0};
  std::atomic<bool> stop_{false};
  Call call_ = nullptr;
  void* ctx_ = nullptr;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace moectl
