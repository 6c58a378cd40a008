// The FP8 block-scaled product, dense and grouped, against a loop in double precision over the dequantized operands.
//
// Tolerance. Products of e4m3 values are exact; the tensor core adds the 32 of one instruction and the running sum
// after aligning them to the largest and keeps at least 13 bits below it, cut off, not rounded (no document says so;
// experiments on this generation agree). A block of 128 is four instructions: 4 * 33 addends, each off by at most 2^-13
// of the largest addend or partial sum. Scaling and adding up the blocks is f32 arithmetic: dot_tolerance over the
// number of blocks.
#include "kernels/cuda/gemm/fp8_gemm.h"

#include "kernels/cuda/elementwise/fp8_quantize.h"
#include "kernels/cuda/gemm/weight.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

using cuda::GemmConfig;

struct Case {
  int64_t m = 0, n = 0, k = 0;               // m: of the dense case
  std::vector<int32_t> rows_of_expert = {};  // empty: dense
  bool gated = false;
  int64_t expert_begin = 0;

  int64_t num_experts() const { return rows_of_expert.empty() ? 1 : int64_t(rows_of_expert.size()); }
  int64_t total() const {
    if (rows_of_expert.empty()) return m;
    int64_t sum = 0;
    for (int32_t r : rows_of_expert) sum += r;
    return sum;
  }
};

// Random weights, packed on the device, and their values.
struct TestWeight {
  TestWeight(Ops& ops, int64_t batch, int64_t n, int64_t k, Random& random) {
    std::vector<Matrix> matrices;
    std::vector<MatrixSpec> specs;
    for (int64_t b = 0; b < batch; ++b)
      matrices.push_back(random_matrix(DType::kF8E4M3, n, k, uint64_t(random.below(1 << 30))));
    for (const Matrix& m : matrices) {
      specs.push_back(m.whole());
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < k; ++j) values.push_back(weight_value(specs.back(), i, j));
    }
    packed = pack_and_wait(ops, specs);
    const cuda::Matrix& w = cuda::matrix_of(packed);
    CHECK(w.is_fp8_block(), "a weight [{}, {}] without the layout of fp8_gemm", n, k);
    weight = cuda::fp8_weight_at(w.data, w.scales, batch, n, k);
  }
  const double* row(int64_t b, int64_t i) const { return &values[size_t((b * weight.n + i) * weight.k)]; }

  Weight packed;  // owns the device memory
  cuda::Fp8Weight weight;
  std::vector<double> values;
};

Bounded block_dot(const double* a, const double* w, int64_t k) {
  double sum = 0, magnitude = 0, lost = 0;
  for (int64_t kb = 0; kb < k; kb += kFp8Block) {
    double partial = 0, largest = 0;
    for (int64_t i = kb; i < kb + kFp8Block; ++i) {
      const double product = a[i] * w[i];
      partial += product;
      largest = std::max({largest, std::abs(product), std::abs(partial)});
    }
    sum += partial;
    magnitude += std::abs(partial);
    lost += 4 * 33 * 0x1p-13 * largest;
  }
  return rounded(sum, lost + dot_tolerance(k / kFp8Block + 8, magnitude));
}

Bounded silu_times(Bounded g, Bounded u) {
  const double s = 1.0 / (1.0 + std::exp(-g.value)), value = g.value * s;
  // |silu'| <= 1.1; __expf and the division are good to a few units in the last place of f32.
  return Bounded{value, 1.1 * g.error + 16 * unit_roundoff(DType::kF32) * std::abs(value) + 1e-30} * u;
}

// What the choice guarantees for every size and device; needs no GPU.
TEST(GemmConfigTest, ChoiceFitsClustersAndDeterminism) {
  for (const int64_t multiprocessors : {1, 78, 114, 132, 148})
    for (const int64_t rows : {1, 6, 16, 17, 64, 128, 129, 512, 4096})
      for (const int64_t n : {8, 576, 1536, 2112, 4096, 7168, 129280})
        for (const int64_t num_kb : {1, 2, 16, 56, 128})
          for (const int64_t experts : {1, 9, 64, 256})
            for (const bool gated : {false, true}) {
              cuda::GemmSize size{.rows = rows, .n = n, .num_kb = num_kb, .num_experts = experts};
              size.num_multiprocessors = multiprocessors;
              size.grouped = experts > 1;
              size.gated = gated;
              const GemmConfig c = cuda::choose_gemm_config(size);
              EXPECT_LE(c.multicast * c.split, 8);
              EXPECT_LE(c.split, num_kb);
              const int tokens = c.swap ? c.tile_n : 128 * c.sub;
              EXPECT_EQ(tokens % (8 * c.multicast), 0);
              EXPECT_TRUE(c.swap || c.split == 1 || (c.sub == 1 && c.tile_n <= 128 && !gated));
              size.deterministic = true;
              EXPECT_EQ(cuda::choose_gemm_config(size).split, 1) << "k is divided alike for any number of rows";
            }
  EXPECT_THROW(cuda::choose_gemm_config({.rows = 1, .n = 128, .num_kb = 1}), Error) << "no device";
}

