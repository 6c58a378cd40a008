// Logs of a deployment's instances. The supervisor writes each line with the time it came; readers split the two
// again. A log is two files of bounded size; that of the process before the last start is kept as `.previous`.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace moectl {

inline constexpr size_t kMaxLogBytes = 8 << 20;  // of each of the two files
inline constexpr size_t kMaxLogLine = 16 << 10;  // longer ones are broken

// logs/decode-0.log, logs/decode-0.previous.log; the older half of a log has ".1" behind.
std::string log_path(const std::string& folder, const std::string& instance, bool previous);

// Of one process. Takes its output in chunks of any size. Supervisor's thread.
class LogWriter {
 public:
  // Moves the log of the process before to `.previous`.
  LogWriter(const std::string& folder, const std::string& instance, size_t max_bytes = kMaxLogBytes);
  ~LogWriter();
  LogWriter(const LogWriter&) = delete;
  void write(std::string_view piece);
  void line(std::string_view text);  // a whole one, of the supervisor itself

 private:
  void put(std::string_view text);
  void open();

  const std::string path_;
  const size_t max_bytes_;
  int fd_ = -1;
  size_t size_ = 0;
  std::string partial_;
};

struct LogLine {
  int64_t unix_ms = 0;
  std::string text;
};

// Reads the two files of a log from the oldest line on, then what is added, across rotations and restarts.
class LogReader {
 public:
  explicit LogReader(std::string path);
  ~LogReader();
  LogReader(const LogReader&) = delete;
  // Calls for each whole line that is there now and was not read yet.
  void read(const std::function<void(LogLine)>& take);
  bool exists() const;

 private:
  void drain(const std::function<void(LogLine)>& take);

  const std::string path_;
  int fd_ = -1;
  uint64_t inode_ = 0;
  bool started_ = false;
  std::string partial_;
};

}  // namespace moectl
