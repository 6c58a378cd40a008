// LinkBench on GPUs: time stamps by %globaltimer, copies by blocks of threads or by the copy engine, and signals as
// every kernel that waits for peers uses them (kernels/cuda/comm/signal.cuh).
#include <algorithm>

#include "core/base/check.h"
#include "kernels/bench_link.h"
#include "kernels/cuda/comm/signal.cuh"
#include "kernels/cuda/runtime/device.cuh"

namespace moectl::cuda::bench {
namespace kernel {
namespace {

using cuda::kernel::now_ns;

__global__ void stamp(int64_t* log, int64_t size) {
  const int64_t now = now_ns(), n = log[0];
  if (n + 1 < size) log[n + 1] = now;
  log[0] = n + 1;
}

// *step: the smallest difference between two readings that differ.
__global__ void clock_step(int64_t* step) {
  constexpr int kReadings = 1 << 17;  // tens of steps where the clock advances by a microsecond
  int64_t smallest = 1'000'000'000, last = now_ns();
  for (int i = 0; i < kReadings; ++i) {
    const int64_t now = now_ns();
    if (now != last) smallest = min(smallest, now - last);
    last = now;
  }
  *step = smallest;
}

constexpr int kCopyThreads = 512, kCopyUnroll = 4;

// Every thread has kCopyUnroll loads in flight.
__global__ void __launch_bounds__(kCopyThreads) copy(uint4* to, const uint4* from, int64_t size) {
  const int64_t stride = int64_t{gridDim.x} * kCopyThreads;
  for (int64_t begin = int64_t{blockIdx.x} * kCopyThreads + threadIdx.x; begin < size; begin += stride * kCopyUnroll) {
    uint4 values[kCopyUnroll];
#pragma unroll
    for (int j = 0; j < kCopyUnroll; ++j)
      if (begin + j * stride < size) values[j] = from[begin + j * stride];
#pragma unroll
    for (int j = 0; j < kCopyUnroll; ++j)
      if (begin + j * stride < size) to[begin + j * stride] = values[j];
  }
}

// One thread.
__global__ void ping_pong(const __grid_constant__ PingPongArgs a, int32_t operation) {
  for (int i = 1; i <= a.round_trips; ++i) {
    const uint32_t value = a.before + uint32_t(i);
    if (a.begins) cuda::kernel::store_release(a.theirs, value);
    if (!cuda::kernel::wait_for_signal(a.mine, value, a.wait, a.peer, operation)) return;
    if (!a.begins) cuda::kernel::store_release(a.theirs, value);
  }
}

}  // namespace
}  // namespace kernel

namespace {

class CudaLinkBench final : public LinkBench {
 public:
  explicit CudaLinkBench(Device& device) : ordinal_(device.peers()->ordinal()) {
    activate();
    CUDA_CHECK(cudaGetDeviceProperties(&properties_, ordinal_));
    const Buffer step = device.alloc(sizeof(int64_t)), host = device.alloc_host(sizeof(int64_t));
    kernel::clock_step<<<1, 1, 0, handle(device.stream())>>>(reinterpret_cast<int64_t*>(step.get()));
    CUDA_CHECK(cudaGetLastError());
    device.copy(host.get(), step.get(), sizeof(int64_t), device.stream());
    device.synchronize(device.stream());
    clock_step_seconds_ = double(*reinterpret_cast<const int64_t*>(host.get())) * 1e-9;
  }

  std::string device_name() const override {
    return fmt::format("{}, {} multiprocessors", properties_.name, properties_.multiProcessorCount);
  }
  double clock_step_seconds() const override { return clock_step_seconds_; }
  std::vector<int> num_blocks() const override { return {1, 8, properties_.multiProcessorCount}; }
  bool has_copy_engine() const override { return true; }

  void stamp(View<int64_t> log, Stream stream) override {
    activate();
    kernel::stamp<<<1, 1, 0, handle(stream)>>>(log.data, log.size());
    CUDA_CHECK(cudaGetLastError());
  }

  void copy(const LinkCopyArgs& a, Stream stream) override {
    activate();
    if (a.num_blocks == 0) {
      CUDA_CHECK(cudaMemcpyPeerAsync(a.to, a.to_ordinal, a.from, a.from_ordinal, size_t(a.num_bytes), handle(stream)));
      return;
    }
    CHECK(a.num_bytes % int64_t(sizeof(uint4)) == 0, "a copy of {} bytes, no multiple of 16", a.num_bytes);
    kernel::copy<<<unsigned(a.num_blocks), kernel::kCopyThreads, 0, handle(stream)>>>(
        static_cast<uint4*>(a.to), static_cast<const uint4*>(a.from), a.num_bytes / int64_t(sizeof(uint4)));
    CUDA_CHECK(cudaGetLastError());
  }

  void ping_pong(const PingPongArgs& a, Stream stream) override {
    activate();
    kernel::ping_pong<<<1, 1, 0, handle(stream)>>>(a, PeerOperation{PeerOperation::kBarrier}.code());
    CUDA_CHECK(cudaGetLastError());
  }

 private:
  void activate() const { CUDA_CHECK(cudaSetDevice(ordinal_)); }

  const int ordinal_;
  cudaDeviceProp properties_ = {};
  double clock_step_seconds_ = 0;
};

}  // namespace

std::unique_ptr<LinkBench> make_link_bench(Device& device) {
  return std::make_unique<CudaLinkBench>(device);
}

}  // namespace moectl::cuda::bench
