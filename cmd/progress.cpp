#include "cmd/progress.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "core/base/log.h"

namespace moectl {
namespace {

constexpr std::chrono::milliseconds kRedraw{50};
constexpr std::chrono::seconds kLogged{10};
constexpr int kBarWidth = 30;

std::string amount(int64_t value, ProgressBar::Unit unit) {
  if (unit == ProgressBar::Unit::kCount) return fmt::format("{}", value);
  if (value >= 1 << 30) return fmt::format("{:.1f} GiB", double(value) / (1 << 30));
  return fmt::format("{:.1f} MiB", double(value) / (1 << 20));
}

}  // namespace

ProgressBar::ProgressBar(std::string title, Unit unit)
    : title_(std::move(title)),
      unit_(unit),
      enabled_(isatty(STDERR_FILENO)),
      started_(std::chrono::steady_clock::now()),
      last_draw_(started_) {}

ProgressBar::~ProgressBar() {
  std::lock_guard lock(mutex_);
  if (drawn_) std::fputs("\r\033[K", stderr);
}

void ProgressBar::update(int64_t done, int64_t total) {
  if (!enabled_ && unit_ != Unit::kBytes) return;
  std::lock_guard lock(mutex_);
  if (total <= 0 || done < last_done_) return;  // threads may report out of order
  last_done_ = done;
  last_total_ = total;
  const auto now = std::chrono::steady_clock::now();
  if (!enabled_) {
    if (now - last_draw_ >= kLogged && done < total)
      log::info("{}: {} of {}", title_, amount(done, unit_), amount(total, unit_)), last_draw_ = now;
    return;
  }
  if (drawn_ && now - last_draw_ < kRedraw && done < total) return;
  last_draw_ = now;
  draw(done, total);
}

void ProgressBar::finish() {
  std::lock_guard lock(mutex_);
  if (!drawn_) return;
  draw(last_total_, last_total_);
  std::fputs("\n", stderr);
  drawn_ = false;
}

void ProgressBar::draw(int64_t done, int64_t total) {
  const double part = std::clamp(double(done) / double(total), 0.0, 1.0);
  const int filled = int(part * kBarWidth);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  std::string line = fmt::format("\r\033[K{} [{:#<{}}{:-<{}}] {:3.0f} %  {} of {}", title_, "", filled, "",
                                 kBarWidth - filled, part * 100, amount(done, unit_), amount(total, unit_));
  if (seconds > 2 && part > 0.02 && part < 1) line += fmt::format(", {:.0f} s left", seconds / part - seconds);
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  drawn_ = true;
}

}  // namespace moectl
