// What is asked of the driver, and prepared, once per device; kernels that need preparation launch on every device.
#include "kernels/cuda/runtime/device.h"

#include <future>

#include "kernels/cuda/gemm/bf16_gemm.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

class DeviceTest : public GpuTest {
 protected:
  void TearDown() override {
    cudaSetDevice(0);
    cudaGetLastError();  // the refusals of this test are not to be found by the next one
  }
  static int num_devices() {
    int count = 0;
    CUDA_CHECK(cudaGetDeviceCount(&count));
    return count;
  }
};

TEST_F(DeviceTest, InfoIsThatOfTheDriver) {
  for (int i = 0; i < num_devices(); ++i) {
    cudaDeviceProp p;
    CUDA_CHECK(cudaGetDeviceProperties(&p, i));
    CUDA_CHECK(cudaSetDevice(i));
    EXPECT_EQ(cuda::current_device(), i);
    const cuda::DeviceInfo& info = cuda::current_device_info();
    EXPECT_EQ(info.num_multiprocessors, p.multiProcessorCount);
    EXPECT_EQ(info.capability.major, p.major);
    EXPECT_EQ(info.capability.minor, p.minor);
  }
  EXPECT_THROW(cuda::device_info(num_devices()), Error);
  EXPECT_THROW(cuda::device_info(num_devices()), Error) << "a failure is not taken for an answer";
  EXPECT_THROW(cuda::device_info(-1), Error);
  EXPECT_THROW(cuda::device_info(cuda::kMaxDevices), Error);
}

TEST_F(DeviceTest, AValuePerDevice) {
  cuda::PerDevice<int> values;
  int calls = 0;
  for (int round = 0; round < 2; ++round)
    for (int i = 0; i < num_devices(); ++i) {
      CUDA_CHECK(cudaSetDevice(i));
      EXPECT_EQ(values.get([&] { return ++calls, 10 + i; }), 10 + i);
    }
  EXPECT_EQ(calls, num_devices());
}

// A rank per device, each on its own thread: the first launches there may come at the same time.
TEST_F(DeviceTest, EveryDeviceLaunchesKernelsWithMuchSharedMemory) {
  if (!takes_hopper_kernels()) GTEST_SKIP() << "no Hopper";
  if (num_devices() < 2) GTEST_SKIP() << "one GPU";
  constexpr int64_t kRows = 70, kN = 520, kK = 576;
  std::vector<uint16_t> a, w;
  for (float v : Random(1).floats(kRows * kK)) a.push_back(f32_to_bf16(v));
  for (float v : Random(2).floats(kN * kK)) w.push_back(f32_to_bf16(v));
  const auto run = [&](int device) {
    std::vector<float> result;
    CUDA_CHECK(cudaSetDevice(device));
    DeviceArray<uint16_t> da(a), dw(w);
    for (const cuda::GemmConfig& config : {cuda::GemmConfig{.sub = 2}, cuda::GemmConfig{.sub = 1, .split = 2},
                                           cuda::GemmConfig{.swap = true, .tile_n = 64, .split = 4}}) {
      DeviceArray<float> out(kRows * kN);
      cuda::bf16_gemm({.a = da.data(), .rows = kRows, .n = kN, .k = kK, .w = dw.data(), .out = out.data()}, config, {});
      const auto values = out.host();
      result.insert(result.end(), values.begin(), values.end());
    }
    return result;
  };
  std::vector<std::future<std::vector<float>>> ranks;
  for (int i = 0; i < num_devices(); ++i) ranks.push_back(std::async(std::launch::async, run, i));
  const auto first = ranks[0].get();
  for (size_t i = 1; i < ranks.size(); ++i) EXPECT_TRUE(same_bits(ranks[i].get(), first)) << "GPU " << i;
}

}  // namespace
}  // namespace moectl::test
