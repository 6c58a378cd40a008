// The scaled formats (quantized.h): packing holds every number exactly, and products are right and do not depend on
// company, threads, or the way through the kernels.
#include "tests/harness/quantized.h"

#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(QuantizedTest);

std::vector<float> linear(Ops& ops, const Weight& weight, const std::vector<float>& x, int64_t num_rows) {
  std::vector<float> out(size_t(num_rows * weight.n), NAN);
  ops.linear({View<const float>(x.data(), {num_rows, weight.k}), weight, View<float>(out.data(), {num_rows, weight.n})},
             {});
  return out;
}

// Rows of the identity read every weight back: scale * number, one rounding at most.
void expect_holds(Ops& ops, const QuantMatrix& m, const MatrixSpec& spec) {
  const Weight weight = ops.pack({&spec, 1});
  ASSERT_EQ(weight.n, spec.transpose ? spec.num_cols : spec.num_rows);
  ASSERT_EQ(weight.k, spec.transpose ? spec.num_rows : spec.num_cols);
  for (int64_t num_rows : {int64_t{1}, int64_t{16}})  // in registers, in widened strips
    for (int64_t k0 = 0; k0 < weight.k; k0 += num_rows) {
      std::vector<float> x(size_t(num_rows * weight.k));
      for (int64_t r = 0; r < num_rows && k0 + r < weight.k; ++r) x[size_t(r * weight.k + k0 + r)] = 1.0f;
      const std::vector<float> out = linear(ops, weight, x, num_rows);
      for (int64_t r = 0; r < num_rows && k0 + r < weight.k; ++r)
        for (int64_t n = 0; n < weight.n; ++n)
          ASSERT_EQ(out[size_t(r * weight.n + n)], float(m.value(spec, n, k0 + r)))
              << n << ", " << k0 + r << ", " << num_rows << " rows";
    }
}

TEST_P(QuantizedTest, HoldsTheNumbers) {
  for (const QuantFormat& format : quant_formats()) {
    SCOPED_TRACE(format.name);
    // AWQ's rows come in eights; the others' rows and columns end anywhere.
    const int64_t rows = format.order == NibbleOrder::kAwq ? 88 : 83;
    const QuantMatrix m = random_quantized(format, rows, 203, 1);
    expect_holds(ops(), m, m.whole());
  }
}

TEST_P(QuantizedTest, Rectangles) {
  for (const QuantFormat& format : quant_formats()) {
    const QuantMatrix m = random_quantized(format, 160, 290, 2);
    for (auto [row, rows, col, cols] : std::vector<std::array<int64_t, 4>>{
             {16, 40, 128, 64}, {1, 20, 127, 3}, {127, 2, 100, 150}, {130, 30, 5, 129}, {159, 1, 289, 1}})
      for (bool transpose : {false, true})
        for (int64_t step : {1, 2}) {
          SCOPED_TRACE(fmt::format("{} rows {} + {} columns {} + {} transpose {} step {}", format.name, row, rows, col,
                                   cols, transpose, step));
          MatrixSpec spec = m.whole();
          spec.row_begin = row;
          spec.num_rows = (rows + step - 1) / step;
          spec.row_step = step;
          spec.col_begin = col;
          spec.num_cols = (cols + step - 1) / step;
          spec.col_step = step;
          spec.transpose = transpose;
          expect_holds(ops(), m, spec);
        }
  }
}

// Gate and up of gpt-oss: every other row, from 0 and from 1.
TEST_P(QuantizedTest, InterleavedRows) {
  for (const QuantFormat& format : quant_formats()) {
    SCOPED_TRACE(format.name);
    const QuantMatrix m = random_quantized(format, 80, 160, 3);
    for (int64_t first : {0, 1}) {
      MatrixSpec spec = m.whole();
      spec.row_begin = first;
      spec.num_rows = 40;
      spec.row_step = 2;
      expect_holds(ops(), m, spec);
    }
  }
}

std::vector<Bounded> reference(const QuantMatrix& m, const std::vector<float>& x, int64_t num_rows) {
  std::vector<Bounded> out;
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t n = 0; n < m.rows; ++n) {
      DotReference dot;
      for (int64_t k = 0; k < m.cols; ++k) dot.add(double(x[size_t(row * m.cols + k)]), m.value(n, k));
      out.push_back(dot.result());
    }
  return out;
}

TEST_P(QuantizedTest, ProductsOfEveryShape) {
  for (const QuantFormat& format : quant_formats())
    for (const LinearShape& shape : linear_shapes()) {
      const int64_t n = format.order == NibbleOrder::kAwq ? (shape.n + 7) / 8 * 8 : shape.n;
      SCOPED_TRACE(fmt::format("{} [{}, {}]", format.name, n, shape.k));
      const QuantMatrix m = random_quantized(format, n, shape.k, 4);
      const MatrixSpec spec = m.whole();
      const Weight weight = ops().pack({&spec, 1});
      for (int64_t num_rows : {1, 2, 5, 13}) {
        const std::vector<float> x = Random(5).floats(num_rows * shape.k);
        ASSERT_TRUE(close(linear(ops(), weight, x, num_rows), reference(m, x, num_rows), {num_rows, n}))
            << num_rows << " rows";
      }
    }
}

