#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(RmsNormTest);

struct Result {
  std::vector<float> out, residual;
};

Result rms_norm(Ops& ops, const std::vector<float>& x, std::vector<float> residual, const std::vector<float>& weight,
                float eps) {
  const int64_t size = int64_t(weight.size()), rows = int64_t(x.size()) / size;
  Result r = {std::vector<float>(x.size(), NAN), std::move(residual)};
  RmsNormArgs args;
  args.x = View<const float>(x.data(), {rows, size});
  if (!r.residual.empty()) args.residual = View<float>(r.residual.data(), {rows, size});
  args.weight = View<const float>(weight.data(), {size});
  args.out = View<float>(r.out.data(), {rows, size});
  args.eps = eps;
  ops.rms_norm(args, {});
  return r;
}

// Errors relative to the result: the sum of squares has tolerance dot/2 of it after the root, then five roundings.
std::vector<Bounded> reference(const std::vector<float>& x, const std::vector<float>& weight, float eps) {
  const size_t size = weight.size();
  std::vector<Bounded> out;
  for (size_t row = 0; row < x.size() / size; ++row) {
    double squares = 0;
    for (size_t i = 0; i < size; ++i) squares += double(x[row * size + i]) * x[row * size + i];
    const double inv = 1.0 / std::sqrt(squares / double(size) + double(eps));
    for (size_t i = 0; i < size; ++i) {
      const double v = double(x[row * size + i]) * inv * weight[i];
      out.push_back({v, std::abs(v) * (dot_tolerance(int64_t(size), 1.0) / 2 + 5 * unit_roundoff(DType::kF32))});
    }
  }
  return out;
}

TEST_P(RmsNormTest, Shapes) {
  for (int64_t size : {1, 7, 16, 17, 64, 100, 513, 7168})
    for (int64_t rows : {1, 2, 7}) {
      Random random(uint64_t(size * 10 + rows));
      const auto x = random.floats(rows * size, 3.0f), weight = random.floats(size);
      EXPECT_TRUE(close(rms_norm(ops(), x, {}, weight, 1e-6f).out, reference(x, weight, 1e-6f), {rows, size}));
      const auto residual = random.floats(rows * size, 2.0f);
      std::vector<float> sum(x.size());
      for (size_t i = 0; i < x.size(); ++i) sum[i] = residual[i] + x[i];
      const Result r = rms_norm(ops(), x, residual, weight, 1e-5f);
      EXPECT_TRUE(same_bits(r.residual, sum));
      EXPECT_TRUE(close(r.out, reference(sum, weight, 1e-5f), {rows, size}));
    }
}

TEST_P(RmsNormTest, ZerosAndInPlace) {
  const auto weight = Random(1).floats(40);
  std::vector<float> x(40, 0.0f);
  for (float v : rms_norm(ops(), x, {}, weight, 1e-6f).out) EXPECT_EQ(v, 0.0f);
  x = Random(2).floats(80);
  const auto expected = rms_norm(ops(), x, {}, weight, 1e-6f).out;
  RmsNormArgs args;
  args.x = View<const float>(x.data(), {2, 40});
  args.weight = View<const float>(weight.data(), {40});
  args.out = View<float>(x.data(), {2, 40});
  ops().rms_norm(args, {});
  EXPECT_TRUE(same_bits(x, expected));
}

TEST_P(RmsNormTest, SumsOfSquares) {
  for (int64_t size : {1, 7, 16, 100, 513}) {
    const auto x = Random(uint64_t(size)).floats(5 * size, 3.0f);
    std::vector<Bounded> expected;
    for (int64_t row = 0; row < 5; ++row) {
      DotReference sum;
      for (int64_t i = 0; i < size; ++i) sum.add(x[size_t(row * size + i)], x[size_t(row * size + i)]);
      expected.push_back(sum.result());
    }
    const auto sums = [&](Ops& o) {
      std::vector<float> out(5, NAN);
      o.sum_squares({View<const float>(x.data(), {5, size}), View<float>(out.data(), {5})}, {});
      return out;
    };
    EXPECT_TRUE(close(sums(ops()), expected));
    expect_same_with_threads(sums);
  }
}

// Rows in two parts: the sums of both, then each part's norm, in place, are the norm of the whole rows.
TEST_P(RmsNormTest, PartsOfRows) {
  constexpr int64_t kRows = 6, kWhole = 96;
  const auto x = Random(1).floats(kRows * kWhole, 3.0f), weight = Random(2).floats(kWhole);
  const auto expected = reference(x, weight, 1e-6f);
  for (int64_t split : {48, 16, 95}) {
    std::vector<float> sums(kRows, 0.0f), got(x.size());
    const auto for_each_part = [&](auto&& body) {
      for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, split}, {split, kWhole}}) {
        std::vector<float> part;
        for (int64_t row = 0; row < kRows; ++row)
          part.insert(part.end(), x.begin() + row * kWhole + begin, x.begin() + row * kWhole + end);
        body(begin, end - begin, part);
      }
    };
    for_each_part([&](int64_t, int64_t size, std::vector<float>& part) {
      std::vector<float> of_part(kRows);
      ops().sum_squares({View<const float>(part.data(), {kRows, size}), View<float>(of_part.data(), {kRows})}, {});
      for (size_t row = 0; row < kRows; ++row) sums[row] += of_part[row];
    });
    for_each_part([&](int64_t begin, int64_t size, std::vector<float>& part) {
      const View<float> rows(part.data(), {kRows, size});
      ops().rms_norm({.x = rows,
                      .weight = View<const float>(weight.data() + begin, {size}),
                      .out = rows,
                      .eps = 1e-6f,
                      .square_sums = View<const float>(sums.data(), {kRows}),
                      .whole_size = kWhole},
                     {});
      for (int64_t row = 0; row < kRows; ++row)
        std::copy_n(part.begin() + row * size, size, got.begin() + row * kWhole + begin);
    });
    EXPECT_TRUE(close(got, expected, {kRows, kWhole})) << "split at " << split;
  }
}

TEST_P(RmsNormTest, CompanyAndThreads) {
  const auto x = Random(3).floats(300 * 200), residual = Random(4).floats(300 * 200), weight = Random(5).floats(200);
  const Result all = rms_norm(ops(), x, residual, weight, 1e-6f);
  for (int64_t row : {0, 1, 150, 299})
    EXPECT_TRUE(same_bits(rms_norm(ops(), row_of(x, row, 200), row_of(residual, row, 200), weight, 1e-6f).out,
                          row_of(all.out, row, 200)));
  expect_same_with_threads([&](Ops& o) { return rms_norm(o, x, residual, weight, 1e-6f).out; });
}

}  // namespace
}  // namespace moectl::test
