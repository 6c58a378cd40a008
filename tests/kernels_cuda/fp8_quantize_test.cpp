// FP8 copies of activations against their definition (kernels/cuda/elementwise/fp8_quantize.h): scales exactly, numbers
// to the nearest e4m3, the fused forms within the error of what they are fused with.
#include "kernels/cuda/elementwise/fp8_quantize.h"
#include "kernels/cuda/elementwise/bf16_copy.h"
#include "kernels/cuda/elementwise/rms_norm.h"

#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

class Fp8QuantizeTest : public GpuTest {
 protected:
  struct Copy {
    std::vector<float> values;  // [rows, k], without the scale
    std::vector<float> scales;  // [rows, k / 128]
  };
  static Copy read(const DeviceArray<uint8_t>& memory, const cuda::Fp8Rows& a) {
    const auto bytes = memory.host();
    const auto* scales =
        reinterpret_cast<const float*>(bytes.data() + (reinterpret_cast<const uint8_t*>(a.scales) - memory.data()));
    Copy copy;
    for (int64_t r = 0; r < a.rows; ++r) {
      for (int64_t j = 0; j < a.k; ++j)
        copy.values.push_back(f8_e4m3_to_f32(bytes[size_t((j / kFp8Block * a.rows + r) * kFp8Block + j % kFp8Block)]));
      for (int64_t kb = 0; kb < a.k / kFp8Block; ++kb) copy.scales.push_back(scales[kb * a.scale_stride + r]);
    }
    return copy;
  }
  // `error`: how far the values that were quantised may be from `x`, relative.
  static void expect_copy(const Copy& copy, const std::vector<double>& x, int64_t rows, int64_t k, double error) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t kb = 0; kb < k / kFp8Block; ++kb) {
        double amax = 0;
        for (int64_t j = 0; j < kFp8Block; ++j) amax = std::max(amax, std::abs(x[size_t(r * k + kb * kFp8Block + j)]));
        const double scale = amax < 1e-30 ? 1.0 : amax / 448.0;
        const double got = copy.scales[size_t(r * (k / kFp8Block) + kb)];
        ASSERT_NEAR(got, scale, scale * (error + 2 * unit_roundoff(DType::kF32))) << r << ", block " << kb;
        for (int64_t j = 0; j < kFp8Block; ++j) {
          const size_t at = size_t(r * k + kb * kFp8Block + j);
          const double exact = x[at] / scale, number = copy.values[at];
          // Half a step of e4m3: 2^-4 of the number, 2^-10 below its smallest normal.
          const double half = std::max(std::abs(exact) * unit_roundoff(DType::kF8E4M3), 0x1p-10);
          ASSERT_NEAR(number, exact, half + std::abs(exact) * (error + 8 * unit_roundoff(DType::kF32)) + 448.0 * error)
              << r << ", " << kb * kFp8Block + j;
        }
      }
  }
};

std::vector<double> widened(const std::vector<float>& v) {
  return {v.begin(), v.end()};
}

TEST_F(Fp8QuantizeTest, Rows) {
  for (int64_t k : {128, 384, 7168})
    for (int64_t rows : {1, 5, 130}) {
      SCOPED_TRACE(fmt::format("[{}, {}]", rows, k));
      Random random(uint64_t(k + rows));
      auto x = random.floats(rows * k, 5.0f);
      for (int64_t j = 0; j < kFp8Block; ++j) x[size_t(j)] = 0.0f;  // a block of zeros
      if (rows > 1)
        for (int64_t j = 0; j < kFp8Block; ++j) x[size_t(k + j)] *= 1e-33f;  // one that is too small to scale
      if (rows > 2)
        for (int64_t j = 0; j < kFp8Block; ++j) x[size_t(2 * k + j)] *= 1e30f;
      DeviceArray<float> dx(x);
      DeviceArray<uint8_t> memory(cuda::fp8_rows_bytes(rows, k));
      const cuda::Fp8Rows a = cuda::fp8_rows_at(memory.data(), rows, k);
      cuda::fp8_quantize({.x = dx.data(), .out = a}, {});
      expect_copy(read(memory, a), widened(x), rows, k, 0.0);

      std::vector<uint16_t> bf16;
      std::vector<double> rounded;
      for (float v : x) bf16.push_back(f32_to_bf16(v)), rounded.push_back(bf16_to_f32(bf16.back()));
      DeviceArray<uint16_t> dx16(bf16);
      cuda::fp8_quantize({.x = dx16.data(), .type = DType::kBF16, .out = a}, {});
      expect_copy(read(memory, a), rounded, rows, k, 0.0);
    }
}