class Fp8GemmTest : public HopperTest {
 protected:
  void SetUp() override {
    HopperTest::SetUp();
    if (!IsSkipped()) ops_ = make_ops({.device = "cuda"});
  }
  Ops& ops() { return *ops_; }

  // The operands of one case, made once for all the tilings that are tried.
  struct Operands {
    Operands(Ops& ops, const Case& c, uint64_t seed)
        : c(c),
          random(seed),
          max_rows(c.rows_of_expert.empty() ? c.m : c.total() + 3),
          w(ops, c.expert_begin + c.num_experts() + 1, c.n, c.k, random),
          up(ops, c.gated ? w.weight.batch : 1, c.gated ? c.n : 8, c.gated ? c.k : kFp8Block, random),
          memory(cuda::fp8_rows_bytes(max_rows, c.k)),
          a(cuda::fp8_rows_at(memory.data(), max_rows, c.k)),
          offsets(host_offsets(c)) {
      // Quantized on the device, which fp8_quantize_test.cpp tests.
      const DeviceArray<float> x(random.floats(max_rows * c.k, 3.0f));
      cuda::fp8_quantize({.x = x.data(), .out = a}, {});
      const auto bytes = memory.host();
      const auto* scales =
          reinterpret_cast<const float*>(bytes.data() + (reinterpret_cast<const uint8_t*>(a.scales) - memory.data()));
      std::vector<double> rows(size_t(max_rows * c.k));
      for (int64_t r = 0; r < max_rows; ++r)
        for (int64_t j = 0; j < c.k; ++j)
          rows[size_t(r * c.k + j)] =
              f8_e4m3_to_f32(bytes[size_t((j / kFp8Block * max_rows + r) * kFp8Block + j % kFp8Block)]) *
              double(scales[j / kFp8Block * a.scale_stride + r]);
      int64_t row = 0;
      for (int64_t e = 0; e < c.num_experts(); ++e)
        for (const int64_t end = row + (c.rows_of_expert.empty() ? c.m : c.rows_of_expert[size_t(e)]); row < end; ++row)
          for (int64_t i = 0; i < c.n; ++i) {
            const double* x_row = &rows[size_t(row * c.k)];
            const Bounded g = block_dot(x_row, w.row(c.expert_begin + e, i), c.k);
            expected.push_back(c.gated ? silu_times(g, block_dot(x_row, up.row(c.expert_begin + e, i), c.k)) : g);
          }
    }
    static std::vector<int32_t> host_offsets(const Case& c) {
      std::vector<int32_t> offsets{0};
      for (int32_t r : c.rows_of_expert) offsets.push_back(offsets.back() + r);
      return offsets;
    }
    cuda::Fp8GemmArgs args(void* out, DType type) const {
      cuda::Fp8GemmArgs g;
      g.a = a;
      g.w = w.weight;
      if (c.gated) g.w_up = up.weight;
      if (!c.rows_of_expert.empty()) g.expert_offsets = offsets.data(), g.num_experts = c.num_experts();
      g.expert_begin = c.expert_begin;
      g.out = out;
      g.out_type = type;
      return g;
    }

    const Case c;
    Random random;
    int64_t max_rows;
    TestWeight w, up;
    DeviceArray<uint8_t> memory;
    cuda::Fp8Rows a;
    DeviceArray<int32_t> offsets;
    std::vector<Bounded> expected;  // [total, n]
  };

  // All of out is compared, and memory after the last row must be unchanged.
  static std::vector<float> run(const Operands& o, const GemmConfig* config, bool deterministic = false) {
    DeviceArray<float> out(o.max_rows * o.c.n);
    auto args = o.args(out.data(), DType::kF32);
    args.deterministic = deterministic;
    if (config)
      cuda::fp8_gemm(args, *config, {});
    else
      cuda::fp8_gemm(args, {});
    auto values = out.host();
    for (size_t i = o.expected.size(); i < values.size(); ++i) EXPECT_TRUE(std::isnan(values[i])) << "wrote at " << i;
    values.resize(o.expected.size());
    return values;
  }

