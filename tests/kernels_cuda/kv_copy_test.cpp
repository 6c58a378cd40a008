// Page copies against the definition: bytes on the host.
#include "kernels/cuda/elementwise/kv_copy.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>

#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

using KvCopyCudaTest = GpuTest;
using Bytes = std::vector<std::byte>;

Bytes random_bytes(std::mt19937_64& rng, int64_t size) {
  Bytes b(static_cast<size_t>(size));
  for (std::byte& x : b) x = std::byte(rng());
  return b;
}

TEST_F(KvCopyCudaTest, GathersAndScatters) {
  std::mt19937_64 rng(1);
  for (int64_t page_bytes : {16, 8192, 8208, 73728, 131072})
    for (int num_layers : {1, 3})
      for (size_t num_pages : {1, 7, 20}) {
        SCOPED_TRACE(fmt::format("{} layers, {} pages of {}", num_layers, num_pages, page_bytes));
        constexpr int64_t kPool = 23;
        std::vector<Bytes> from, to;
        std::vector<std::unique_ptr<DeviceArray<std::byte>>> from_device, to_device;
        std::vector<std::byte*> from_layers, to_layers;
        for (int l = 0; l < num_layers; ++l) {
          from.push_back(random_bytes(rng, kPool * page_bytes));
          to.push_back(random_bytes(rng, kPool * page_bytes));
          from_layers.push_back(
              from_device.emplace_back(std::make_unique<DeviceArray<std::byte>>(from.back()))->data());
          to_layers.push_back(to_device.emplace_back(std::make_unique<DeviceArray<std::byte>>(to.back()))->data());
        }
        const auto some_pages = [&] {
          std::vector<int32_t> pages(kPool);
          std::iota(pages.begin(), pages.end(), 0);
          std::ranges::shuffle(pages, rng);
          pages.resize(num_pages);
          return pages;
        };
        const std::vector<int32_t> source = some_pages(), target = some_pages();
        DeviceArray<std::byte> staging(num_layers * int64_t(num_pages) * page_bytes);
        const auto args = [&](const DeviceArray<std::byte*>& layers, const DeviceArray<int32_t>& pages) {
          cuda::KvCopyArgs a;
          a.layers = View<std::byte* const>(layers.data(), {layers.size()});
          a.pages = View<const int32_t>(pages.data(), {pages.size()});
          a.page_bytes = page_bytes;
          a.staging = staging.data();
          return a;
        };
        DeviceArray<std::byte*> layers_from(from_layers), layers_to(to_layers);
        DeviceArray<int32_t> pages_from(source), pages_to(target);
        cuda::kv_gather(args(layers_from, pages_from), {});
        const Bytes staged = staging.host();
        cuda::kv_scatter(args(layers_to, pages_to), {});
        for (int l = 0; l < num_layers; ++l) {
          for (size_t i = 0; i < num_pages; ++i) {
            const auto page = from[size_t(l)].begin() + source[i] * page_bytes;
            ASSERT_TRUE(std::equal(page, page + page_bytes,
                                   staged.begin() + (int64_t(l) * int64_t(num_pages) + int64_t(i)) * page_bytes));
            std::copy(page, page + page_bytes, to[size_t(l)].begin() + target[i] * page_bytes);
          }
          ASSERT_EQ(to_device[size_t(l)]->host(), to[size_t(l)]) << "layer " << l << "; the other pages stay";
        }
      }
}

TEST_F(KvCopyCudaTest, WrongSizesAreRefused) {
  cuda::KvCopyArgs args;
  args.page_bytes = 24;
  EXPECT_THROW(cuda::kv_gather(args, {}), Error);
}

}  // namespace
}  // namespace moectl::test
