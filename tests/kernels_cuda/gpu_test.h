// GpuTest: a fixture that skips, with the reason, on a machine without a usable GPU; HopperTest: also where the
// *_sm90.cu kernels are not taken. DeviceArray: typed device memory of a test, poisoned (all bits set: NaN) unless it
// is given contents. Owns nothing else.
//
// Kernels under test launch on the default stream, and operations of Ops on the stream of their rank, which does not
// wait for it. So whatever a test makes here, memory and packed weights, is complete when the call returns.
#pragma once

#include <gtest/gtest.h>

#include <span>
#include <vector>

#include "core/base/check.h"
#include "kernels/cuda/runtime/check.h"
#include "kernels/cuda/runtime/device.h"
#include "tests/kernels/kernel_test.h"

namespace moectl::test {

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0)
      GTEST_SKIP() << "no GPU to run on: "
                   << (status == cudaSuccess ? "the driver lists none" : cudaGetErrorString(status));
    CUDA_CHECK(cudaGetDeviceProperties(&device_, 0));
    if (const std::string why = cuda::why_unusable(0); !why.empty()) GTEST_SKIP() << why;
  }
  bool takes_hopper_kernels() const { return cuda::takes_hopper_kernels(); }
  const cudaDeviceProp& device() const { return device_; }

 private:
  cudaDeviceProp device_ = {};
};

class HopperTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped() && !takes_hopper_kernels())
      GTEST_SKIP() << device().name << ": these kernels are for 9.0a (Hopper) alone";
  }
};

// Ops::pack, complete: pack() itself only orders its copies before later work of the rank's own stream.
inline Weight pack_and_wait(Ops& ops, std::span<const MatrixSpec> batch) {
  Weight weight = ops.pack(batch);
  CUDA_CHECK(cudaDeviceSynchronize());
  return weight;
}

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t size) : size_(size) {
    CUDA_CHECK(cudaMalloc(&data_, size_t(size) * sizeof(T) + 1));
    CUDA_CHECK(cudaMemset(data_, 0xff, size_t(size) * sizeof(T)));
    CUDA_CHECK(cudaDeviceSynchronize());
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(int64_t(host.size())) { upload(host); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  // From the array's first element on.
  void upload(const std::vector<T>& host) {
    CHECK(int64_t(host.size()) <= size_, "{} elements into an array of {}", host.size(), size_);
    CUDA_CHECK(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaDeviceSynchronize());
  }

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  // Waits for the device: a kernel that failed is found here.
  std::vector<T> host() const {
    std::vector<T> v(static_cast<size_t>(size_));
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(v.data(), data_, v.size() * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
  }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace moectl::test
