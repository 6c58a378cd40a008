// Which GPU this process would use, which kernels it takes, and what a launch needs to know of the device it goes to,
// without CUDA's types. Answers are kept per device, never per process; every function may be called by any thread.
#pragma once

#include <array>
#include <atomic>
#include <string>

#include "kernels/gpu.h"

namespace moectl::cuda {

inline constexpr int kMaxDevices = 64;

// Empty, or in one line what is missing for the kernels of this build: a driver, a new enough one, a GPU, its
// architecture.
std::string why_unusable(int device);

struct DeviceInfo {
  ComputeCapability capability;
  int num_multiprocessors = 0;
};
// The driver is asked once per device. Throws Error{kUnavailable} where there is no such device.
const DeviceInfo& device_info(int device);

int current_device();  // of the calling thread
inline const DeviceInfo& current_device_info() {
  return device_info(current_device());
}

inline ComputeCapability compute_capability(int device) {
  return device_info(device).capability;
}

// Whether the calling thread's launches may use what only Hopper has: the *_sm90.cu kernels and programmatic dependent
// launch. True where the current device is one, but not under PortableLaunches(true), nor with CUDA_FORCE_PTX_JIT=1 in
// the environment: the binary holds PTX of the portable kernels alone.
bool takes_hopper_kernels();

// While it is in scope, the calling thread launches only portable kernels, if `portable`.
class PortableLaunches {
 public:
  explicit PortableLaunches(bool portable);
  ~PortableLaunches();
  PortableLaunches(const PortableLaunches&) = delete;
  PortableLaunches& operator=(const PortableLaunches&) = delete;

 private:
  const bool before_;
};

// A value per device, computed on its first use there: the attributes and the occupancy of a kernel belong to a device,
// so a plain static would serve the process's first device alone. T{} means "not computed yet". Threads that come first
// together all compute it, to the same value; later calls cost cudaGetDevice and a load.
template <class T>
class PerDevice {
 public:
  template <class Compute>
  T get(Compute&& compute) {
    std::atomic<T>& value = values_[size_t(current_device())];
    T v = value.load(std::memory_order_acquire);
    if (v == T{}) value.store(v = compute(), std::memory_order_release);
    return v;
  }

 private:
  std::array<std::atomic<T>, kMaxDevices> values_{};
};

}  // namespace moectl::cuda
