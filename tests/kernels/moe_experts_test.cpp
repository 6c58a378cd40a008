#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(MoeExpertsTest);

struct Experts {
  int64_t hidden, intermediate, begin;
  std::vector<Matrix> gate, up, down;

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
    a.expert_begin = begin;
    a.hidden = View<float>(h.data(), {room, intermediate});
    a.out = View<float>(out.data(), {room, hidden});
    ops.moe_experts(a, {});
    out.resize(size_t(rows * hidden));
    return out;
  }
  std::vector<Bounded> reference(const std::vector<float>& x, const std::vector<int32_t>& offsets) const {
    std::vector<Bounded> out;
    for (size_t e = 0; e + 1 < offsets.size(); ++e)
      for (int64_t row = offsets[e]; row < offsets[e + 1]; ++row) {
        auto project = [&](const Matrix& m, int64_t i) {
          DotReference dot;
          for (int64_t k = 0; k < hidden; ++k)
            dot.add(double(x[size_t(row * hidden + k)]), element_value(m.whole(), i, k));
          return dot.result();
        };
        std::vector<Bounded> h;
        for (int64_t i = 0; i < intermediate; ++i) {
          const Bounded g = project(gate[size_t(begin) + e], i), u = project(up[size_t(begin) + e], i);
          // silu' <= 1.1; the exponential is good to 2e-7 and saturates at e^88.
          const double silu = g.value / (1 + std::exp(-g.value));
          h.push_back(rounded(silu, 1.1 * g.error + 3e-7 * std::abs(silu) + 1e-30) * u);
        }
        for (int64_t i = 0; i < hidden; ++i) {
          DotReference dot;
          for (int64_t k = 0; k < intermediate; ++k)
            dot.add(h[size_t(k)], element_value(down[size_t(begin) + e].whole(), i, k));
          out.push_back(dot.result());
        }
      }
    return out;
  }
};

TEST_P(MoeExpertsTest, AgainstReference) {
  for (DType dtype : weight_dtypes())
    for (const auto& offsets : expert_offsets())
      for (int64_t begin : {0, 2}) {
        SCOPED_TRACE(fmt::format("{}, {} experts from {}, {} rows", dtype_name(dtype), offsets.size() - 1, begin,
                                 offsets.back()));
        const Experts experts(dtype, int64_t(offsets.size()) - 1, begin, 40, 25);
        const auto x = Random(1).floats(std::max(offsets.back(), 1) * 40);
        ASSERT_TRUE(
            close(experts.run(ops(), x, offsets), experts.reference(x, offsets), {std::max(offsets.back(), 1), 40}));
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
