// Lines to a file descriptor without ever blocking the thread that writes one: a bounded queue, and a thread that does
// the blocking writes. A full queue drops lines and counts them, and a line in the place of the missing ones says how
// many they are. Any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

namespace moectl {

class LineWriter {
 public:
  // Limits of the queue. At 1,000 lines of 200 bytes per second they bridge a consumer that stops for 4 s.
  static constexpr size_t kMaxLines = 4096, kMaxBytes = 1 << 20;

  // `report` makes the line, with its end, that says how many lines are missing. It is called on the writer's thread.
  LineWriter(int fd, std::function<std::string(int64_t)> report);
  // Drops what is queued and waits for a write that is under way. A writer of the whole process is never destroyed:
  // exit must not wait for a consumer that has stopped.
  ~LineWriter();
  LineWriter(const LineWriter&) = delete;

  void write(std::string line);  // with its end
  // Waits until everything written before is out; false: not within `limit`.
  bool flush(std::chrono::milliseconds limit);
  // Lines dropped since the start: the queue was full, or the descriptor took none (disk full, consumer gone).
  int64_t num_dropped() const { return num_dropped_; }

 private:
  struct Entry {
    std::string text;
    int64_t num_reported = 0;  // dropped lines that it reports; 0: an ordinary line
  };
  struct Batch {
    std::string text;
    int64_t num_lines = 0, num_reported = 0;
  };
  void run();
  bool report_is_due() const;
  void add_report(std::unique_lock<std::mutex>& lock);
  Batch take_batch();
  bool put(std::string_view text) const;  // false: an error of the descriptor

  const int fd_;
  const std::function<std::string(int64_t)> report_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> queue_;
  size_t num_bytes_ = 0;        // of queue_
  bool dropping_ = false;       // from overflow until half of the queue is free: one report per gap, not per line
  bool failing_ = false;        // the last write failed
  int64_t num_unreported_ = 0;  // dropped lines
  bool idle_ = false, writing_ = false, stopped_ = false;
  std::atomic<int64_t> num_dropped_{0};
  std::thread thread_;
};

}  // namespace moectl