TEST_F(Fp8QuantizeTest, RowsBehindTheLastAreLeftAlone) {
  Random random(3);
  const int64_t rows = 9, k = 256;
  DeviceArray<float> x(random.floats(rows * k));
  DeviceArray<int32_t> num_rows(std::vector<int32_t>{4});
  DeviceArray<uint8_t> memory(cuda::fp8_rows_bytes(rows, k));
  const cuda::Fp8Rows a = cuda::fp8_rows_at(memory.data(), rows, k);
  cuda::fp8_quantize({.x = x.data(), .out = a, .num_rows = num_rows.data()}, {});
  const Copy copy = read(memory, a);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < k; ++j) ASSERT_EQ(std::isnan(copy.values[size_t(r * k + j)]), r >= 4) << r;
}

TEST_F(Fp8QuantizeTest, RmsNorm) {
  for (int64_t k : {128, 1536, 7168, 16384})
    for (int64_t rows : {1, 7})
      for (bool with_residual : {false, true}) {
        SCOPED_TRACE(fmt::format("[{}, {}], residual {}", rows, k, with_residual));
        Random random(uint64_t(k * 3 + rows));
        const auto x = random.floats(rows * k, 3.0f), residual = random.floats(rows * k, 2.0f),
                   weight = random.floats(k);
        auto sum = x;
        for (size_t i = 0; with_residual && i < sum.size(); ++i) sum[i] = residual[i] + x[i];
        const double error = dot_tolerance(k, 1.0) / 2 + 8 * unit_roundoff(DType::kF32);
        std::vector<double> expected;
        std::vector<Bounded> bounded;
        for (int64_t r = 0; r < rows; ++r) {
          double squares = 0;
          for (int64_t j = 0; j < k; ++j) squares += std::pow(double(sum[size_t(r * k + j)]), 2);
          const double inv = 1.0 / std::sqrt(squares / double(k) + 1e-6);
          for (int64_t j = 0; j < k; ++j) {
            expected.push_back(double(sum[size_t(r * k + j)]) * inv * double(weight[size_t(j)]));
            bounded.push_back({expected.back(), std::abs(expected.back()) * error});
          }
        }
        DeviceArray<float> dx(x), dr(residual), dw(weight), out(rows * k);
        DeviceArray<uint8_t> memory(cuda::fp8_rows_bytes(rows, k));
        const cuda::Fp8Rows a = cuda::fp8_rows_at(memory.data(), rows, k);
        RmsNormArgs args;
        args.x = View<const float>(dx.data(), {rows, k});
        if (with_residual) args.residual = View<float>(dr.data(), {rows, k});
        args.weight = View<const float>(dw.data(), {k});
        DeviceArray<uint16_t> bf16(rows * k), expected_bf16(rows * k);
        args.out.set(View<float>(out.data(), {rows, k}));
        args.out.set(Operand(bf16.data(), DType::kBF16, {rows, k}));
        args.out.set(Operand(memory.data(), DType::kF8E4M3, {rows, k}));
        cuda::rms_norm(args, {});
        cuda::bf16_copy(out.data(), rows, k, expected_bf16.data(), k, nullptr, {});
        ASSERT_EQ(bf16.host(), expected_bf16.host());
        expect_copy(read(memory, a), expected, rows, k, error);
        ASSERT_TRUE(close(out.host(), bounded, {rows, k}));
        if (with_residual) {
          ASSERT_TRUE(same_bits(dr.host(), sum));
        }
      }
}

}  // namespace
}  // namespace moectl::test
