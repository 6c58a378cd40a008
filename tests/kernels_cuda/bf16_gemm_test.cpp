// The BF16 product, dense and grouped, against a loop in double precision. Products of bf16 values are exact in f32;
// the tensor core adds the 16 of one instruction and the running sum after aligning them to the largest and cuts off
// below about 2^-22 of it, so each of the k / 16 instructions may lose 17 times that of the largest partial sum or
// product.
#include "kernels/cuda/gemm/bf16_gemm.h"

#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

using cuda::GemmConfig;

struct Case {
  int64_t m = 0, n = 0, k = 0;
  std::vector<int32_t> rows_of_expert = {};  // empty: dense
  bool gated = false;
  int64_t expert_begin = 0;
  int64_t num_experts() const { return rows_of_expert.empty() ? 1 : int64_t(rows_of_expert.size()); }
  int64_t total() const {
    int64_t sum = m;
    for (int32_t r : rows_of_expert) sum += r;
    return sum;
  }
};

Bounded dot(const double* a, const double* w, int64_t k) {
  double sum = 0, largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    sum += a[i] * w[i];
    largest = std::max({largest, std::abs(a[i] * w[i]), std::abs(sum)});
  }
  return rounded(sum, double(k) / 16 * 17 * 0x1p-22 * largest);
}

Bounded silu_times(Bounded g, Bounded u) {
  const double value = g.value / (1.0 + std::exp(-g.value));
  return Bounded{value, 1.1 * g.error + 16 * unit_roundoff(DType::kF32) * std::abs(value) + 1e-30} * u;
}

struct Bf16Values {
  Bf16Values(int64_t size, float scale, Random& random) : bits(size_t(size)), values(size_t(size)) {
    for (size_t i = 0; i < bits.size(); ++i) {
      bits[i] = f32_to_bf16(random.uniform(-scale, scale));
      values[i] = bf16_to_f32(bits[i]);
    }
  }
  std::vector<uint16_t> bits;
  std::vector<double> values;
};

class Bf16GemmTest : public HopperTest {
 protected:
  struct Operands {
    Operands(const Case& c, uint64_t seed)
        : c(c),
          random(seed),
          max_rows(c.rows_of_expert.empty() ? c.m : c.total() + 3),
          batch(c.expert_begin + c.num_experts() + 1),
          a(max_rows * c.k, 3.0f, random),
          w(batch * c.n * c.k, 0.1f, random),
          up(c.gated ? batch * c.n * c.k : 8, 0.1f, random),
          device_a(a.bits),
          device_w(w.bits),
          device_up(up.bits),
          offsets(host_offsets(c)) {
      int64_t row = 0;
      for (int64_t e = 0; e < c.num_experts(); ++e)
        for (const int64_t end = row + (c.rows_of_expert.empty() ? c.m : c.rows_of_expert[size_t(e)]); row < end; ++row)
          for (int64_t i = 0; i < c.n; ++i) {
            const size_t at = size_t(((c.expert_begin + e) * c.n + i) * c.k);
            const Bounded g = dot(&a.values[size_t(row * c.k)], &w.values[at], c.k);
            expected.push_back(c.gated ? silu_times(g, dot(&a.values[size_t(row * c.k)], &up.values[at], c.k)) : g);
          }
    }
    static std::vector<int32_t> host_offsets(const Case& c) {
      std::vector<int32_t> offsets{0};
      for (int32_t r : c.rows_of_expert) offsets.push_back(offsets.back() + r);
      return offsets;
    }
    std::vector<float> run(const GemmConfig* config, bool deterministic = false) const {
      DeviceArray<float> out(max_rows * c.n);
      cuda::Bf16GemmArgs g;
      g.a = device_a.data();
      g.rows = max_rows;
      g.n = c.n;
      g.k = c.k;
      g.w = device_w.data();
      if (c.gated) g.w_up = device_up.data();
      g.batch = batch;
      if (!c.rows_of_expert.empty()) g.expert_offsets = offsets.data(), g.num_experts = c.num_experts();
      g.expert_begin = c.expert_begin;
      g.out = out.data();
      g.deterministic = deterministic;
      if (config)
        cuda::bf16_gemm(g, *config, {});
      else
        cuda::bf16_gemm(g, {});
      auto values = out.host();
      for (size_t i = expected.size(); i < values.size(); ++i) EXPECT_TRUE(std::isnan(values[i])) << "wrote at " << i;
      values.resize(expected.size());
      return values;
    }

