#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(LinearTest);

std::vector<float> linear(Ops& ops, const Weight& weight, const std::vector<float>& x, int64_t num_rows) {
  std::vector<float> out(size_t(num_rows * weight.n), NAN);
  ops.linear({View<const float>(x.data(), {num_rows, weight.k}), weight, View<float>(out.data(), {num_rows, weight.n})},
             {});
  return out;
}

std::vector<Bounded> reference(const MatrixSpec& w, int64_t n, int64_t k, const std::vector<float>& x,
                               int64_t num_rows) {
  std::vector<Bounded> out;
  std::vector<double> values;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < k; ++j) values.push_back(weight_value(w, i, j));
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t i = 0; i < n; ++i) {
      DotReference dot;
      for (int64_t j = 0; j < k; ++j) dot.add(double(x[size_t(row * k + j)]), values[size_t(i * k + j)]);
      out.push_back(dot.result());
    }
  return out;
}

TEST_P(LinearTest, EveryDtypeAndShape) {
  for (DType dtype : weight_dtypes())
    for (const LinearShape& shape : linear_shapes()) {
      SCOPED_TRACE(fmt::format("{} [{}, {}]", dtype_name(dtype), shape.n, shape.k));
      const Matrix m = random_matrix(dtype, shape.n, shape.k, 1);
      const MatrixSpec spec = m.whole();
      const Weight weight = ops().pack({&spec, 1});
      EXPECT_EQ(weight.n, shape.n);
      EXPECT_EQ(weight.k, shape.k);
      for (int64_t num_rows : {1, 2, 3, 13}) {
        const std::vector<float> x = Random(2).floats(num_rows * shape.k);
        ASSERT_TRUE(close(linear(ops(), weight, x, num_rows), reference(spec, shape.n, shape.k, x, num_rows),
                          {num_rows, shape.n}))
            << num_rows << " rows";
      }
    }
}

// Every number of rows takes its own way through the row blocks; none may change a row's bits.
TEST_P(LinearTest, RowsDoNotDependOnCompany) {
  constexpr int64_t kRows = 70, kN = 150, kK = 260;
  for (DType dtype : weight_dtypes()) {
    SCOPED_TRACE(dtype_name(dtype));
    const Matrix m = random_matrix(dtype, kN, kK, 3);
    const MatrixSpec spec = m.whole();
    const Weight weight = ops().pack({&spec, 1});
    const std::vector<float> x = Random(4).floats(kRows * kK);
    std::vector<float> alone;
    for (int64_t row = 0; row < kRows; ++row)
      for (float v : linear(ops(), weight, row_of(x, row, kK), 1)) alone.push_back(v);
    ASSERT_TRUE(close(alone, reference(spec, kN, kK, x, kRows), {kRows, kN}));
    for (int64_t num_rows = 1; num_rows <= kRows; ++num_rows) {
      const std::vector<float> some(x.end() - num_rows * kK, x.end()),
          expected(alone.end() - num_rows * kN, alone.end());
      ASSERT_TRUE(same_bits(linear(ops(), weight, some, num_rows), expected, {num_rows, kN})) << num_rows << " rows";
    }
  }
}

TEST_P(LinearTest, Threads) {
  for (DType dtype : weight_dtypes()) {
    const Matrix m = random_matrix(dtype, 1000, 200, 5);
    const MatrixSpec spec = m.whole();
    for (int64_t num_rows : {1, 9, 40}) {
      const std::vector<float> x = Random(6).floats(num_rows * 200);
      expect_same_with_threads([&](Ops& o) { return linear(o, o.pack({&spec, 1}), x, num_rows); });
    }
  }
}

TEST_P(LinearTest, InfinityAndNanReachTheirPlaces) {
  const Matrix m = random_matrix(DType::kF32, 20, 30, 7);
  const MatrixSpec spec = m.whole();
  const Weight weight = ops().pack({&spec, 1});
  std::vector<float> x = Random(8).floats(3 * 30);
  x[30 + 5] = INFINITY;
  x[60 + 5] = NAN;
  const std::vector<float> out = linear(ops(), weight, x, 3);
  EXPECT_TRUE(close(row_of(out, 0, 20), reference(spec, 20, 30, row_of(x, 0, 30), 1)));
  for (int64_t n = 0; n < 20; ++n) {
    EXPECT_EQ(out[size_t(20 + n)], weight_value(spec, n, 5) > 0 ? INFINITY : -INFINITY);
    EXPECT_TRUE(std::isnan(out[size_t(40 + n)]));
  }
}

TEST_P(LinearTest, WrongSizesAreRefused) {
  const Matrix m = random_matrix(DType::kF32, 4, 8, 9);
  const MatrixSpec spec = m.whole();
  const Weight weight = ops().pack({&spec, 1});
  std::vector<float> x(9), out(4);
  EXPECT_THROW(ops().linear({View<const float>(x.data(), {1, 9}), weight, View<float>(out.data(), {1, 4})}, {}), Error);
}

TEST_P(LinearTest, Bias) {
  constexpr int64_t kN = 37, kK = 50, kRows = 9;
  for (DType dtype : weight_dtypes()) {
    const Matrix m = random_matrix(dtype, kN, kK, 1);
    const MatrixSpec spec = m.whole();
    const Weight weight = ops().pack({&spec, 1});
    const std::vector<float> x = Random(2).floats(kRows * kK), bias = Random(3).floats(kN);
    std::vector<float> out(size_t(kRows * kN), NAN), without = linear(ops(), weight, x, kRows);
    ops().linear({View<const float>(x.data(), {kRows, kK}), weight, View<float>(out.data(), {kRows, kN}),
                  View<const float>(bias.data(), {kN})},
                 {});
    for (int64_t i = 0; i < kRows * kN; ++i) ASSERT_EQ(out[size_t(i)], without[size_t(i)] + bias[size_t(i % kN)]) << i;
  }
}

}  // namespace
}  // namespace moectl::test
