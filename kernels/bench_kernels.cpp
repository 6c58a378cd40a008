// Picks the device whose kernels and links are timed, as kernels/ops.cpp picks a backend.
#include "kernels/bench_kernels.h"

#include <regex>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "kernels/bench_link.h"
#include "kernels/gpu.h"

namespace moectl {

#if defined(MOECTL_HAVE_CUDA)
namespace cuda {
namespace bench {
KernelReport run(const KernelBenchOptions& options, const std::regex& filter);  // kernels/cuda/bench/bench.cu
double read_bandwidth();
std::unique_ptr<LinkBench> make_link_bench(Device& device);  // kernels/cuda/bench/link.cu
}  // namespace bench
}  // namespace cuda
#else
namespace cuda {
namespace bench {
namespace {
KernelReport run(const KernelBenchOptions&, const std::regex&) {
  throw Error(Code::kBadConfig, why_no_gpu());
}
double read_bandwidth() {
  throw Error(Code::kBadConfig, why_no_gpu());
}
std::unique_ptr<LinkBench> make_link_bench(Device&) {
  throw Error(Code::kBadConfig, why_no_gpu());
}
}  // namespace
}  // namespace bench
}  // namespace cuda
#endif

KernelReport bench_kernels_on_cpu(const KernelBenchOptions& options,
                                  const std::regex& filter);  // kernels/bench_kernels_cpu.cpp
std::unique_ptr<LinkBench> make_cpu_link_bench();             // kernels/bench_link.cpp

std::unique_ptr<LinkBench> make_link_bench(Device& device) {
  return device.peers() ? cuda::bench::make_link_bench(device) : make_cpu_link_bench();
}

double read_bandwidth(const std::string& device, int num_threads) {
  return device == "cuda" ? cuda::bench::read_bandwidth() : memory_read_bandwidth(num_threads);
}

KernelReport time_kernels(const KernelBenchOptions& options) {
  std::regex filter;
  try {
    filter = std::regex(options.filter, std::regex::ECMAScript | std::regex::icase);
  } catch (const std::regex_error& e) {
    throw Error(Code::kUsage, fmt::format("--filter {}: not a regular expression: {}", options.filter, e.what()));
  }
  if (options.device == "cpu") return bench_kernels_on_cpu(options, filter);
  const std::string reason = why_no_gpu();
  if (reason.empty()) return cuda::bench::run(options, filter);
  if (options.device == "auto") return bench_kernels_on_cpu(options, filter);
  throw Error(Code::kBadConfig, fmt::format("--device cuda: {}; or use --device cpu", reason));
}

}  // namespace moectl
