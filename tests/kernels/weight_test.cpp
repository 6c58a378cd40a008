// Packing: what a Weight multiplies is exactly what the checkpoint holds.
#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(WeightTest);

// Multiplies by unit vectors, which reads every element back exactly (FP8: value * scale, one rounding).
void expect_holds(Ops& ops, const Weight& weight, const MatrixSpec& spec) {
  std::vector<float> x(size_t(weight.k)), out(size_t(weight.n));
  for (int64_t k = 0; k < weight.k; ++k) {
    x[size_t(k)] = 1.0f;
    ops.linear({View<const float>(x.data(), {1, weight.k}), weight, View<float>(out.data(), {1, weight.n})}, {});
    x[size_t(k)] = 0.0f;
    for (int64_t n = 0; n < weight.n; ++n) ASSERT_EQ(out[size_t(n)], float(weight_value(spec, n, k))) << n << ", " << k;
  }
}

TEST_P(WeightTest, RectanglesAnywhereInTheBlockGrid) {
  for (DType dtype : weight_dtypes()) {
    const Matrix m = random_matrix(dtype, 300, 290, 1);
    for (auto [row, rows, col, cols] : std::vector<std::array<int64_t, 4>>{{0, 300, 0, 290},
                                                                           {1, 20, 127, 3},
                                                                           {127, 2, 100, 190},
                                                                           {128, 128, 128, 128},
                                                                           {130, 170, 5, 129},
                                                                           {299, 1, 289, 1}})
      for (bool transpose : {false, true}) {
        SCOPED_TRACE(fmt::format("{} rows {} + {} columns {} + {} transpose {}", dtype_name(dtype), row, rows, col,
                                 cols, transpose));
        const MatrixSpec spec = m.rectangle(row, rows, col, cols, transpose);
        const Weight weight = ops().pack({&spec, 1});
        ASSERT_EQ(weight.n, transpose ? cols : rows);
        ASSERT_EQ(weight.k, transpose ? rows : cols);
        expect_holds(ops(), weight, spec);
      }
  }
}

TEST_P(WeightTest, EveryFp8ValueIsExact) {
  Matrix m = random_matrix(DType::kF8E4M3, 2, 127, 2);
  const float one = 1.0f;
  std::memcpy(m.scale(0, 0), &one, sizeof one);
  for (int b = 0; b < 127; ++b) {
    *m.element(0, b) = std::byte(b);
    *m.element(1, b) = std::byte(b | 0x80);
  }
  const MatrixSpec spec = m.whole();
  const Weight weight = ops().pack({&spec, 1});
  for (int64_t num_rows : {int64_t{1}, int64_t{127}}) {  // widened in registers, widened to a strip
    std::vector<float> x(size_t(127 * 127)), out(size_t(127 * 2));
    for (int64_t i = 0; i < 127; ++i) x[size_t(i * 127 + i)] = 1.0f;
    for (int64_t begin = 0; begin < 127; begin += num_rows)
      ops().linear({View<const float>(x.data() + begin * 127, {num_rows, 127}), weight,
                    View<float>(out.data() + begin * 2, {num_rows, 2})},
                   {});
    for (int b = 0; b < 127; ++b) {
      const int exponent = b >> 3, mantissa = b & 7;
      const float value =
          exponent ? std::ldexp(1.0f + float(mantissa) / 8.0f, exponent - 7) : std::ldexp(float(mantissa), -9);
      ASSERT_EQ(out[size_t(2 * b)], value) << "byte " << b;
      ASSERT_EQ(out[size_t(2 * b + 1)], -value) << "byte " << (b | 0x80);
    }
  }
}

void expect_bad_data(Ops& ops, const MatrixSpec& spec, const char* what) {
  try {
    ops.pack({&spec, 1});
    ADD_FAILURE() << what << " was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kBadData) << what;
    EXPECT_NE(std::string(e.what()).find("random matrix"), std::string::npos) << e.what();
  }
}

TEST_P(WeightTest, NanBytesAreRefused) {
  for (int nan : {0x7f, 0xff})
    for (auto [row, col] : {std::pair<int64_t, int64_t>{0, 0}, {200, 150}, {299, 289}}) {
      Matrix m = random_matrix(DType::kF8E4M3, 300, 290, 3);
      *m.element(row, col) = std::byte(nan);
      expect_bad_data(ops(), m.whole(), "NaN in a whole matrix");
      expect_bad_data(ops(), m.rectangle(row, 1, col, 1), "NaN in a rectangle");
      expect_bad_data(ops(), m.rectangle(row, 1, col, 1, true), "NaN in a transposed rectangle");
    }
}

TEST_P(WeightTest, ScalesThatAreNotFiniteAreRefused) {
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    Matrix m = random_matrix(DType::kF8E4M3, 300, 290, 4);
    std::memcpy(m.scale(2, 2), &bad, sizeof bad);
    expect_bad_data(ops(), m.whole(), "a scale");
    expect_bad_data(ops(), m.rectangle(256, 44, 256, 34, true), "a scale of a transposed rectangle");
    const MatrixSpec elsewhere = m.rectangle(0, 256, 0, 290);
    EXPECT_NO_THROW(ops().pack({&elsewhere, 1}));
  }
}

TEST_P(WeightTest, BatchEntriesMayLieDifferentlyInTheGrid) {
  const Matrix m = random_matrix(DType::kF8E4M3, 300, 290, 5);
  const std::vector<MatrixSpec> batch = {m.rectangle(0, 40, 0, 140), m.rectangle(100, 40, 100, 140),
                                         m.rectangle(3, 140, 120, 40, true)};
  const Weight weight = ops().pack(batch);
  ASSERT_EQ(weight.batch, 3);
  // mla_output multiplies by batch entry h for head h.
  std::vector<float> latent(size_t(3 * 140)), out(size_t(3 * 40));
  for (int64_t k = 0; k < 140; ++k) {
    for (int64_t h = 0; h < 3; ++h) latent[size_t(h * 140 + k)] = 1.0f;
    ops().mla_output({View<const float>(latent.data(), {1, 3, 140}), weight, View<float>(out.data(), {1, 3, 40})}, {});
    for (int64_t h = 0; h < 3; ++h) {
      latent[size_t(h * 140 + k)] = 0.0f;
      for (int64_t n = 0; n < 40; ++n)
        ASSERT_EQ(out[size_t(h * 40 + n)], float(weight_value(batch[size_t(h)], n, k))) << h << ", " << n << ", " << k;
    }
  }
}

TEST_P(WeightTest, EntriesOfDifferentShapeAreRefused) {
  const Matrix m = random_matrix(DType::kF32, 20, 20, 6);
  const std::vector<MatrixSpec> batch = {m.rectangle(0, 4, 0, 8), m.rectangle(0, 4, 0, 9)};
  EXPECT_THROW(ops().pack(batch), Error);
  const MatrixSpec empty = m.rectangle(0, 0, 0, 8);
  EXPECT_THROW(ops().pack({&empty, 1}), Error);
}

}  // namespace
}  // namespace moectl::test
