// The CUDA RMSNorm against its definition in double precision.
#include "kernels/cuda/elementwise/rms_norm.h"

#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

using RmsNormCudaTest = GpuTest;

struct Result {
  std::vector<float> out, residual;
};

Result rms_norm(const std::vector<float>& x, const std::vector<float>& residual, const std::vector<float>& weight,
                bool in_place) {
  const int64_t size = int64_t(weight.size()), rows = int64_t(x.size()) / size;
  DeviceArray<float> dx(x), dr(residual), dw(weight), dout(int64_t(x.size()));
  RmsNormArgs args;
  args.x = View<const float>(dx.data(), {rows, size});
  if (!residual.empty()) args.residual = View<float>(dr.data(), {rows, size});
  args.weight = View<const float>(dw.data(), {size});
  args.out = View<float>(in_place ? dx.data() : dout.data(), {rows, size});
  cuda::rms_norm(args, {});
  return {in_place ? dx.host() : dout.host(), dr.host()};
}

TEST_F(RmsNormCudaTest, Shapes) {
  for (int64_t size :
       {1, 4, 7, 31, 33, 124, 128, 132, 255, 256, 257, 512, 516, 1000, 4096, 4100, 7168, 8196, 16384, 16388})
    for (int64_t rows : {1, 2, 300})
      for (bool with_residual : {false, true}) {
        SCOPED_TRACE(fmt::format("[{}, {}], residual {}", rows, size, with_residual));
        Random random(uint64_t(size * 1000 + rows));
        const auto x = random.floats(rows * size, 3.0f), weight = random.floats(size);
        auto sum = x;
        std::vector<float> residual;
        if (with_residual) {
          residual = random.floats(rows * size, 2.0f);
          for (size_t i = 0; i < x.size(); ++i) sum[i] = residual[i] + x[i];
        }
        std::vector<Bounded> expected;
        for (int64_t row = 0; row < rows; ++row) {
          double squares = 0;
          for (int64_t i = 0; i < size; ++i) squares += std::pow(double(sum[size_t(row * size + i)]), 2);
          const double inv = 1.0 / std::sqrt(squares / double(size) + double(RmsNormArgs{}.eps));
          for (int64_t i = 0; i < size; ++i) {
            const double v = double(sum[size_t(row * size + i)]) * inv * double(weight[size_t(i)]);
            expected.push_back({v, std::abs(v) * (dot_tolerance(size, 1.0) / 2 + 5 * unit_roundoff(DType::kF32))});
          }
        }
        const Result r = rms_norm(x, residual, weight, false);
        ASSERT_TRUE(close(r.out, expected, {rows, size}));
        if (with_residual) {
          ASSERT_TRUE(same_bits(r.residual, sum));
        }
        ASSERT_TRUE(same_bits(rms_norm(x, residual, weight, true).out, r.out)) << "in place";
        ASSERT_TRUE(same_bits(rms_norm(row_of(x, rows - 1, size),
                                       with_residual ? row_of(residual, rows - 1, size) : residual, weight, false)
                                  .out,
                              row_of(r.out, rows - 1, size)))
            << "the last row alone";
      }
}

// Rows that begin at no multiple of 16 bytes take the narrow kernel.
TEST_F(RmsNormCudaTest, UnalignedRows) {
  constexpr int64_t kRows = 3, kSize = 128;
  const auto x = Random(1).floats(1 + kRows * kSize, 3.0f), weight = Random(2).floats(kSize);
  DeviceArray<float> dx(x), dw(weight), out(kRows * kSize);
  RmsNormArgs args;
  args.x = View<const float>(dx.data() + 1, {kRows, kSize});
  args.weight = View<const float>(dw.data(), {kSize});
  args.out = View<float>(out.data(), {kRows, kSize});
  cuda::rms_norm(args, {});
  std::vector<Bounded> expected;
  for (int64_t row = 0; row < kRows; ++row) {
    double squares = 0;
    for (int64_t i = 0; i < kSize; ++i) squares += std::pow(double(x[size_t(1 + row * kSize + i)]), 2);
    const double inv = 1.0 / std::sqrt(squares / double(kSize) + double(RmsNormArgs{}.eps));
    for (int64_t i = 0; i < kSize; ++i) {
      const double v = double(x[size_t(1 + row * kSize + i)]) * inv * double(weight[size_t(i)]);
      expected.push_back({v, std::abs(v) * (dot_tolerance(kSize, 1.0) / 2 + 5 * unit_roundoff(DType::kF32))});
    }
  }
  ASSERT_TRUE(close(out.host(), expected, {kRows, kSize}));
}

TEST_F(RmsNormCudaTest, WrongSizesAreRefused) {
  float* none = nullptr;
  const float weight = 1.0f;  // refused before anybody reads it; no weight at all would mean ones
  RmsNormArgs args;
  args.x = View<const float>(none, {2, 8});
  args.weight = View<const float>(&weight, {7});
  args.out = View<float>(none, {2, 8});
  EXPECT_THROW(cuda::rms_norm(args, {}), Error);
}

}  // namespace
}  // namespace moectl::test
