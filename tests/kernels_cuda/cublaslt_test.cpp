// cuBLASLt through our declarations against plain loops in double precision: operand order, layouts of scales. Skipped
// where the library or the GPU is missing; that its absence is told, and what is refused, is tested everywhere.
#include "kernels/cuda/gemm/cublaslt.h"

#include <gmock/gmock.h>

#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

using cuda::CublasLt;
using cuda::LtMatmulArgs;
using cuda::LtScales;

class CublasLtTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped() && !CublasLt::get().is_present()) GTEST_SKIP() << CublasLt::get().why_absent();
  }
};

struct Problem {
  int64_t m, n, k;
  DType dtype;
  LtScales scales;
};

int64_t round_up(int64_t v, int64_t to) {
  return (v + to - 1) / to * to;
}

void expect_right(const Problem& p) {
  SCOPED_TRACE(fmt::format("{} x {} x {}, {}", p.m, p.n, p.k, dtype_info(p.dtype).name));
  const bool f8 = p.dtype == DType::kF8E4M3, block = p.scales == LtScales::kBlock;
  Random random(uint64_t(p.m * 1000003 + p.n * 1009 + p.k));
  // Elements as stored, and their values.
  std::vector<uint8_t> bytes[2];
  std::vector<double> values[2];
  for (int side = 0; side < 2; ++side)
    for (int64_t i = 0; i < (side ? p.n : p.m) * p.k; ++i) {
      if (f8) {
        const uint8_t b = uint8_t(random.below(2) << 7 | random.below(0x60));  // up to 32
        bytes[side].push_back(b);
        values[side].push_back(f8_e4m3_to_f32(b));
      } else {
        const uint16_t h = f32_to_bf16(random.uniform(-1, 1));
        bytes[side].push_back(uint8_t(h));
        bytes[side].push_back(uint8_t(h >> 8));
        values[side].push_back(bf16_to_f32(h));
      }
    }
  const int64_t blocks = round_up(p.k, 128) / 128, padded_blocks = round_up(blocks, 4);
  std::vector<float> x_scales(block ? size_t(blocks * p.m) : 1),
      w_scales(block ? size_t(round_up(p.n, 128) / 128 * padded_blocks) : 1);
  for (auto* scales : {&x_scales, &w_scales})
    for (float& s : *scales) s = random.uniform(0.01f, 0.1f);
  const auto x_scale = [&](int64_t i, int64_t b) {
    return !f8 ? 1.0 : double(x_scales[block ? size_t(b * p.m + i) : 0]);
  };
  const auto w_scale = [&](int64_t j, int64_t b) {
    return !f8 ? 1.0 : double(w_scales[block ? size_t(j / 128 * padded_blocks + b) : 0]);
  };

  const DeviceArray<uint8_t> x(bytes[0]), w(bytes[1]);
  const DeviceArray<float> dx_scales(x_scales), dw_scales(w_scales);
  const DeviceArray<uint16_t> out(p.m * p.n);
  const DeviceArray<uint8_t> workspace(cuda::kLtWorkspaceBytes);
  LtMatmulArgs args{.m = p.m, .n = p.n, .k = p.k, .dtype = p.dtype, .scales = p.scales};
  args.x = x.data();
  args.w = w.data();
  args.out = out.data();
  args.x_scales = dx_scales.data();
  args.w_scales = dw_scales.data();
  args.workspace = workspace.data();
  ASSERT_EQ(CublasLt::get().why_unsupported(args), "");
  CublasLt::get().matmul(args, {});
  const std::vector<uint16_t> got = out.host();
  for (int64_t i = 0; i < p.m; ++i)
    for (int64_t j = 0; j < p.n; ++j) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < p.k; ++k) {
        const double v =
            values[0][size_t(i * p.k + k)] * values[1][size_t(j * p.k + k)] * x_scale(i, k / 128) * w_scale(j, k / 128);
        sum += v;
        magnitude += std::abs(v);
      }
      // The result is rounded to bf16; the matrix unit keeps FP8 sums to about 13 bits for a while.
      const double tolerance = std::abs(sum) * 0x1p-8 + magnitude * (f8 ? 0x1p-12 : 0x1p-18);
      ASSERT_NEAR(double(bf16_to_f32(got[size_t(i * p.n + j)])), sum, tolerance) << i << ", " << j;
    }
}

TEST_F(CublasLtTest, Bf16) {
  expect_right({16, 256, 384, DType::kBF16, LtScales::kNone});
  expect_right({129, 72, 200, DType::kBF16, LtScales::kNone});
}

TEST_F(CublasLtTest, Fp8WithTensorScales) {
  if (!takes_hopper_kernels()) GTEST_SKIP() << "FP8 products are tested on compute capability 9.0";
  expect_right({32, 256, 384, DType::kF8E4M3, LtScales::kTensor});
}

TEST_F(CublasLtTest, Fp8WithBlockScales) {
  if (!takes_hopper_kernels()) GTEST_SKIP() << "block scales are tested on compute capability 9.0";
  expect_right({64, 256, 512, DType::kF8E4M3, LtScales::kBlock});
  expect_right({32, 384, 640, DType::kF8E4M3, LtScales::kBlock});
}

TEST(CublasLtAnywhere, AbsenceHasAReason) {
  const CublasLt& library = CublasLt::get();
  EXPECT_EQ(library.is_present(), library.why_absent().empty());
  EXPECT_EQ(library.is_present(), !library.version().empty());
  if (!library.is_present()) {
    EXPECT_THAT(library.why_absent(), testing::HasSubstr("LD_LIBRARY_PATH"));
    EXPECT_EQ(CublasLt::get().why_unsupported({}), library.why_absent());
    EXPECT_THROW(CublasLt::get().matmul({}, {}), Error);
  }
}

}  // namespace
}  // namespace moectl::test
