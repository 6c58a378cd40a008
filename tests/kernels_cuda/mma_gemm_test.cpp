// The tensor-core product of every dtype against a sum in f64 of the operands rounded to bf16: odd sizes, strides per
// head, rows of experts, and batch invariance.
#include "kernels/cuda/gemm/plain_gemm.h"
#include "kernels/cuda/runtime/cuda_ops.h"
#include "tests/harness/quantized.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

class MmaGemmTest : public GpuTest {};

double bf16(double x) {
  return double(bf16_to_f32(f32_to_bf16(float(x))));
}

// Products of two bf16 values are exact in f32. The tensor cores truncate what they add where others round: twice the
// bound of a sum of K terms.
class Dot {
 public:
  void add(double x, double w) {
    sum_ += bf16(x) * bf16(w);
    magnitude_ += std::abs(bf16(x) * bf16(w));
    ++k_;
  }
  Bounded result() const { return rounded(sum_, 2 * double(k_ + 1) * unit_roundoff(DType::kF32) * magnitude_); }

 private:
  double sum_ = 0.0, magnitude_ = 0.0;
  int64_t k_ = 0;
};

struct Problem {
  int64_t n, k;
  Weight weight;
  std::vector<double> values;  // [n, k]: element times scale, rounded once to f32
};

std::vector<float> run(const cuda::PlainGemm& p, const std::vector<float>& x, int64_t out_size) {
  DeviceArray<float> dx(x), out(out_size);
  cuda::PlainGemm q = p;
  q.x = dx.data();
  q.out = out.data();
  cuda::mma_gemm(q, {});
  return out.host();
}

void expect_product(const Problem& w, int64_t rows) {
  const auto x = Random(uint64_t(rows)).floats(rows * w.k);
  cuda::PlainGemm p = {.w = cuda::matrix_of(w.weight), .x_row = w.k, .out_row = w.n, .num_rows = rows};
  const auto fast = run(p, x, rows * w.n);
  p.deterministic = true;
  const auto out = run(p, x, rows * w.n);
  std::vector<Bounded> expected;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < w.n; ++i) {
      Dot dot;
      for (int64_t j = 0; j < w.k; ++j) dot.add(double(x[size_t(r * w.k + j)]), w.values[size_t(i * w.k + j)]);
      expected.push_back(dot.result());
    }
  ASSERT_TRUE(close(out, expected, {rows, w.n})) << rows << " rows";
  ASSERT_TRUE(close(fast, expected, {rows, w.n})) << rows << " rows, as is fastest";
  // Other numbers of rows take other tiles.
  for (int64_t first : {int64_t{0}, rows / 2, rows - 1})
    for (int64_t num : {int64_t{1}, int64_t{20}, int64_t{40}}) {
      if (first + num > rows) continue;
      cuda::PlainGemm some = p;
      some.num_rows = num;
      const std::vector<float> part(x.begin() + first * w.k, x.begin() + (first + num) * w.k);
      ASSERT_TRUE(same_bits(run(some, part, num * w.n), std::span(out).subspan(size_t(first * w.n), size_t(num * w.n)),
                            {num, w.n}))
          << num << " rows from " << first << " of " << rows;
    }
}

TEST_F(MmaGemmTest, EveryFormat) {
  const auto ops = make_ops({.device = "cuda"});
  for (const QuantFormat& format : quant_formats())
    for (auto [n, k] : std::vector<std::pair<int64_t, int64_t>>{{8, 16}, {136, 80}, {200, 384}, {128, 128}}) {
      const QuantMatrix m = random_quantized(format, n, k, 4);
      const MatrixSpec spec = m.whole();
      Problem w = {n, k, pack_and_wait(*ops, {&spec, 1}), {}};
      SCOPED_TRACE(fmt::format("{} [{}, {}]", format.name, n, k));
      if (format.block_k % 16 != 0) continue;
      ASSERT_TRUE(cuda::mma_gemm_fits(cuda::matrix_of(w.weight)));
      for (double v : m.values) w.values.push_back(double(float(v)));
      for (int64_t rows : {1, 7, 9, 33, 130}) expect_product(w, rows);
    }
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    const Matrix m = random_matrix(dtype, 67, 208, 5);
    const MatrixSpec spec = m.whole();
    Problem w = {67, 208, pack_and_wait(*ops, {&spec, 1}), {}};
    SCOPED_TRACE(dtype_name(dtype));
    for (int64_t i = 0; i < 67; ++i)
      for (int64_t j = 0; j < 208; ++j) w.values.push_back(weight_value(spec, i, j));
    for (int64_t rows : {1, 8, 64, 65}) expect_product(w, rows);
  }
}

