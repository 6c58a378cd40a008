// bf16 copies of activations: exactly the rounded numbers, zeros behind k, rows from *num_rows on untouched.
#include "kernels/cuda/elementwise/bf16_copy.h"

#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

class Bf16CopyTest : public GpuTest {};

TEST_F(Bf16CopyTest, RoundsToNearestEven) {
  for (int64_t k : {1, 3, 64, 70, 1024})
    for (int64_t rows : {1, 5, 130})
      for (int32_t some : {-1, 0, 3}) {
        const int64_t padded = (k + 63) / 64 * 64, written = some < 0 ? rows : std::min<int64_t>(rows, some);
        auto x = Random(uint64_t(k)).floats(rows * k, 100.0f);
        x[0] = std::bit_cast<float>(0x3f808000u);  // halfway between two: the even one
        DeviceArray<float> dx(x);
        DeviceArray<uint16_t> out(rows * padded);
        DeviceArray<int32_t> num(std::vector<int32_t>{some});
        cuda::bf16_copy(dx.data(), rows, k, out.data(), padded, some < 0 ? nullptr : num.data(), {});
        std::vector<uint16_t> expected(size_t(rows * padded), 0xffff);
        for (int64_t r = 0; r < written; ++r)
          for (int64_t i = 0; i < padded; ++i)
            expected[size_t(r * padded + i)] = i < k ? f32_to_bf16(x[size_t(r * k + i)]) : uint16_t(0);
        ASSERT_EQ(out.host(), expected) << rows << " x " << k << ", " << some;
      }
}

}  // namespace
}  // namespace moectl::test
