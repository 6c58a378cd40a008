#include "core/http/descriptors.h"

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace moectl::http {
namespace {

// An eighth of the limit, within these bounds. 64 hold three event loops with three descriptors each, listeners,
// standard streams, kMaxOpsConnections, 16 kept connections to workers, and some probes.
constexpr size_t kMinReserve = 64, kMaxReserve = 4096;

}  // namespace

DescriptorPlan plan_descriptors(size_t limit, size_t descriptors_per_connection) {
  DescriptorPlan plan;
  plan.limit = limit;
  plan.reserve = std::min(std::clamp(limit / 8, kMinReserve, kMaxReserve), limit / 2);
  plan.max_connections = std::max<size_t>(1, (limit - plan.reserve) / std::max<size_t>(1, descriptors_per_connection));
  plan.max_idle_clients = std::max<size_t>(1, plan.reserve / 4);
  return plan;
}

size_t descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kMaxDescriptors;
  return size_t(limit.rlim_cur);
}

size_t raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return descriptor_limit();
  const rlim_t wanted = std::min<rlim_t>(limit.rlim_max, kMaxDescriptors);  // RLIM_INFINITY is the largest number
  if (limit.rlim_cur < wanted) {
    limit.rlim_cur = wanted;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  return descriptor_limit();
}

bool is_out_of_descriptors(int error) {
  return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

bool has_free_descriptor() {
  const int fd = ::eventfd(0, EFD_CLOEXEC);
  if (fd < 0) return !is_out_of_descriptors(errno);
  ::close(fd);
  return true;
}

}  // namespace moectl::http