 private:
  std::unique_ptr<Ops> ops_;
};

std::string name(const GemmConfig& c) {
  return fmt::format("{} {}x{} multicast {} split {}", c.swap ? "swapped" : "straight", c.sub, c.tile_n, c.multicast,
                     c.split);
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {.m = 1, .n = 264, .k = 384},
      {.m = 37, .n = 1160, .k = 1152},
      {.m = 299, .n = 520, .k = 640},
      {.m = 131, .n = 8968, .k = 256},  // more tiles than clusters
      {.n = 264, .k = 512, .rows_of_expert = {0, 5, 130, 0, 1, 77}, .expert_begin = 2},
      {.n = 136, .k = 128, .rows_of_expert = {0, 0, 0}},
  };
  return all;
}

std::vector<GemmConfig> configs(bool gated) {
  std::vector<GemmConfig> all;
  const auto add = [&](bool swap, int sub, int tile_n, int multicast, int split) {
    all.push_back({.swap = swap, .sub = sub, .tile_n = tile_n, .multicast = multicast, .split = split, .group_m = 2});
  };
  for (int multicast : {1, 2}) {
    add(false, 2, 128, multicast, 1);
    if (!gated) add(false, 1, 176, multicast, 1);
    for (int split : {1, 2, 3, 4, 8}) {
      if (multicast * split > 8) continue;
      const int sub = gated ? 2 : 1;
      add(true, sub, 16, multicast, split);
      add(true, sub, 64, multicast, split);
      if (!gated) add(false, 1, 128, multicast, split);
    }
  }
  return all;
}

TEST_F(Fp8GemmTest, EveryTiling) {
  uint64_t seed = 1;
  for (const Case& c : cases()) {
    const Operands operands(ops(), c, seed++);
    for (const GemmConfig& config : configs(false)) {
      SCOPED_TRACE(fmt::format("{} x {} x {}, {} experts, {}", c.total(), c.n, c.k, c.num_experts(), name(config)));
      const auto out = run(operands, &config);
      ASSERT_TRUE(close(out, operands.expected, {c.total(), c.n}));
      ASSERT_TRUE(same_bits(run(operands, &config), out)) << "a second run";
    }
    ASSERT_TRUE(close(run(operands, nullptr), operands.expected, {c.total(), c.n})) << "the tiling that is chosen";
  }
}

TEST_F(Fp8GemmTest, Gated) {
  uint64_t seed = 100;
  for (Case c : cases()) {
    c.gated = true;
    const Operands operands(ops(), c, seed++);
    for (const GemmConfig& config : configs(true)) {
      SCOPED_TRACE(fmt::format("{} x {} x {}, {} experts, {}", c.total(), c.n, c.k, c.num_experts(), name(config)));
      ASSERT_TRUE(close(run(operands, &config), operands.expected, {c.total(), c.n}));
    }
    ASSERT_TRUE(close(run(operands, nullptr), operands.expected, {c.total(), c.n})) << "the tiling that is chosen";
  }
}

TEST_F(Fp8GemmTest, Bf16OutIsTheRoundedF32) {
  for (const bool gated : {false, true})
    for (const int64_t m : {5, 200}) {
      const Operands o(ops(), {.m = m, .n = 264, .k = 384, .gated = gated}, 7);
      for (const GemmConfig& config : configs(gated)) {
        SCOPED_TRACE(fmt::format("{} rows, gated {}, {}", m, gated, name(config)));
        const auto expected = run(o, &config);
        DeviceArray<uint16_t> out(m * o.c.n);
        cuda::fp8_gemm(o.args(out.data(), DType::kBF16), config, {});
        const auto bits = out.host();
        for (size_t i = 0; i < bits.size(); ++i) ASSERT_EQ(bits[i], f32_to_bf16(expected[i])) << i;
      }
    }
}

