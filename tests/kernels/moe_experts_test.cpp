#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(MoeExpertsTest);

struct Experts {
  int64_t hidden, intermediate, begin;
  std::vector<Matrix> gate, up, down;
  Activation activation;
  std::vector<float> gate_bias, up_bias, down_bias, row_scale;  // empty: none

  void add_biases() {
    const int64_t num = int64_t(gate.size());
    gate_bias = Random(7).floats(num * intermediate, 3.0f);
    up_bias = Random(8).floats(num * intermediate, 3.0f);
    down_bias = Random(9).floats(num * hidden);
  }

  Experts(DType dtype, int64_t num, int64_t begin, int64_t hidden, int64_t intermediate)
      : hidden(hidden), intermediate(intermediate), begin(begin) {
    for (int64_t e = 0; e < begin + num; ++e) {
      gate.push_back(random_matrix(dtype, intermediate, hidden, uint64_t(3 * e + 1)));
      up.push_back(random_matrix(dtype, intermediate, hidden, uint64_t(3 * e + 2)));
      down.push_back(random_matrix(dtype, hidden, intermediate, uint64_t(3 * e + 3)));
    }
  }
  static Weight pack(Ops& ops, const std::vector<Matrix>& matrices) {
    std::vector<MatrixSpec> specs;
    for (const Matrix& m : matrices) specs.push_back(m.whole());
    return ops.pack(specs);
  }
  std::vector<float> run(Ops& ops, const std::vector<float>& x, const std::vector<int32_t>& offsets) const {
    const int64_t rows = offsets.back(), room = std::max<int64_t>(rows, 1);
    std::vector<float> h(size_t(room * intermediate), NAN), out(size_t(room * hidden), NAN);
    MoeExpertsArgs a;
    a.x = View<const float>(x.data(), {room, hidden});
    a.expert_offsets = View<const int32_t>(offsets.data(), {int64_t(offsets.size())});
    a.w_gate = pack(ops, gate);
    a.w_up = pack(ops, up);
    a.w_down = pack(ops, down);
    std::vector<int32_t> entries;
    for (size_t e = 0; e + 1 < offsets.size(); ++e) entries.push_back(int32_t(size_t(begin) + e));
    if (begin > 0) a.weight_idx = View<const int32_t>(entries.data(), {int64_t(entries.size())});
    a.hidden = View<float>(h.data(), {room, intermediate});
    a.out = View<float>(out.data(), {room, hidden});
    a.activation = activation;
    const int64_t num = int64_t(gate.size());
    if (!gate_bias.empty()) {
      a.gate_bias = View<const float>(gate_bias.data(), {num, intermediate});
      a.up_bias = View<const float>(up_bias.data(), {num, intermediate});
      a.down_bias = View<const float>(down_bias.data(), {num, hidden});
    }
    if (!row_scale.empty()) a.row_scale = View<const float>(row_scale.data(), {room});
    ops.moe_experts(a, {});
    out.resize(size_t(rows * hidden));
    return out;
  }
  std::vector<Bounded> reference(const std::vector<float>& x, const std::vector<int32_t>& offsets) const {
    std::vector<Bounded> out;
    for (size_t e = 0; e + 1 < offsets.size(); ++e)
      for (int64_t row = offsets[e]; row < offsets[e + 1]; ++row) {
        auto bias_of = [&](const std::vector<float>& bias, int64_t i, int64_t n) {
          return Bounded{bias.empty() ? 0.0 : double(bias[(size_t(begin) + e) * size_t(n) + size_t(i)]), 0.0};
        };
        auto project = [&](const Matrix& m, int64_t i, const std::vector<float>& bias) {
          DotReference dot;
          for (int64_t k = 0; k < hidden; ++k)
            dot.add(double(x[size_t(row * hidden + k)]), element_value(m.whole(), i, k));
          const Bounded scale = {row_scale.empty() ? 1.0 : double(row_scale[size_t(row)]), 0.0};
          return dot.result() * scale + bias_of(bias, i, intermediate);
        };
        std::vector<Bounded> h;
        for (int64_t i = 0; i < intermediate; ++i) {
          Bounded g = project(gate[size_t(begin) + e], i, gate_bias), u = project(up[size_t(begin) + e], i, up_bias);
          const bool clamped = activation.kind == Activation::Kind::kClampedSwiGlu;
          if (clamped) {
            g.value = std::min(g.value, double(activation.limit));
            u.value = std::clamp(u.value, -double(activation.limit), double(activation.limit)) + 1;
            u = rounded(u.value, u.error);
          }
          // silu' <= 1.1; the exponential is good to 2e-7 (relative to its argument's rounding) and saturates at e^88.
          const double alpha = clamped ? double(activation.alpha) : 1.0,
                       silu = g.value / (1 + std::exp(-alpha * g.value));
          h.push_back(
              rounded(silu, 1.1 * g.error + (3e-7 + 1e-7 * std::abs(alpha * g.value)) * std::abs(silu) + 1e-30) * u);
        }
        for (int64_t i = 0; i < hidden; ++i) {
          DotReference dot;
          for (int64_t k = 0; k < intermediate; ++k)
            dot.add(h[size_t(k)], element_value(down[size_t(begin) + e].whole(), i, k));
          out.push_back(dot.result() + bias_of(down_bias, i, hidden));
        }
      }
    return out;
  }
};

