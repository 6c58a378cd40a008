// The fast numerics of CudaOps against sums in f64 of the unrounded operands: how far rounding both to bf16, or x to
// FP8, may take a result. Shapes of the tensor-core kernels and odd ones. Each test twice: with this card's kernels,
// and portable: with those that every card has, which round x to bf16 even where w is FP8.
#include "tests/harness/quantized.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

class FastOpsTest : public GpuTest, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped()) ops_ = std::make_unique<MirrorOps>(make_ops({.device = "cuda", .portable = portable()}));
  }
  bool portable() const { return GetParam(); }
  Ops& ops() { return *ops_; }

 private:
  std::unique_ptr<MirrorOps> ops_;
};

// Rounding errors of random operands are independent: the error of a sum of products is below 6 u sqrt(sum of squares)
// but for one element in 10^8 (Hoeffding), u what rounding does to a product. And a floor for what FP8 loses of the
// smallest numbers of a block of 128.
class RoundedDot {
 public:
  explicit RoundedDot(double u) : u_(u) {}
  void add(Bounded x, double w) {
    sum_ += x.value * w;
    squares_ += x.value * w * x.value * w;
    carried_ += x.error * std::abs(w) * x.error * std::abs(w);
    weights_ += w * w;
  }
  Bounded result() const {
    return {sum_, 6 * u_ * std::sqrt(squares_) + 6 * std::sqrt(carried_) + 6 * 0x1p-18 * std::sqrt(weights_) + 1e-6};
  }

 private:
  double u_, sum_ = 0, squares_ = 0, carried_ = 0, weights_ = 0;
};

// Of x, w: FP8 activations lose 2^-4, bf16 ones 2^-8 (twice: w may be rounded after its scale).
double product_roundoff(DType weight, bool portable) {
  return weight == DType::kF8E4M3 && !portable ? unit_roundoff(DType::kF8E4M3) : 2 * unit_roundoff(DType::kBF16);
}

TEST_P(FastOpsTest, Linear) {
  for (DType dtype : {DType::kBF16, DType::kF16, DType::kF8E4M3})
    for (auto [n, k] : std::vector<std::pair<int64_t, int64_t>>{{256, 512}, {136, 256}, {200, 384}, {67, 80}, {9, 70}})
      for (bool with_bias : {false, true}) {
        const Matrix m = random_matrix(dtype, n, k, 1);
        const MatrixSpec spec = m.whole();
        const Weight w = ops().pack({&spec, 1});
        for (int64_t rows : {1, 5, 64, 130}) {
          SCOPED_TRACE(fmt::format("{} [{}, {}] {} rows, bias {}", dtype_name(dtype), n, k, rows, with_bias));
          const auto x = Random(2).floats(rows * k), bias = Random(3).floats(n);
          std::vector<float> out(size_t(rows * n), NAN);
          ops().linear({View<const float>(x.data(), {rows, k}), w, View<float>(out.data(), {rows, n}),
                        with_bias ? View<const float>(bias.data(), {n}) : View<const float>()},
                       {});
          std::vector<double> values;
          for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < k; ++j) values.push_back(weight_value(spec, i, j));
          std::vector<Bounded> expected;
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < n; ++i) {
              RoundedDot dot(product_roundoff(dtype, portable()));
              for (int64_t j = 0; j < k; ++j) dot.add({double(x[size_t(r * k + j)]), 0}, values[size_t(i * k + j)]);
              expected.push_back(dot.result() + Bounded{with_bias ? double(bias[size_t(i)]) : 0.0, 0.0});
            }
          ASSERT_TRUE(close(out, expected, {rows, n}));
        }
      }
}

