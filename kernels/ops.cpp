// Picks the backend: the one place that knows which ones this build has.
#include "kernels/ops.h"

#include "kernels/gpu.h"

namespace moectl {

// Defined by kernels/cpu/factory.cpp, once per instruction-set path.
namespace cpu_portable {
std::unique_ptr<Ops> make_cpu_ops(int num_threads, bool spin);
}
#if defined(MOECTL_HAVE_AVX512)
namespace cpu_avx512 {
std::unique_ptr<Ops> make_cpu_ops(int num_threads, bool spin);
}
#endif
#if defined(MOECTL_HAVE_CUDA)
namespace cuda {
std::string why_unusable(int device);                           // kernels/cuda/runtime/device.cpp
std::unique_ptr<Ops> make_cuda_ops(const OpsOptions& options);  // kernels/cuda/runtime/cuda_ops.cpp
}  // namespace cuda
#endif

namespace {

bool machine_has_avx512() {
#if defined(MOECTL_HAVE_AVX512)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("bmi2");
#else
  return false;
#endif
}

}  // namespace

std::string why_no_gpu([[maybe_unused]] int device_index) {
#if defined(MOECTL_HAVE_CUDA)
  return cuda::why_unusable(device_index);
#else
  return "this moectl was built without CUDA: build with -DMOECTL_CUDA=ON where nvcc is";
#endif
}

std::unique_ptr<Ops> make_ops(const OpsOptions& options) {
  if (options.device != "cpu" && options.device != "cuda" && options.device != "auto")
    throw Error(Code::kBadConfig, fmt::format("--device {}: expected auto, cpu or cuda", options.device));
  if (options.device != "cpu") {
    const std::string why = why_no_gpu(options.device_index);
#if defined(MOECTL_HAVE_CUDA)
    if (why.empty()) return cuda::make_cuda_ops(options);
#endif
    if (options.device == "cuda")
      throw Error(Code::kBadConfig, fmt::format("--device cuda: {}; or use --device cpu", why));
  }
  const std::string& path = options.cpu_path;
  if (path != "auto" && path != "avx512" && path != "portable")
    throw Error(Code::kBadConfig, fmt::format("--cpu-path {}: expected auto, avx512 or portable", path));
  if (path == "avx512" && !machine_has_avx512())
    throw Error(Code::kBadConfig,
                "--cpu-path avx512: this CPU or build lacks AVX-512 (F, BW, VL, DQ, CD); use --cpu-path auto");
#if defined(MOECTL_HAVE_AVX512)
  if (path != "portable" && machine_has_avx512()) return cpu_avx512::make_cpu_ops(options.num_threads, options.spin);
#endif
  return cpu_portable::make_cpu_ops(options.num_threads, options.spin);
}

}  // namespace moectl
