// RanksOnGpus: a fixture with a group of ranks on GPUs of their own or, where there are fewer, on shared ones, each
// with a p2p communicator.
#pragma once

#include <functional>
#include <thread>

#include "core/comm/communicator.h"
#include "kernels/gpu.h"
#include "kernels/peer.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {

// Before the first use of a GPU: a kernel that is loaded when it is first launched waits for a device on which another
// rank waits for this one.
[[maybe_unused]] inline const bool kEagerKernels = (load_kernels_eagerly(), true);

class RanksOnGpus : public GpuTest {
 public:
  struct Rank {
    std::unique_ptr<Ops> ops;
    std::unique_ptr<Communicator> comm;
    Device& device() { return ops->device(); }
    Stream stream() { return device().stream(); }
  };
  static std::vector<Rank> ranks(int size, LocalGroupOptions options = {}) {
    int num_devices = 0;
    CUDA_CHECK(cudaGetDeviceCount(&num_devices));
    std::vector<Rank> all(static_cast<size_t>(size));
    std::vector<Device*> devices;
    for (int r = 0; r < size; ++r) {
      all[size_t(r)].ops = make_ops({.device = "cuda", .device_index = r % num_devices, .has_peers = true});
      devices.push_back(&all[size_t(r)].device());
    }
    auto comms = make_p2p_communicators(devices, options);
    for (int r = 0; r < size; ++r) all[size_t(r)].comm = std::move(comms[size_t(r)]);
    return all;
  }
  // f(rank) on one thread per rank.
  static void on_all(std::vector<Rank>& all, const std::function<void(Rank&)>& f) {
    std::vector<std::thread> threads;
    for (Rank& rank : all)
      threads.emplace_back([&] {
        try {
          f(rank);
        } catch (const std::exception& e) {
          ADD_FAILURE() << "rank " << rank.comm->rank() << ": " << e.what();
          rank.comm->abort("test");
        }
      });
    for (std::thread& t : threads) t.join();
  }
  static std::vector<float> download(Rank& rank, const Buffer& from, int64_t size) {
    const Buffer host = rank.device().alloc_host(size * 4);
    rank.device().copy(host.get(), from.get(), size * 4, rank.stream());
    rank.device().synchronize(rank.stream());
    rank.comm->check();
    const float* p = reinterpret_cast<const float*>(host.get());
    return {p, p + size};
  }
  static View<float> floats(const Buffer& buffer, int64_t size) {
    return View<float>(reinterpret_cast<float*>(buffer.get()), {size});
  }
};

}  // namespace moectl::test
