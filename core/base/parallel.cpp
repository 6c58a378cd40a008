#include "core/base/parallel.h"

#include <algorithm>
#include <utility>

namespace moectl {
namespace {

constexpr int kSpins = 4000;  // about 40 us: longer than the gap between two operations, shorter than an idle period

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, bool spin) : spin_(spin) {
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { worker(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (auto& t : workers_) t.join();
}

void ThreadPool::invoke(int member) {
  try {
    call_(ctx_, member);
  } catch (...) {
    std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::run_erased(Call call, void* ctx) {
  call_ = call;
  ctx_ = ctx;
  remaining_.store(int(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  invoke(0);
  for (int spins = 0;;) {
    int left = remaining_.load(std::memory_order_acquire);
    if (left == 0) break;
    if (spin_ && ++spins < kSpins)
      pause();
    else
      remaining_.wait(left, std::memory_order_acquire);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::worker(int member) {
  uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; generation_.load(std::memory_order_acquire) == seen;) {
      if (spin_ && ++spins < kSpins)
        pause();
      else
        generation_.wait(seen, std::memory_order_acquire);
    }
    ++seen;
    if (stop_.load()) return;
    invoke(member);
    if (remaining_.fetch_sub(1, std::memory_order_acq_rel) == 1) remaining_.notify_one();
  }
}

}  // namespace moectl
