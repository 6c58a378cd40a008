#include "kernels/cpu_device.h"

#include <sys/mman.h>

#include <chrono>
#include <cstring>

#include "core/base/check.h"
#include "core/base/error.h"

namespace moectl {

Buffer CpuDevice::alloc(int64_t num_bytes) {
  CHECK(num_bytes >= 0, "allocation of {} bytes", num_bytes);
  // Pages come zeroed and are touched first by their user; what is never used costs nothing.
  size_t size = size_t(num_bytes > 0 ? num_bytes : 1);
  void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    throw Error(Code::kResourceExhausted,
                fmt::format("cannot allocate {} bytes of memory; lower --kv-cache-memory-bytes or "
                            "--max-num-batched-tokens, or use a machine with more memory",
                            size));
  return Buffer(static_cast<std::byte*>(p), [size](std::byte* q) { munmap(q, size); });
}

void CpuDevice::upload(void* device, const void* host, int64_t num_bytes) {
  if (num_bytes > 0) std::memcpy(device, host, size_t(num_bytes));  // empty batches have null pointers
}

Event CpuDevice::record_event(Stream) {
  return std::make_shared<std::chrono::steady_clock::time_point>(std::chrono::steady_clock::now());
}

double CpuDevice::seconds_between(const Event& begin, const Event& end) {
  const auto time = [](const Event& e) { return *static_cast<const std::chrono::steady_clock::time_point*>(e.get()); };
  return std::chrono::duration<double>(time(end) - time(begin)).count();
}

}  // namespace moectl