TEST_P(FastOpsTest, Experts) {
  for (DType dtype : {DType::kBF16, DType::kF8E4M3})
    for (auto [hidden, intermediate] : std::vector<std::pair<int64_t, int64_t>>{{256, 128}, {128, 384}, {160, 48}})
      for (bool special : {false, true})
        for (const auto& offsets : expert_offsets()) {
          const int64_t num = int64_t(offsets.size()) - 1, rows = std::max(offsets.back(), 1);
          SCOPED_TRACE(fmt::format("{} [{}, {}] {} experts, {} rows, special {}", dtype_name(dtype), intermediate,
                                   hidden, num, offsets.back(), special));
          std::vector<Matrix> gate, up, down;
          for (int64_t e = 0; e < num; ++e) {
            gate.push_back(random_matrix(dtype, intermediate, hidden, uint64_t(3 * e + 1)));
            up.push_back(random_matrix(dtype, intermediate, hidden, uint64_t(3 * e + 2)));
            down.push_back(random_matrix(dtype, hidden, intermediate, uint64_t(3 * e + 3)));
          }
          auto pack = [&](const std::vector<Matrix>& matrices) {
            std::vector<MatrixSpec> specs;
            for (const Matrix& m : matrices) specs.push_back(m.whole());
            return ops().pack(specs);
          };
          const auto x = Random(5).floats(rows * hidden, 0.3f), scale = Random(6).floats(rows),
                     bias = Random(7).floats(num * intermediate), down_bias = Random(8).floats(num * hidden);
          std::vector<float> h(size_t(rows * intermediate), NAN), out(size_t(rows * hidden), NAN);
          MoeExpertsArgs a;
          a.x = View<const float>(x.data(), {rows, hidden});
          a.expert_offsets = View<const int32_t>(offsets.data(), {num + 1});
          a.w_gate = pack(gate);
          a.w_up = pack(up);
          a.w_down = pack(down);
          a.hidden = View<float>(h.data(), {rows, intermediate});
          a.out = View<float>(out.data(), {rows, hidden});
          if (special) {
            a.activation = {Activation::Kind::kClampedSwiGlu, 2.5f, 1.702f};
            a.gate_bias = a.up_bias = View<const float>(bias.data(), {num, intermediate});
            a.down_bias = View<const float>(down_bias.data(), {num, hidden});
            a.row_scale = View<const float>(scale.data(), {rows});
          }
          ops().moe_experts(a, {});
          const double u = product_roundoff(dtype, portable());
          std::vector<Bounded> expected;
          for (int64_t e = 0; e < num; ++e)
            for (int64_t r = offsets[size_t(e)]; r < offsets[size_t(e) + 1]; ++r) {
              auto project = [&](const Matrix& m, int64_t i) {
                RoundedDot dot(u);
                for (int64_t j = 0; j < hidden; ++j)
                  dot.add({double(x[size_t(r * hidden + j)]), 0}, element_value(m.whole(), i, j));
                Bounded v = dot.result();
                if (special)
                  v = v * Bounded{double(scale[size_t(r)]), 0} + Bounded{double(bias[size_t(e * intermediate + i)]), 0};
                return v;
              };
              std::vector<Bounded> hidden_values;
              for (int64_t i = 0; i < intermediate; ++i) {
                Bounded g = project(gate[size_t(e)], i), v = project(up[size_t(e)], i);
                if (special) {
                  g.value = std::min(g.value, 2.5);
                  v.value = std::clamp(v.value, -2.5, 2.5) + 1;
                }
                const double alpha = special ? 1.702 : 1.0, act = g.value / (1 + std::exp(-alpha * g.value));
                // The activation's slope is at most 1.1; hidden values may be rounded to bf16 on the way.
                Bounded value = Bounded{act, 1.1 * g.error} * v;
                value.error += unit_roundoff(DType::kBF16) * std::abs(value.value);
                hidden_values.push_back(value);
              }
              for (int64_t i = 0; i < hidden; ++i) {
                RoundedDot dot(u);
                for (int64_t j = 0; j < intermediate; ++j)
                  dot.add(hidden_values[size_t(j)], element_value(down[size_t(e)].whole(), i, j));
                expected.push_back(dot.result() +
                                   Bounded{special ? double(down_bias[size_t(e * hidden + i)]) : 0.0, 0.0});
              }
            }
          out.resize(size_t(offsets.back() * hidden));
          ASSERT_TRUE(close(out, expected, {offsets.back(), hidden}));
        }
}

INSTANTIATE_TEST_SUITE_P(Kernels, FastOpsTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "portable" : "own"; });

}  // namespace
}  // namespace moectl::test
