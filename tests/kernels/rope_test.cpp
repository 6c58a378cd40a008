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

// Complex multiplication of each pair by (cos, sin); components behind rope_dim stay as they are.
TEST_P(RopeTest, RotatesPairsOrHalves) {
  for (bool interleaved : {false, true})
    for (auto [heads, head_dim, dim] : {std::array<int64_t, 3>{1, 2, 2}, {3, 24, 24}, {2, 48, 20}, {4, 128, 64}}) {
      constexpr int64_t kTokens = 5;
      const auto x = Random(1).floats(kTokens * heads * head_dim), cos_sin = Random(2).floats(kTokens * dim);
      auto out = x;
      ops().rope({View<float>(out.data(), {kTokens, heads, head_dim}),
                  View<const float>(cos_sin.data(), {kTokens, dim}), interleaved},
                 {});
      std::vector<Bounded> expected;
      for (int64_t row = 0; row < kTokens * heads; ++row)
        for (int64_t i = 0; i < head_dim; ++i) {
          const float* in = x.data() + row * head_dim;
          const float* table = cos_sin.data() + row / heads * dim;
          DotReference dot;
          if (i >= dim) {
            dot.add(1.0, double(in[i]));
          } else {
            const int64_t pair = interleaved ? i / 2 : i % (dim / 2);
            const bool second = interleaved ? i % 2 == 1 : i >= dim / 2;
            const double a = in[interleaved ? 2 * pair : pair], b = in[interleaved ? 2 * pair + 1 : pair + dim / 2];
            dot.add(second ? b : a, double(table[pair]));
            dot.add(second ? a : -b, double(table[dim / 2 + pair]));
          }
          expected.push_back(dot.result());
        }
      EXPECT_TRUE(close(out, expected, {kTokens, heads, head_dim}));
    }
}

}  // namespace
}  // namespace moectl::test
