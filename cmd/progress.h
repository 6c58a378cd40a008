// A progress bar on stderr, drawn only when stderr is a terminal; elsewhere bytes are logged every ten seconds, and
// nothing is done for other units. update() may be called from any thread and redraws at most every 50 ms. Knows
// nothing of what is counted.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

namespace moectl {

class ProgressBar {
 public:
  enum class Unit { kBytes, kCount };
  explicit ProgressBar(std::string title, Unit unit = Unit::kBytes);
  ~ProgressBar();  // clears the line when finish() was not called (an error message follows)
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(int64_t done, int64_t total);
  void finish();
  // For EngineConfig::progress; the bar must outlive the call that uses it.
  std::function<void(int64_t, int64_t)> callback() {
    return [this](int64_t done, int64_t total) { update(done, total); };
  }

 private:
  void draw(int64_t done, int64_t total);

  const std::string title_;
  const Unit unit_;
  const bool enabled_;
  std::mutex mutex_;
  bool drawn_ = false;
  int64_t last_done_ = 0, last_total_ = 0;
  std::chrono::steady_clock::time_point started_, last_draw_;
};

}  // namespace moectl