    const Case c;
    Random random;
    int64_t max_rows, batch;
    Bf16Values a, w, up;
    DeviceArray<uint16_t> device_a, device_w, device_up;
    DeviceArray<int32_t> offsets;
    std::vector<Bounded> expected;
  };
};

TEST_F(Bf16GemmTest, EveryTiling) {
  uint64_t seed = 1;
  for (const bool gated : {false, true})
    for (Case c : std::vector<Case>{{.m = 1, .n = 264, .k = 192},
                                    {.m = 37, .n = 1160, .k = 576},
                                    {.m = 299, .n = 520, .k = 320},
                                    {.m = 131, .n = 8968, .k = 128},  // more tiles than clusters
                                    {.n = 264, .k = 256, .rows_of_expert = {0, 5, 130, 0, 1, 77}, .expert_begin = 2},
                                    {.n = 136, .k = 64, .rows_of_expert = {0, 0, 0}}}) {
      c.gated = gated;
      const Operands operands(c, seed++);
      for (int multicast : {1, 2})
        for (GemmConfig config :
             std::vector<GemmConfig>{{.sub = 2},
                                     {.sub = 1},
                                     {.sub = 1, .split = 2},
                                     {.swap = true, .sub = gated ? 2 : 1, .tile_n = 16},
                                     {.swap = true, .sub = gated ? 2 : 1, .tile_n = 16, .split = 2},
                                     {.swap = true, .sub = gated ? 2 : 1, .tile_n = 16, .split = 4},
                                     {.swap = true, .sub = gated ? 2 : 1, .tile_n = 64},
                                     {.swap = true, .sub = gated ? 2 : 1, .tile_n = 64, .split = 3}}) {
          if (gated && !config.swap && config.sub == 1) continue;
          config.multicast = multicast;
          config.group_m = 2;
          SCOPED_TRACE(fmt::format("{} x {} x {}, {} experts, swap {} {}x{} multicast {} split {}", c.total(), c.n, c.k,
                                   c.num_experts(), config.swap, config.sub, config.tile_n, multicast, config.split));
          const auto out = operands.run(&config);
          ASSERT_TRUE(close(out, operands.expected, {c.total(), c.n}));
          ASSERT_TRUE(same_bits(operands.run(&config), out)) << "a second run";
        }
      ASSERT_TRUE(close(operands.run(nullptr), operands.expected, {c.total(), c.n})) << "the tiling that is chosen";
    }
}

// Batch invariance: the bits of a row do not depend on the number of rows, which changes the tiling.
TEST_F(Bf16GemmTest, DeterministicRows) {
  const Operands all({.m = 300, .n = 520, .k = 576}, 9);
  const auto expected = all.run(nullptr, true);
  for (int64_t m : {1, 16, 17, 64, 65, 128, 129}) {
    DeviceArray<float> out(m * 520);
    cuda::Bf16GemmArgs g;
    g.a = all.device_a.data();
    g.rows = m;
    g.n = 520;
    g.k = 576;
    g.w = all.device_w.data();
    g.batch = all.batch;
    g.out = out.data();
    g.deterministic = true;
    cuda::bf16_gemm(g, {});
    ASSERT_TRUE(same_bits(out.host(), {expected.data(), size_t(m * 520)}, {m, 520})) << m << " rows";
  }
}

TEST_F(Bf16GemmTest, WrongShapesAreRefused) {
  DeviceArray<uint16_t> a(4 * 128), w(16 * 128);
  DeviceArray<float> out(4 * 16);
  cuda::Bf16GemmArgs good;
  good.a = a.data();
  good.rows = 4;
  good.n = 16;
  good.k = 128;
  good.w = w.data();
  good.out = out.data();
  auto args = good;
  args.k = 96;
  EXPECT_THROW(cuda::bf16_gemm(args, {}), Error);
  args = good;
  args.n = 12;
  EXPECT_THROW(cuda::bf16_gemm(args, {}), Error);
  args = good;
  args.num_experts = 2;
  EXPECT_THROW(cuda::bf16_gemm(args, {}), Error);
}

}  // namespace
}  // namespace moectl::test