TEST_P(MoeExpertsTest, AgainstReference) {
  for (DType dtype : weight_dtypes())
    for (const auto& offsets : expert_offsets())
      for (int64_t begin : {0, 2}) {
        if (begin > 0 && !ops().capabilities().host_readable) continue;  // a GPU holds its own experts only
        SCOPED_TRACE(fmt::format("{}, {} experts from {}, {} rows", dtype_name(dtype), offsets.size() - 1, begin,
                                 offsets.back()));
        const Experts experts(dtype, int64_t(offsets.size()) - 1, begin, 40, 25);
        const auto x = Random(1).floats(std::max(offsets.back(), 1) * 40);
        ASSERT_TRUE(
            close(experts.run(ops(), x, offsets), experts.reference(x, offsets), {std::max(offsets.back(), 1), 40}));
      }
}

TEST_P(MoeExpertsTest, BiasesClampedActivationAndRowScale) {
  for (DType dtype : weight_dtypes())
    for (bool clamped : {false, true})
      for (bool biases : {false, true})
        for (bool scaled : {false, true}) {
          SCOPED_TRACE(fmt::format("{} clamped {} biases {} scaled {}", dtype_name(dtype), clamped, biases, scaled));
          Experts experts(dtype, 3, 1, 40, 25);
          if (clamped) experts.activation = {Activation::Kind::kClampedSwiGlu, 2.5f, 1.702f};
          if (biases) experts.add_biases();
          const std::vector<int32_t> offsets = {0, 2, 2, 17};
          if (scaled) experts.row_scale = Random(6).floats(17);
          const auto x = Random(5).floats(17 * 40, 4.0f);  // far beyond the limit in places
          const auto out = experts.run(ops(), x, offsets);
          ASSERT_TRUE(close(out, experts.reference(x, offsets), {17, 40}));
          expect_same_with_threads([&](Ops& o) { return experts.run(o, x, offsets); });
        }
}

TEST_P(MoeExpertsTest, PartialScaleBlocks) {
  const Experts experts(DType::kF8E4M3, 2, 0, 150, 140);
  const auto x = Random(2).floats(4 * 150);
  ASSERT_TRUE(close(experts.run(ops(), x, {0, 1, 4}), experts.reference(x, {0, 1, 4}), {4, 150}));
}

TEST_P(MoeExpertsTest, LargeActivationsSaturateCleanly) {
  const Experts experts(DType::kF32, 1, 0, 24, 20);
  const auto x = Random(3).floats(3 * 24, 1e4f);
  ASSERT_TRUE(close(experts.run(ops(), x, {0, 3}), experts.reference(x, {0, 3}), {3, 24}));
}

TEST_P(MoeExpertsTest, CompanyAndThreads) {
  for (DType dtype : weight_dtypes()) {
    SCOPED_TRACE(dtype_name(dtype));
    const std::vector<int32_t> offsets = {0, 1, 1, 20, 33, 63};
    const Experts experts(dtype, 5, 0, 130, 70);
    const auto x = Random(4).floats(63 * 130);
    const auto all = experts.run(ops(), x, offsets);
    for (size_t e = 0; e < 5; ++e)
      for (int32_t row = offsets[e]; row < offsets[e + 1]; row += 5) {
        std::vector<int32_t> alone(6, 0);
        std::fill(alone.begin() + int64_t(e) + 1, alone.end(), 1);
        ASSERT_TRUE(same_bits(experts.run(ops(), row_of(x, row, 130), alone), row_of(all, row, 130))) << "row " << row;
      }
    expect_same_with_threads([&](Ops& o) { return experts.run(o, x, offsets); });
  }
}

}  // namespace
}  // namespace moectl::test
