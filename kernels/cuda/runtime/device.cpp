#include "kernels/cuda/runtime/device.h"

#include <cstdlib>
#include <mutex>
#include <string_view>

#include "core/base/check.h"
#include "kernels/cuda/runtime/check.h"

namespace moectl::cuda {
namespace {

// MOECTL_CUDA_PORTABLE: scripts/cmake/kernels.cmake.
constexpr PlainKernels kPlainKernels = MOECTL_CUDA_PORTABLE ? PlainKernels::kEveryCard : PlainKernels::kHopper;

thread_local bool portable_launches = false;

std::string version_text(int v) {
  return fmt::format("{}.{}", v / 1000, v % 1000 / 10);
}

}  // namespace

std::string why_unusable(int device) {
  int driver = 0, runtime = 0, count = 0;
  CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return "there is no NVIDIA driver here (libcuda.so.1 was not found): install one where there is a GPU";
  // A driver runs programs of every minor version of its own major version.
  if (driver / 1000 < runtime / 1000)
    return fmt::format("the NVIDIA driver is for CUDA {}, and this moectl needs one for CUDA {} or later: update it",
                       version_text(driver), version_text(runtime / 1000 * 1000));
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
    return "the NVIDIA driver lists no GPU (is CUDA_VISIBLE_DEVICES empty?)";
  if (status != cudaSuccess) return fmt::format("the GPU does not answer: {}", cudaGetErrorString(status));
  if (device < 0 || device >= count)
    return fmt::format("there is no GPU {}; this machine has {} (from 0)", device, count);
  if (const std::string why = why_no_kernels(compute_capability(device), kPlainKernels); !why.empty())
    return fmt::format("GPU {} has {}", device, why);
  return {};
}

int current_device() {
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CHECK(device >= 0 && device < kMaxDevices, "GPU {}: at most {} are supported", device, kMaxDevices);
  return device;
}

const DeviceInfo& device_info(int device) {
  static std::array<std::once_flag, kMaxDevices> asked;
  static std::array<DeviceInfo, kMaxDevices> known;
  CHECK(device >= 0 && device < kMaxDevices, "GPU {}: at most {} are supported", device, kMaxDevices);
  DeviceInfo& info = known[size_t(device)];
  std::call_once(asked[size_t(device)], [&] {
    const auto attribute = [&](cudaDeviceAttr name) {
      int value = 0;
      CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
      return value;
    };
    info = {{attribute(cudaDevAttrComputeCapabilityMajor), attribute(cudaDevAttrComputeCapabilityMinor)},
            attribute(cudaDevAttrMultiProcessorCount)};
  });
  return info;
}

bool takes_hopper_kernels() {
  static const bool ptx_only = [] {
    const char* value = std::getenv("CUDA_FORCE_PTX_JIT");
    return value && std::string_view(value) == "1";
  }();
  return !portable_launches && !ptx_only && is_hopper(current_device_info().capability);
}

PortableLaunches::PortableLaunches(bool portable) : before_(portable_launches) {
  portable_launches = portable;
}

PortableLaunches::~PortableLaunches() {
  portable_launches = before_;
}

}  // namespace moectl::cuda
