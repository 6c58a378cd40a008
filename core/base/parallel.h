// ThreadPool: a fixed team that works through the chunks of one job at a time. One per rank; run() is called from that
// rank's thread only, which is a member itself. Chunks are claimed, not assigned: a member that the system has not
// scheduled delays no other thread, the others take its chunks. Members spin for some microseconds between jobs and
// park after that; a team that shares its cores with other teams does not spin at all.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace moectl {

class ThreadPool {
 public:
  // `num_threads` >= 1 counts the caller. `spin`: whether waiting members may burn cycles.
  ThreadPool(int num_threads, bool spin);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return int(threads_.size()) + 1; }

  // f(chunk) for every chunk in [0, num_chunks), on any members in any order; returns when all have returned. The first
  // exception is thrown here.
  template <class F>
  void run(int num_chunks, F&& f) {
    if (threads_.empty() || num_chunks <= 1) {
      for (int i = 0; i < num_chunks; ++i) f(i);
      return;
    }
    run_erased([](void* ctx, int chunk) { (*static_cast<std::remove_reference_t<F>*>(ctx))(chunk); }, &f, num_chunks);
  }

  // How many chunks are worth making of a job of `work` units when a chunk should have at least `min_work`.
  int num_chunks(int64_t work, int64_t min_work) const {
    if (threads_.empty()) return 1;
    return int(std::clamp<int64_t>(work / std::max<int64_t>(min_work, 1), 1, 2 * size()));
  }

  // f(begin, end) on contiguous parts of [0, n), each of at least `min_items` items where n allows.
  template <class F>
  void parallel_for(int64_t n, int64_t min_items, F&& f) {
    const int chunks = num_chunks(n, min_items);
    run(chunks, [&](int chunk) {
      const int64_t begin = n * chunk / chunks, end = n * (chunk + 1) / chunks;
      if (begin < end) f(begin, end);
    });
  }

 private:
  using Call = void (*)(void*, int);
  void run_erased(Call call, void* ctx, int num_chunks);
  void run_thread();
  // Claims and runs chunks of the job of this generation until none is left.
  void work(uint32_t generation);

  const bool spin_;
  std::vector<std::thread> threads_;
  // Generation of the job (upper half) and its next unclaimed chunk (lower half): one word, so that a member that comes
  // late cannot claim a chunk of another job.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> unfinished_{0};  // chunks of the current job
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<int> num_chunks_{0};
  std::atomic<bool> stop_{false};
  // Stable while a claimed chunk is unfinished.
  Call call_ = nullptr;
  void* ctx_ = nullptr;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace moectl
