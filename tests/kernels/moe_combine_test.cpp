#include "tests/kernels/kernel_test.h"

namespace moectl::test {
namespace {

MOECTL_KERNEL_SUITE(MoeCombineTest);

struct Problem {
  int64_t tokens, top_k, size;
  std::vector<float> rows, weight, shared;
  std::vector<const void*> pointers;

  double row(int64_t choice, int64_t i) const { return double(static_cast<const float*>(pointers[size_t(choice)])[i]); }

  Problem(int64_t tokens, int64_t top_k, int64_t size, bool with_shared) : tokens(tokens), top_k(top_k), size(size) {
    Random random(uint64_t(tokens + 100 * top_k + size));
    rows = random.floats(tokens * top_k * size);
    weight = random.floats(tokens * top_k);
    if (with_shared) shared = random.floats(tokens * size);
    for (int64_t i = 0; i < tokens * top_k; ++i) pointers.push_back(rows.data() + i * size);
    random.shuffle(pointers);
  }
  std::vector<float> run(Ops& ops, int64_t begin, int64_t end) const {
    std::vector<float> out(size_t((end - begin) * size), NAN);
    MoeCombineArgs args;
    args.expert_rows = View<const void* const>(pointers.data() + begin * top_k, {end - begin, top_k});
    args.expert_weight = View<const float>(weight.data() + begin * top_k, {end - begin, top_k});
    if (!shared.empty()) args.shared = View<const float>(shared.data() + begin * size, {end - begin, size});
    args.out = View<float>(out.data(), {end - begin, size});
    ops.moe_combine(args, {});
    return out;
  }
};

TEST_P(MoeCombineTest, AgainstReference) {
  for (bool with_shared : {false, true})
    for (int64_t top_k : {1, 2, 8})
      for (int64_t size : {1, 17, 64, 130}) {
        const Problem p(5, top_k, size, with_shared);
        std::vector<Bounded> expected;
        for (int64_t t = 0; t < p.tokens; ++t)
          for (int64_t i = 0; i < size; ++i) {
            DotReference dot;
            for (int64_t j = 0; j < top_k; ++j)
              dot.add(double(p.weight[size_t(t * top_k + j)]), p.row(t * top_k + j, i));
            if (with_shared) dot.add(1.0, double(p.shared[size_t(t * size + i)]));
            expected.push_back(dot.result());
          }
        EXPECT_TRUE(close(p.run(ops(), 0, p.tokens), expected, {p.tokens, size}));
      }
}

// 2^24 + 1 - 2^24 depends on the order: the slots are added as they come, the shared expert last.
TEST_P(MoeCombineTest, OrderOfSlots) {
  const float big = 0x1p24f, one = 1.0f, minus = -0x1p24f, weights[3] = {1, 1, 1}, shared = 1.0f;
  for (auto [rows, expected] :
       {std::pair<std::array<const void*, 3>, float>{{&big, &minus, &one}, 2.0f}, {{&big, &one, &minus}, 1.0f}}) {
    float out = NAN;
    MoeCombineArgs args;
    args.expert_rows = View<const void* const>(rows.data(), {1, 3});
    args.expert_weight = View<const float>(weights, {1, 3});
    args.shared = View<const float>(&shared, {1, 1});
    args.out = View<float>(&out, {1, 1});
    ops().moe_combine(args, {});
    EXPECT_EQ(out, expected);
  }
}

TEST_P(MoeCombineTest, CompanyAndThreads) {
  const Problem p(90, 8, 200, true);
  const std::vector<float> all = p.run(ops(), 0, p.tokens);
  for (int64_t t : {0, 1, 50, 89}) EXPECT_TRUE(same_bits(p.run(ops(), t, t + 1), row_of(all, t, p.size)));
  expect_same_with_threads([&](Ops& o) { return p.run(o, 0, p.tokens); });
}

TEST_P(MoeCombineTest, SharedGateAndNoWeights) {
  constexpr int64_t kTokens = 6, kSize = 33;
  const Problem p(kTokens, 2, kSize, true);
  const std::vector<float> gate = {-100.0f, -2.0f, -0.1f, 0.0f, 3.0f, 100.0f};
  for (bool weights : {true, false}) {
    std::vector<float> out(size_t(kTokens * kSize), NAN);
    MoeCombineArgs args;
    args.expert_rows = View<const void* const>(p.pointers.data(), {kTokens, 2});
    if (weights) args.expert_weight = View<const float>(p.weight.data(), {kTokens, 2});
    args.shared = View<const float>(p.shared.data(), {kTokens, kSize});
    args.shared_gate = View<const float>(gate.data(), {kTokens});
    args.out = View<float>(out.data(), {kTokens, kSize});
    ops().moe_combine(args, {});
    std::vector<Bounded> expected;
    for (int64_t t = 0; t < kTokens; ++t) {
      const double sigmoid = 1 / (1 + std::exp(-double(gate[size_t(t)])));
      for (int64_t i = 0; i < kSize; ++i) {
        DotReference dot;
        for (int64_t j = 0; j < 2; ++j)
          dot.add(weights ? double(p.weight[size_t(t * 2 + j)]) : 1.0, p.row(t * 2 + j, i));
        dot.add(Bounded{sigmoid, 4 * unit_roundoff(DType::kF32) * sigmoid}, double(p.shared[size_t(t * kSize + i)]));
        expected.push_back(dot.result());
      }
    }
    EXPECT_TRUE(close(out, expected, {kTokens, kSize}));
  }
}

}  // namespace
}  // namespace moectl::test
