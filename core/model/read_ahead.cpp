#include "core/model/read_ahead.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

namespace moectl {
namespace {

constexpr size_t kRequestBytes = 8 << 20;

// Reads and maps the pages that hold `bytes`.
void populate(ReadAhead::Bytes bytes) {
  static const uintptr_t page = uintptr_t(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = uintptr_t(bytes.data()) / page * page, end = uintptr_t(bytes.data()) + bytes.size();
  void* const p = reinterpret_cast<void*>(begin);
  (void)::madvise(p, end - begin, MADV_WILLNEED);  // one large request to the disk; the next call waits for it
#if defined(MADV_POPULATE_READ)
  (void)::madvise(p, end - begin, MADV_POPULATE_READ);  // Linux 5.14; before that the user's own accesses map the pages
#endif
}

}  // namespace

ReadAhead::ReadAhead(std::span<const std::vector<Bytes>> uses, int num_threads, int64_t window)
    : window_(window), end_(window) {
  int64_t total = 0;
  for (const std::vector<Bytes>& use : uses) {
    for (const Bytes bytes : use)
      for (size_t at = 0; at < bytes.size(); at += kRequestBytes) {
        const Bytes request = bytes.subspan(at, std::min(kRequestBytes, bytes.size() - at));
        requests_.push_back({request, total});
        total += int64_t(request.size());
      }
    ends_.push_back(total);
  }
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { work(); });
}

ReadAhead::~ReadAhead() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  moved_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void ReadAhead::next() {
  {
    std::lock_guard lock(mutex_);
    if (num_begun_ < ends_.size()) end_ = ends_[num_begun_++] + window_;
  }
  moved_.notify_all();
}

void ReadAhead::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    moved_.wait(lock,
                [&] { return stop_ || next_request_ == requests_.size() || requests_[next_request_].begin < end_; });
    if (stop_ || next_request_ == requests_.size()) return;
    const Bytes bytes = requests_[next_request_++].bytes;
    lock.unlock();
    populate(bytes);
    lock.lock();
  }
}

}  // namespace moectl
