#include "kernels/cuda/runtime/device.h"

#include <cstdlib>
#include <string_view>

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

ComputeCapability compute_capability(int device) {
  ComputeCapability card;
  CUDA_CHECK(cudaDeviceGetAttribute(&card.major, cudaDevAttrComputeCapabilityMajor, device));
  CUDA_CHECK(cudaDeviceGetAttribute(&card.minor, cudaDevAttrComputeCapabilityMinor, device));
  return card;
}

bool takes_hopper_kernels() {
  thread_local int known = -1;  // the device that was asked last
  thread_local bool hopper = false;
  if (portable_launches) return false;
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  if (device == known) return hopper;
  const char* ptx_only = std::getenv("CUDA_FORCE_PTX_JIT");
  hopper = is_hopper(compute_capability(device)) && !(ptx_only && std::string_view(ptx_only) == "1");
  known = device;
  return hopper;
}

PortableLaunches::PortableLaunches(bool portable) : before_(portable_launches) {
  portable_launches = portable;
}

PortableLaunches::~PortableLaunches() {
  portable_launches = before_;
}

}  // namespace moectl::cuda
