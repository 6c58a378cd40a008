#include "core/base/line_writer.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace moectl {
namespace {

constexpr size_t kBatchBytes = 64 << 10;  // of one write

}  // namespace

LineWriter::LineWriter(int fd, std::function<std::string(int64_t)> report) : fd_(fd), report_(std::move(report)) {
  // Signals belong to the threads that wait for them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

LineWriter::~LineWriter() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void LineWriter::write(std::string line) {
  std::unique_lock lock(mutex_);
  if (dropping_ || queue_.size() >= kMaxLines || num_bytes_ + line.size() > kMaxBytes) {
    dropping_ = true;
    ++num_dropped_;
    ++num_unreported_;
  } else {
    num_bytes_ += line.size();
    queue_.push_back({std::move(line)});
  }
  const bool wake = std::exchange(idle_, false);
  lock.unlock();
  if (wake) changed_.notify_all();
}

bool LineWriter::flush(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, limit, [this] { return queue_.empty() && !writing_ && !report_is_due(); });
}

bool LineWriter::report_is_due() const {
  return num_unreported_ > 0 && !failing_ && queue_.size() <= kMaxLines / 2 && num_bytes_ <= kMaxBytes / 2;
}

void LineWriter::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    while (!stopped_ && queue_.empty() && !report_is_due()) {
      idle_ = true;
      changed_.wait(lock);
    }
    idle_ = false;
    if (stopped_) return;
    if (report_is_due()) add_report(lock);
    if (queue_.empty()) continue;
    const Batch batch = take_batch();
    writing_ = true;
    lock.unlock();
    const bool ok = put(batch.text);
    lock.lock();
    writing_ = false;
    failing_ = !ok;
    if (!ok) {
      num_dropped_ += batch.num_lines;
      num_unreported_ += batch.num_lines + batch.num_reported;
    }
    changed_.notify_all();
  }
}

// Made without the lock: it may take locks of its own that threads hold while they write.
void LineWriter::add_report(std::unique_lock<std::mutex>& lock) {
  const int64_t count = num_unreported_;
  writing_ = true;
  lock.unlock();
  std::string text = report_(count);
  lock.lock();
  writing_ = false;
  num_unreported_ -= count;
  dropping_ = false;
  num_bytes_ += text.size();
  queue_.push_back({std::move(text), count});
}

LineWriter::Batch LineWriter::take_batch() {
  Batch batch;
  while (!queue_.empty() && (batch.text.empty() || batch.text.size() + queue_.front().text.size() <= kBatchBytes)) {
    const Entry& entry = queue_.front();
    batch.text += entry.text;
    batch.num_lines += entry.num_reported == 0;
    batch.num_reported += entry.num_reported;
    num_bytes_ -= entry.text.size();
    queue_.pop_front();
  }
  return batch;
}

bool LineWriter::put(std::string_view text) const {
  while (!text.empty()) {
    const ssize_t n = ::write(fd_, text.data(), text.size());
    if (n >= 0) {
      text.remove_prefix(size_t(n));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {  // another process made the descriptor non-blocking
      pollfd ready{fd_, POLLOUT, 0};
      ::poll(&ready, 1, -1);
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

}  // namespace moectl
