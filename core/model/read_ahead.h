// ReadAhead: brings parts of mapped files into memory in the order of their use and some way ahead of it, on threads of
// its own: the disk has many requests at a time, and the loader finds pages that are mapped already instead of stopping
// at every one. Advice only: what it has not brought in time is read when it is touched. Created, told and destroyed on
// the loader's thread; knows bytes, nothing of tensors.
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

  // uses[i]: what the i-th use will read. The bytes must stay mapped as long as this lives. `window`: bytes behind the
  // use at hand that memory must have room for.
  ReadAhead(std::span<const std::vector<Bytes>> uses, int num_threads, int64_t window = int64_t{2} << 30);
  ~ReadAhead();  // waits for what is being read, a few megabytes a thread
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // The next use begins (the first call: uses[0]).
  void next();

 private:
  struct Piece {
    Bytes bytes;
    int64_t begin = 0;  // bytes before it
  };
  void work();

  const int64_t window_;
  std::vector<Piece> pieces_;
  std::vector<int64_t> ends_;  // of each use: bytes up to its end
  std::mutex mutex_;
  std::condition_variable moved_;
  size_t next_piece_ = 0, num_begun_ = 0;
  int64_t end_ = 0;  // no piece that begins behind it is read yet
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace moectl
