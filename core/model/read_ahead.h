// ReadAhead: reads parts of mapped files in the order of their use and up to a window ahead of it, on its own threads:
// the disk has many requests in flight, and the loader finds its pages mapped instead of faulting on each. Advice only:
// what is not read in time is read on first access. One object per loader, used on its thread; several may read the
// same files. Knows bytes, nothing of tensors.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace moectl {

class ReadAhead {
 public:
  using Bytes = std::span<const std::byte>;

  // uses[i]: what the i-th use reads. The bytes must stay mapped as long as this object lives. `window`: bytes read
  // beyond the current use; memory must have room for them.
  ReadAhead(std::span<const std::vector<Bytes>> uses, int num_threads, int64_t window = int64_t{2} << 30);
  ~ReadAhead();  // waits for the reads in flight, a few megabytes per thread
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // The next use begins (the first call: uses[0]).
  void next();

 private:
  struct Request {
    Bytes bytes;
    int64_t begin = 0;  // bytes of the requests before it
  };
  void work();

  const int64_t window_;
  std::vector<Request> requests_;
  std::vector<int64_t> ends_;  // of each use: bytes up to its end
  std::mutex mutex_;
  std::condition_variable moved_;
  size_t next_request_ = 0, num_begun_ = 0;
  int64_t end_ = 0;  // requests that begin beyond it wait
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace moectl