TEST_P(QuantizedTest, RowsDoNotDependOnCompany) {
  constexpr int64_t kRows = 40, kN = 152, kK = 260;
  for (const QuantFormat& format : quant_formats()) {
    SCOPED_TRACE(format.name);
    const QuantMatrix m = random_quantized(format, kN, kK, 6);
    const MatrixSpec spec = m.whole();
    const Weight weight = ops().pack({&spec, 1});
    const std::vector<float> x = Random(7).floats(kRows * kK);
    std::vector<float> alone;
    for (int64_t row = 0; row < kRows; ++row)
      for (float v : linear(ops(), weight, row_of(x, row, kK), 1)) alone.push_back(v);
    ASSERT_TRUE(close(alone, reference(m, x, kRows), {kRows, kN}));
    for (int64_t num_rows = 1; num_rows <= kRows; ++num_rows) {
      const std::vector<float> some(x.end() - num_rows * kK, x.end()),
          expected(alone.end() - num_rows * kN, alone.end());
      ASSERT_TRUE(same_bits(linear(ops(), weight, some, num_rows), expected, {num_rows, kN})) << num_rows << " rows";
    }
  }
}

TEST_P(QuantizedTest, Threads) {
  for (const QuantFormat& format : quant_formats()) {
    SCOPED_TRACE(format.name);
    const QuantMatrix m = random_quantized(format, 1000, 200, 8);
    const MatrixSpec spec = m.whole();
    for (int64_t num_rows : {1, 9, 40}) {
      const std::vector<float> x = Random(9).floats(num_rows * 200);
      expect_same_with_threads([&](Ops& o) { return linear(o, o.pack({&spec, 1}), x, num_rows); });
    }
  }
}

TEST_P(QuantizedTest, BytesInMemory) {
  auto bytes = [&](const QuantFormat& format) {
    const QuantMatrix m = random_quantized(format, 64, 256, 10);
    const MatrixSpec spec = m.whole();
    return ops().pack({&spec, 1}).num_bytes;
  };
  EXPECT_EQ(bytes({"", DType::kF4E2M1, DType::kF8E8M0, 1, 32}), 64 * 256 / 2 + 64 * 8);
  EXPECT_EQ(bytes({"", DType::kI4, DType::kBF16, 1, 32}), 64 * 256 / 2 + 64 * 8 * 2);
  EXPECT_EQ(bytes({"", DType::kU4, DType::kF16, 1, 128, NibbleOrder::kAwq}), 64 * 256 / 2 + 64 * 2 * 3);
}

TEST_P(QuantizedTest, ScalesThatAreNoNumbersAreRefused) {
  for (const QuantFormat& format : quant_formats()) {
    SCOPED_TRACE(format.name);
    std::vector<uint32_t> bad;
    if (format.scale_dtype == DType::kF8E8M0) bad = {0xff, 0xfe};  // NaN; 2^127, of which 6 is none
    if (format.scale_dtype == DType::kBF16) bad = {0x7fc0, 0x7f80, 0xff80};
    if (format.scale_dtype == DType::kF16) bad = {0x7e00, 0x7c00, 0xfc00};
    if (format.scale_dtype == DType::kF32) bad = {0x7fc00000, 0x7f800000, 0xff800000};
    for (uint32_t bits : bad)
      for (bool transpose : {false, true}) {
        QuantMatrix m = random_quantized(format, 16, 256, 11);
        std::memcpy(m.scale_bytes.data() + m.scale_bytes.size() - dtype_bytes(format.scale_dtype), &bits,
                    size_t(dtype_bytes(format.scale_dtype)));
        MatrixSpec spec = m.whole();
        spec.transpose = transpose;
        try {
          ops().pack({&spec, 1});
          ADD_FAILURE() << "accepted";
        } catch (const Error& e) {
          EXPECT_EQ(e.code(), Code::kBadData);
          EXPECT_NE(std::string(e.what()).find("random matrix: the scale of block"), std::string::npos) << e.what();
        }
      }
  }
}

TEST_P(QuantizedTest, SpecsThatContradictThemselvesAreRefused) {
  const QuantMatrix m = random_quantized(quant_formats()[0], 16, 64, 12);
  MatrixSpec spec = m.whole();
  spec.scales = nullptr;
  EXPECT_THROW(ops().pack({&spec, 1}), Error);
  spec = m.whole();
  spec.dtype = DType::kU4;  // without zero points
  EXPECT_THROW(ops().pack({&spec, 1}), Error);
  spec = m.whole();
  spec.block_k = 0;
  EXPECT_THROW(ops().pack({&spec, 1}), Error);
  spec = m.whole();
  spec.dtype = DType::kBF16;  // plain numbers with scales
  EXPECT_THROW(ops().pack({&spec, 1}), Error);
}

}  // namespace
}  // namespace moectl::test
