#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(RopeTest);

TEST_P(RopeTest, CosinesAndSines) {
  for (int64_t dim : {2, 6, 64, 128})
    for (float factor : {1.0f, 0.7071f}) {
      const std::vector<int32_t> positions = {0, 1, 63, 64, 4095, 163839};
      std::vector<float> inv_freq, table(positions.size() * size_t(dim), NAN);
      for (int64_t i = 0; i < dim / 2; ++i)
        inv_freq.push_back(float(std::pow(10000.0, -2.0 * double(i) / double(dim))));
      ops().rope_table({View<const int32_t>(positions.data(), {int64_t(positions.size())}),
                        View<const float>(inv_freq.data(), {dim / 2}), factor,
                        View<float>(table.data(), {int64_t(positions.size()), dim})},
                       {});
      std::vector<Bounded> expected;
      const double u = unit_roundoff(DType::kF32);
      for (int32_t p : positions)
        for (bool sine : {false, true})
          for (float f : inv_freq) {
            const double angle = double(p) * double(f),
                         value = (sine ? std::sin(angle) : std::cos(angle)) * double(factor);
            expected.push_back(
                rounded(value, double(factor) * (2 * u * angle + u)));  // the angle may be rounded to f32
          }
      EXPECT_TRUE(close(table, expected, {int64_t(positions.size()), dim}));
      EXPECT_EQ(table[0], factor);
      EXPECT_EQ(table[size_t(dim / 2)], 0.0f);
    }
}

}  // namespace
}  // namespace moectl::test