// Batch invariance: the bits of a row do not depend on the number of rows, which changes the tiling.
TEST_F(Fp8GemmTest, DeterministicRows) {
  const Operands all(ops(), {.m = 300, .n = 520, .k = 1152}, 9);
  const auto expected = run(all, nullptr, true);
  for (int64_t m : {1, 16, 17, 64, 65, 128, 129}) {
    // The first m rows in their own layout.
    DeviceArray<uint8_t> memory(cuda::fp8_rows_bytes(m, all.c.k));
    const cuda::Fp8Rows a = cuda::fp8_rows_at(memory.data(), m, all.c.k);
    for (int64_t kb = 0; kb < all.c.k / kFp8Block; ++kb) {
      CUDA_CHECK(cudaMemcpy(a.data + kb * m * kFp8Block, all.a.data + kb * all.max_rows * kFp8Block,
                            size_t(m * kFp8Block), cudaMemcpyDeviceToDevice));
      CUDA_CHECK(cudaMemcpy(a.scales + kb * a.scale_stride, all.a.scales + kb * all.a.scale_stride,
                            size_t(m) * sizeof(float), cudaMemcpyDeviceToDevice));
    }
    DeviceArray<float> out(m * all.c.n);
    auto args = all.args(out.data(), DType::kF32);
    args.a = a;
    args.deterministic = true;
    cuda::fp8_gemm(args, {});
    ASSERT_TRUE(same_bits(out.host(), {expected.data(), size_t(m * all.c.n)}, {m, all.c.n})) << m << " rows";
  }
}

// A chain of dependent products in a graph, each starting while the one before it ends: tokens are copied and quantized
// anew in each round, so that a kernel that reads too early reads those of the last round.
TEST_F(Fp8GemmTest, CapturedInAGraph) {
  const int64_t k = 512, rows = 63;
  const Operands o(ops(), {.n = k, .k = k, .rows_of_expert = {3, 0, 60}}, 11);
  Random random(12);
  const DeviceArray<float> x0(random.floats(rows * k)), x1(random.floats(rows * k));
  DeviceArray<float> x(rows * k), hidden(rows * k), out(rows * k);
  DeviceArray<uint8_t> memory(cuda::fp8_rows_bytes(rows, k)), memory2(cuda::fp8_rows_bytes(rows, k));
  const cuda::Fp8Rows a = cuda::fp8_rows_at(memory.data(), rows, k), a2 = cuda::fp8_rows_at(memory2.data(), rows, k);
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreate(&stream));
  const auto chain = [&] {
    cuda::fp8_quantize({.x = x.data(), .out = a}, Stream{stream});
    auto args = o.args(hidden.data(), DType::kF32);
    args.a = a;
    cuda::fp8_gemm(args, Stream{stream});
    cuda::fp8_gemm(args, Stream{stream});
    cuda::fp8_quantize({.x = hidden.data(), .out = a2}, Stream{stream});
    args.a = a2;
    args.out = out.data();
    cuda::fp8_gemm(args, Stream{stream});
  };
  const auto load = [&](const DeviceArray<float>& from) {
    CUDA_CHECK(
        cudaMemcpyAsync(x.data(), from.data(), size_t(rows * k) * sizeof(float), cudaMemcpyDeviceToDevice, stream));
  };
  std::vector<float> expected[2];
  for (int i : {0, 1}) {
    load(i ? x1 : x0);
    chain();
    CUDA_CHECK(cudaStreamSynchronize(stream));
    expected[i] = out.host();
  }
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  chain();
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (int i : {0, 1, 0, 1}) {
    load(i ? x1 : x0);
    CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    ASSERT_TRUE(same_bits(out.host(), expected[i], {rows, k}));
  }
  CUDA_CHECK(cudaGraphExecDestroy(exec));
  CUDA_CHECK(cudaGraphDestroy(graph));
  CUDA_CHECK(cudaStreamDestroy(stream));
}

TEST_F(Fp8GemmTest, WrongShapesAreRefused) {
  const Operands o(ops(), {.m = 4, .n = 264, .k = 384}, 13);
  DeviceArray<float> out(4 * 264);
  const auto good = o.args(out.data(), DType::kF32);
  auto args = good;
  args.a.k = 256;
  EXPECT_THROW(cuda::fp8_gemm(args, {}), Error);
  args = good;
  args.out_type = DType::kF16;
  EXPECT_THROW(cuda::fp8_gemm(args, {}), Error);
  args = good;
  args.expert_begin = 5;
  EXPECT_THROW(cuda::fp8_gemm(args, {}), Error);
  args = good;
  args.num_experts = 2;
  EXPECT_THROW(cuda::fp8_gemm(args, {}), Error);
  EXPECT_THROW(cuda::fp8_gemm(good, {.swap = true, .tile_n = 16, .multicast = 2, .split = 8}, {}), Error);
  EXPECT_THROW(cuda::fp8_gemm(good, {.swap = false, .sub = 2, .tile_n = 128, .split = 2}, {}), Error);
  EXPECT_THROW(cuda::fp8_weight_at(nullptr, nullptr, 1, 12, 128), Error);
}

}  // namespace
}  // namespace moectl::test
