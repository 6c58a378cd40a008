#include "core/model/read_ahead.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

namespace moectl {
namespace {

constexpr size_t kPieceBytes = 8 << 20;

// Reads and maps the pages that hold `bytes`.
void bring_in(ReadAhead::Bytes bytes) {
  static const uintptr_t page = uintptr_t(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = uintptr_t(bytes.data()) / page * page, end = uintptr_t(bytes.data()) + bytes.size();
  void* const p = reinterpret_cast<void*>(begin);
  (void)::madvise(p, end - begin, MADV_WILLNEED);  // one large request to the disk; the rest waits for it
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
      for (size_t at = 0; at < bytes.size(); at += kPieceBytes) {
        const Bytes piece = bytes.subspan(at, std::min(kPieceBytes, bytes.size() - at));
        pieces_.push_back({piece, total});
        total += int64_t(piece.size());
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
    moved_.wait(lock, [&] { return stop_ || next_piece_ == pieces_.size() || pieces_[next_piece_].begin < end_; });
    if (stop_ || next_piece_ == pieces_.size()) return;
    const Bytes bytes = pieces_[next_piece_++].bytes;
    lock.unlock();
    bring_in(bytes);
    lock.lock();
  }
}

}  // namespace moectl
