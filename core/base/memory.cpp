#include "core/base/memory.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <limits>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace moectl {
namespace {

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

std::optional<int64_t> read_number(const std::string& path) {
  std::ifstream in(path);
  int64_t value = 0;
  if (in >> value) return value;  // "max" is no number: no limit
  return std::nullopt;
}

int64_t machine_available() {
  std::ifstream in("/proc/meminfo");
  std::string key, unit;
  int64_t kilobytes = 0;
  while (in >> key >> kilobytes) {
    std::getline(in, unit);
    if (key == "MemAvailable:") return kilobytes * 1024;
  }
  return kUnknown;
}

}  // namespace

int64_t available_memory_bytes() {
  int64_t available = machine_available();
  // Control groups, version 2, as a container sees its own.
  auto limit = read_number("/sys/fs/cgroup/memory.max"), used = read_number("/sys/fs/cgroup/memory.current");
  if (limit && used) available = std::min(available, std::max<int64_t>(*limit - *used, 0));
  return available;
}

double memory_read_bandwidth(int num_threads) {
  const size_t words = (256ull << 20) / sizeof(uint64_t);
  std::vector<uint64_t> data(words, 1);
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int pass = 0; pass < 5; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (int t = 0; t < num_threads; ++t)
      threads.emplace_back([&, t] {
        const size_t begin = words * size_t(t) / size_t(num_threads), end = words * size_t(t + 1) / size_t(num_threads);
        uint64_t sums[16] = {};
        for (size_t i = begin; i + 16 <= end; i += 16)
          for (size_t j = 0; j < 16; ++j) sums[j] += data[i + j];
        uint64_t sum = 0;
        for (uint64_t s : sums) sum += s;
        sink += sum;
      });
    for (auto& t : threads) t.join();
    best = std::max(best, double(words * sizeof(uint64_t)) /
                              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace moectl