// Heads of one activation tensor as batches, and rows of experts by offsets, give what single products give.
TEST_F(MmaGemmTest, BatchesAndOffsets) {
  const auto ops = make_ops({.device = "cuda"});
  constexpr int64_t kBatch = 5, kN = 72, kK = 96, kRows = 21;
  std::vector<Matrix> matrices;
  std::vector<MatrixSpec> specs;
  for (uint64_t i = 0; i < kBatch + 1; ++i) matrices.push_back(random_matrix(DType::kF8E4M3, kN, kK, i));
  for (const Matrix& m : matrices) specs.push_back(m.whole());
  const Weight all = pack_and_wait(*ops, specs);
  const auto x = Random(9).floats(kRows * kBatch * kK), bias = Random(10).floats((kBatch + 1) * kN),
             scale = Random(11).floats(kRows * kBatch);
  DeviceArray<float> dbias(bias), dscale(scale);

  auto alone = [&](int64_t entry, const std::vector<float>& rows) {
    return run({.w = cuda::matrix_of(all),
                .w_begin = entry,
                .x_row = kK,
                .out_row = kN,
                .num_rows = int64_t(rows.size()) / kK,
                .deterministic = true},
               rows, int64_t(rows.size()) / kK * kN);
  };
  const auto heads = run({.w = cuda::matrix_of(all),
                          .w_begin = 1,
                          .num_batches = kBatch,
                          .x_row = kBatch * kK,
                          .x_batch = kK,
                          .out_row = kBatch * kN,
                          .out_batch = kN,
                          .num_rows = kRows,
                          .deterministic = true},
                         x, kRows * kBatch * kN);
  for (int64_t h = 0; h < kBatch; ++h) {
    std::vector<float> rows, got;
    for (int64_t t = 0; t < kRows; ++t) {
      rows.insert(rows.end(), x.begin() + (t * kBatch + h) * kK, x.begin() + (t * kBatch + h + 1) * kK);
      got.insert(got.end(), heads.begin() + (t * kBatch + h) * kN, heads.begin() + (t * kBatch + h + 1) * kN);
    }
    ASSERT_TRUE(same_bits(got, alone(1 + h, rows), {kRows, kN})) << "head " << h;
  }

  const std::vector<int32_t> offsets = {0, 0, 3, 100, 100, 105};
  DeviceArray<int32_t> doffsets(offsets);
  cuda::PlainGemm p = {.w = cuda::matrix_of(all),
                       .w_begin = 1,
                       .num_batches = kBatch,
                       .x_row = kK,
                       .out_row = kN,
                       .offsets = doffsets.data(),
                       .num_rows = kRows * kBatch,
                       .deterministic = true,
                       .row_scale = dscale.data(),
                       .bias = dbias.data()};
  const auto grouped = run(p, x, kRows * kBatch * kN);
  for (size_t e = 0; e < kBatch; ++e) {
    const int64_t begin = offsets[e], end = offsets[e + 1];
    const auto product = alone(int64_t(1 + e), {x.begin() + begin * kK, x.begin() + end * kK});
    for (int64_t r = begin; r < end; ++r)
      for (int64_t i = 0; i < kN; ++i) {
        const double value = double(product[size_t((r - begin) * kN + i)]) * double(scale[size_t(r)]) +
                             double(bias[(1 + e) * kN + size_t(i)]);
        ASSERT_NEAR(double(grouped[size_t(r * kN + i)]), value, 4e-7 * (std::abs(value) + 1)) << r << ", " << i;
      }
  }
}

}  // namespace
}  // namespace moectl::test
