#include "core/base/parallel.h"

namespace moectl {
namespace {

constexpr int kSpins =
    4000;  // tens of microseconds: longer than the gap between two operations, shorter than an idle period

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, bool spin) : spin_(spin) {
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this] { run_thread(); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (auto& t : threads_) t.join();
}

void ThreadPool::work(uint32_t generation) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    // A claim succeeds only on an unchanged ticket, so num_chunks_ below belongs to this generation when it does.
    const int num_chunks = num_chunks_.load(std::memory_order_acquire);
    if (uint32_t(ticket >> 32) != generation || int(uint32_t(ticket)) >= num_chunks) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    try {
      call_(ctx_, int(uint32_t(ticket)));
    } catch (...) {
      std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::run_erased(Call call, void* ctx, int num_chunks) {
  const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
  // Between jobs the ticket is exhausted: no member reads these until the new ticket is out.
  call_ = call;
  ctx_ = ctx;
  unfinished_.store(num_chunks, std::memory_order_relaxed);
  num_chunks_.store(0, std::memory_order_release);
  ticket_.store(uint64_t{generation} << 32, std::memory_order_release);
  num_chunks_.store(num_chunks, std::memory_order_release);
  generation_.store(generation, std::memory_order_release);
  generation_.notify_all();
  work(generation);
  for (int spins = 0;;) {
    const int left = unfinished_.load(std::memory_order_acquire);
    if (left == 0) break;
    if (spin_ && ++spins < kSpins)
      pause();
    else
      unfinished_.wait(left, std::memory_order_acquire);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::run_thread() {
  uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; generation_.load(std::memory_order_acquire) == seen;) {
      if (spin_ && ++spins < kSpins)
        pause();
      else
        generation_.wait(seen, std::memory_order_acquire);
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    work(seen);
  }
}

}  // namespace moectl
