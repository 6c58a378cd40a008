#include "core/base/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

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

}  // namespace moectl
