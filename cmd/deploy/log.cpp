#include "cmd/deploy/log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "cmd/deploy/state.h"
#include "core/base/error.h"

namespace moectl {
namespace {

// "1763930000123 text"
LogLine parse_line(std::string_view line) {
  LogLine result;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), result.unix_ms);
  size_t begin = error == std::errc{} ? size_t(end - line.data()) : 0;
  if (begin > 0 && begin < line.size() && line[begin] == ' ') ++begin;
  result.text = line.substr(begin);
  return result;
}

bool write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    text.remove_prefix(size_t(n));
  }
  return true;
}

}  // namespace

std::string log_path(const std::string& folder, const std::string& instance, bool previous) {
  std::string stem = instance;
  std::replace(stem.begin(), stem.end(), '/', '-');
  return fmt::format("{}/logs/{}{}.log", folder, stem, previous ? ".previous" : "");
}

// ---------------------------------------------------------------------------------------------- writing
LogWriter::LogWriter(const std::string& folder, const std::string& instance, size_t max_bytes)
    : path_(log_path(folder, instance, false)), max_bytes_(max_bytes) {
  const std::string previous = log_path(folder, instance, true);
  if (::access(path_.c_str(), F_OK) == 0) {
    ::rename(path_.c_str(), previous.c_str());
    if (::rename((path_ + ".1").c_str(), (previous + ".1").c_str()) != 0) ::unlink((previous + ".1").c_str());
  }
  open();
}

LogWriter::~LogWriter() {
  if (!partial_.empty()) put(partial_);
  if (fd_ >= 0) ::close(fd_);
}

void LogWriter::open() {
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_TRUNC, 0600);
  size_ = 0;
}

void LogWriter::write(std::string_view piece) {
  while (!piece.empty()) {
    const size_t room = kMaxLogLine - partial_.size();
    const size_t end = std::min(piece.find('\n'), piece.size());
    const size_t taken = std::min(end, room);
    partial_.append(piece.substr(0, taken));
    const bool whole = taken == end && end < piece.size();
    piece.remove_prefix(taken + (whole ? 1 : 0));
    if (whole || partial_.size() == kMaxLogLine) {
      put(partial_);
      partial_.clear();
    }
  }
}

void LogWriter::line(std::string_view text) {
  put(text);
}

// A log that cannot be written (a full disk) is lost; the deployment keeps running.
void LogWriter::put(std::string_view text) {
  if (fd_ < 0) open();
  if (fd_ < 0) return;
  const std::string line = fmt::format("{} {}\n", unix_ms(), text);
  if (size_ > 0 && size_ + line.size() > max_bytes_) {
    ::close(fd_);
    ::rename(path_.c_str(), (path_ + ".1").c_str());
    open();
    if (fd_ < 0) return;
  }
  if (write_all(fd_, line)) size_ += line.size();
}

// ---------------------------------------------------------------------------------------------- reading
LogReader::LogReader(std::string path) : path_(std::move(path)) {}

LogReader::~LogReader() {
  if (fd_ >= 0) ::close(fd_);
}

bool LogReader::exists() const {
  return ::access(path_.c_str(), F_OK) == 0;
}

void LogReader::drain(const std::function<void(LogLine)>& take) {
  char buffer[64 << 10];
  for (;;) {
    const ssize_t n = ::read(fd_, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    std::string_view piece(buffer, size_t(n));
    for (size_t end; (end = piece.find('\n')) != piece.npos; piece.remove_prefix(end + 1)) {
      partial_.append(piece.substr(0, end));
      take(parse_line(partial_));
      partial_.clear();
    }
    partial_.append(piece);
    if (partial_.size() > 4 * kMaxLogLine) partial_.clear();  // not a file of ours
  }
}

void LogReader::read(const std::function<void(LogLine)>& take) {
  if (!started_) {
    started_ = true;
    fd_ = ::open((path_ + ".1").c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ >= 0) {
      drain(take);
      ::close(fd_);
      fd_ = -1;
    }
  }
  if (fd_ >= 0) drain(take);
  struct stat info {};
  if (::stat(path_.c_str(), &info) != 0) return;
  if (fd_ >= 0 && info.st_ino == inode_) return;
  if (fd_ >= 0) {  // another file has its name now: the rest of the old one, then the new one
    drain(take);
    ::close(fd_);
    partial_.clear();
  }
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0 || ::fstat(fd_, &info) != 0) return;
  inode_ = info.st_ino;
  drain(take);
}

}  // namespace moectl
