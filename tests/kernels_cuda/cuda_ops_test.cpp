// CudaOps: memory, copies, graphs, and what it says when a card or memory is missing.
#include "kernels/cuda/runtime/cuda_ops.h"
#include "kernels/cuda/runtime/device.h"

#include <cstdlib>
#include <numeric>

#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

class CudaOpsTest : public GpuTest {
 protected:
  std::vector<float> download(Ops& ops, const float* from, int64_t size) {
    Device& device = ops.device();
    const Buffer host = device.alloc_host(size * 4);
    device.copy(host.get(), from, size * 4, {});
    device.synchronize({});
    const float* p = reinterpret_cast<const float*>(host.get());
    return {p, p + size};
  }
};

void set_scratch(Ops& ops, const ScratchShape& shape) {
  ops.set_scratch(ops.device().alloc(ops.scratch_bytes(shape)), shape);
}

float* floats(const Buffer& b) {
  return reinterpret_cast<float*>(b.get());
}

TEST_F(CudaOpsTest, MemoryIsZeroAndAligned) {
  const auto ops = make_ops({.device = "cuda"});
  EXPECT_FALSE(ops->capabilities().host_readable);
  for (int64_t num_bytes : {0, 4, 100, 1 << 22}) {
    const Buffer b = ops->device().alloc(num_bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.get()) % 256, 0u);
    for (float v : download(*ops, floats(b), num_bytes / 4)) ASSERT_EQ(v, 0.0f);
  }
  EXPECT_GT(ops->device().memory().total_bytes, ops->device().memory().free_bytes);
  EXPECT_THROW(ops->device().alloc(-1), Error);
}

TEST_F(CudaOpsTest, TooMuchMemoryIsRefusedWithTheNumbers) {
  const auto ops = make_ops({.device = "cuda"});
  try {
    ops->device().alloc(int64_t{1} << 45);
    FAIL() << "allocated 32 TiB";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kResourceExhausted);
    EXPECT_NE(std::string(e.what()).find("are free; lower"), std::string::npos) << e.what();
  }
  EXPECT_NO_THROW(ops->device().alloc(64));  // the failure is not found again by the next call
  EXPECT_NO_THROW(ops->device().synchronize({}));
}

TEST_F(CudaOpsTest, CardsThatAreNotThereAreNamed) {
  EXPECT_EQ(cuda::why_unusable(0), "");
  EXPECT_NE(cuda::why_unusable(99).find("there is no GPU 99; this machine has"), std::string::npos);
  EXPECT_THROW(make_ops({.device = "cuda", .device_index = 99}), Error);
  EXPECT_EQ(make_ops({.device = "auto"})->numerics_id().find("cuda-sm"), 0u);
  const auto precise = make_ops({.device = "cuda", .precise = true}), fast = make_ops({.device = "cuda"});
  EXPECT_NE(precise->numerics_id(), fast->numerics_id());
  EXPECT_NE(make_ops({.device = "cuda", .portable = true})->numerics_id(), fast->numerics_id());
  EXPECT_EQ(precise->capabilities().kv_dtypes.front(), DType::kF32);
  EXPECT_EQ(fast->capabilities().kv_dtypes.front(), DType::kBF16);
}

// A replay reads and writes the captured memory, with what is there now; capturing computes nothing.
TEST_F(CudaOpsTest, CaptureAndReplay) {
  for (const OpsOptions& options : {OpsOptions{.device = "cuda"}, OpsOptions{.device = "cuda", .precise = true},
                                    OpsOptions{.device = "cuda", .portable = true}}) {
    const auto ops = make_ops(options);
    SCOPED_TRACE(ops->numerics_id());
    constexpr int64_t kRows = 5, kK = 256, kN = 384;
    set_scratch(*ops, {.max_tokens = 8, .num_heads = 1, .num_experts = 1});
    const Matrix m = random_matrix(DType::kF8E4M3, kN, kK, 1);
    const MatrixSpec spec = m.whole();
    const Weight w = ops->pack({&spec, 1});
    const Buffer x = ops->device().alloc(kRows * kK * 4), normed = ops->device().alloc(kRows * kK * 4),
                 out = ops->device().alloc(kRows * kN * 4), other = ops->device().alloc(kRows * kN * 4);
    auto step = [&](const Buffer& to) {
      const Operand rows(normed.get(), w.operand, {kRows, kK});
      ops->rms_norm({.x = View<const float>(floats(x), {kRows, kK}), .out = rows}, {});
      ops->linear({rows, w, View<float>(floats(to), {kRows, kN})}, {});
    };
    const Graph graph = ops->device().graphs()->capture([&] { step(out); });
    ASSERT_NE(graph, nullptr);
    EXPECT_EQ(download(*ops, floats(out), kRows * kN), std::vector<float>(size_t(kRows * kN)));
    for (uint64_t seed : {2, 3}) {
      const auto values = Random(seed).floats(kRows * kK);
      ops->device().upload(x.get(), values.data(), kRows * kK * 4);
      step(other);
      const auto expected = download(*ops, floats(other), kRows * kN);
      ops->device().graphs()->replay(graph, {});
      EXPECT_TRUE(same_bits(download(*ops, floats(out), kRows * kN), expected));
      EXPECT_NE(expected, std::vector<float>(size_t(kRows * kN)));
    }
    EXPECT_THROW(ops->device().graphs()->capture([] { throw Error(Code::kInternal, "on purpose"); }), Error);
    EXPECT_NO_THROW(step(out));
    EXPECT_NO_THROW(ops->device().synchronize({}));
  }
}

// Work on the side stream sees what was there at fork(); what follows join() sees the side stream's results; in streams
// and captured.
TEST_F(CudaOpsTest, ForkAndJoin) {
  for (DType dtype : {DType::kF8E4M3, DType::kBF16, DType::kF32}) {
    const auto ops = make_ops({.device = "cuda"});
    constexpr int64_t kRows = 48, kK = 2048;
    set_scratch(*ops, {.max_tokens = kRows, .num_heads = 1, .num_experts = 1});
    const Matrix m = random_matrix(dtype, kK, kK, 1);
    const MatrixSpec spec = m.whole();
    const Weight w = ops->pack({&spec, 1});
    std::vector<Buffer> memory;
    const auto rows = [&] {
      memory.push_back(ops->device().alloc(kRows * kK * 4));
      return View<float>(floats(memory.back()), {kRows, kK});
    };
    const View<float> x = rows(), a = rows(), b = rows(), c = rows(), d = rows(), out = rows();
    const Operand normed[] = {Operand(rows().data, w.operand, {kRows, kK}),
                              Operand(rows().data, w.operand, {kRows, kK})};  // of each stream
    const auto product = [&](const View<float>& from, const View<float>& to, bool side = false) {
      ops->rms_norm({.x = from, .out = normed[side]}, {});  // so that values stay of one size
      ops->linear({normed[side], w, to}, {});
    };
    const auto step = [&](bool forked) {
      product(x, a);
      const auto side = [&] {
        product(a, b, true);
        product(b, b, true);
      };
      if (forked)
        ops->device().fork(side);
      else
        side();
      product(a, c);
      product(c, c);
      if (forked) ops->device().join();
      ops->rms_norm({.x = b, .residual = c, .out = d}, {});
      product(d, out);
    };
    const Graph graph = ops->device().graphs()->capture([&] { step(true); });
    for (uint64_t seed = 1; seed <= 12; ++seed) {
      SCOPED_TRACE(fmt::format("{}, input {}", dtype_name(dtype), seed));
      const auto values = Random(seed).floats(kRows * kK);
      ops->device().upload(x.data, values.data(), kRows * kK * 4);
      step(false);
      const auto expected = download(*ops, out.data, kRows * kK);
      for (int i = 0; i < 3; ++i) step(true);
      ASSERT_TRUE(same_bits(download(*ops, out.data, kRows * kK), expected)) << "in streams";
      for (int i = 0; i < 3; ++i) ops->device().graphs()->replay(graph, {});
      ASSERT_TRUE(same_bits(download(*ops, out.data, kRows * kK), expected)) << "captured";
    }
  }
}

// A kernel that reads an address which is not mapped, in a process of its own: nothing after it works there.
void read_what_is_not_there(bool blocking) {
  if (blocking) setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
  const auto ops = make_ops({.device = "cuda"});
  const Buffer rows = ops->device().alloc(sizeof(float*)), out = ops->device().alloc(64 * 4);
  const float* nowhere = reinterpret_cast<const float*>(uintptr_t{1} << 46);
  ops->device().upload(rows.get(), &nowhere, sizeof nowhere);
  const auto tell = [](const char* when, auto&& call) {
    try {
      call();
      std::fprintf(stderr, "%s: no error\n", when);
    } catch (const Error& e) {
      std::fprintf(stderr, "%s: %s\n", when, e.what());
    }
  };
  const View<float> to(floats(out), {1, 64});
  tell("launch", [&] {
    ops->moe_combine(
        {.expert_rows = View<const void* const>(reinterpret_cast<const void* const*>(rows.get()), {1, 1}), .out = to},
        {});
  });
  tell("synchronize", [&] { ops->device().synchronize({}); });
  tell("next", [&] { ops->rms_norm({.x = to, .out = to}, {}); });
  std::exit(3);
}

using CudaOpsDeathTest = CudaOpsTest;

TEST_F(CudaOpsDeathTest, AFailureOnTheDeviceNamesTheOperation) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      read_what_is_not_there(false), testing::ExitedWithCode(3),
      "launch: no error\n"
      "synchronize: GPU 0: an illegal memory access was encountered, in moe_combine or an operation before it "
      ".*CUDA_LAUNCH_BLOCKING=1.*: restart this instance\n"
      "next: GPU 0: an illegal memory access was encountered, in rms_norm or an operation before it .*: restart "
      "this instance");
}

TEST_F(CudaOpsDeathTest, BlockingLaunchesTellWhichOneFailed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(read_what_is_not_there(true), testing::ExitedWithCode(3),
              "launch: GPU 0: an illegal memory access was encountered, in moe_combine; .*: restart this instance");
}

// Larger than a part of the staging memory, in panels and in plain rows.
TEST_F(CudaOpsTest, PacksWhatIsLargerThanItsStaging) {
  MirrorOps gpu(make_ops({.device = "cuda", .num_threads = 4, .precise = true}));
  for (DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    const int64_t n = 9000, k = 4096 + 72;
    const Matrix m = random_matrix(dtype, n, k, 3);
    const MatrixSpec spec = m.whole();
    const Weight w = gpu.pack({&spec, 1});
    for (int64_t at : {int64_t{0}, int64_t{2047}, k - 1}) {
      std::vector<float> x(static_cast<size_t>(k)), out(size_t(n), NAN);
      x[size_t(at)] = 1.0f;
      gpu.linear({View<const float>(x.data(), {1, k}), w, View<float>(out.data(), {1, n})}, {});
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(out[size_t(i)], float(weight_value(spec, i, at))) << i << ", " << at;
    }
  }
}

// Compressed KV of DeepSeek's attention: its dtype, and the FP8 rows that mla_output writes for the product after it.
TEST_F(CudaOpsTest, CompressedKvOfDeepSeek) {
  if (!takes_hopper_kernels()) GTEST_SKIP() << "no Hopper";
  constexpr int64_t kHeads = 4, kNope = 128, kRope = 64, kRank = 512, kValue = 128, kN = 256, kTokens = 9, kPage = 64;
  struct Packed {
    Weight uk, uv;
  };
  auto pack = [&](Ops& ops, DType dtype, int64_t nope) {
    std::vector<Matrix> uk, uv;
    std::vector<MatrixSpec> uk_specs, uv_specs;
    for (int64_t h = 0; h < kHeads; ++h) {
      uk.push_back(random_matrix(dtype, kRank, nope, uint64_t(2 * h + 1)));
      uv.push_back(random_matrix(dtype, kValue, kRank, uint64_t(2 * h + 2)));
    }
    for (const Matrix& m : uk) uk_specs.push_back(m.whole());
    for (const Matrix& m : uv) uv_specs.push_back(m.whole());
    return Packed{ops.pack(uk_specs), ops.pack(uv_specs)};
  };
  const ScratchShape shape = {
      .max_tokens = 64, .num_heads = kHeads, .q_head_size = kRank + kRope, .out_head_size = kRank};
  auto make = [&](bool precise, bool portable = false) {
    auto ops = make_ops({.device = "cuda", .precise = precise, .portable = portable});
    set_scratch(*ops, shape);
    return ops;
  };
  const auto ops = make(false), precise = make(true), portable = make(false, true);
  const KvView cache(nullptr, DType::kBF16, {10, kPage, kRank + kRope, 0});
  KvView f32_cache = cache, other_pages = cache;
  f32_cache.dtype = DType::kF32;
  other_pages.shape[1] = 16;
  const Packed f8 = pack(*ops, DType::kF8E4M3, kNope), bf16 = pack(*ops, DType::kBF16, kNope);
  EXPECT_EQ(ops->mla_form(f8.uk, f8.uv, cache).latent, DType::kBF16);
  EXPECT_EQ(ops->mla_form(bf16.uk, f8.uv, cache).latent, DType::kBF16);
  EXPECT_EQ(ops->mla_form(f8.uk, f8.uv, f32_cache).latent, DType::kF32);
  EXPECT_EQ(ops->mla_form(f8.uk, f8.uv, other_pages).latent, DType::kF32);
  EXPECT_EQ(precise->mla_form(f8.uk, f8.uv, cache).latent, DType::kF32);
  EXPECT_EQ(portable->mla_form(f8.uk, f8.uv, cache).latent, DType::kF32);
  EXPECT_EQ(ops->mla_form(pack(*ops, DType::kF16, kNope).uk, f8.uv, cache).latent, DType::kF32);
  EXPECT_EQ(ops->mla_form(pack(*ops, DType::kF8E4M3, 256).uk, f8.uv, cache).latent, DType::kF32);

  const Matrix o = random_matrix(DType::kF8E4M3, kN, kHeads * kValue, 20);
  const MatrixSpec o_spec = o.whole();
  const Weight w_o = ops->pack({&o_spec, 1});
  constexpr int64_t kLatents = kTokens * kHeads * kRank, kValues = kTokens * kHeads * kValue;
  ASSERT_EQ(w_o.operand, DType::kF8E4M3);
  Device& device = ops->device();
  const Buffer latent = device.alloc(kLatents * 2), heads = device.alloc(kValues * 4),
               out = device.alloc(kTokens * kN * 4),
               fp8 = device.alloc(Operand::num_bytes(DType::kF8E4M3, kTokens, kHeads * kValue)),
               again = device.alloc(Operand::num_bytes(DType::kF8E4M3, kTokens, kHeads * kValue));
  auto product = [&](const Buffer& x) {
    ops->linear(
        {Operand(x.get(), DType::kF8E4M3, {kTokens, kHeads * kValue}), w_o, View<float>(floats(out), {kTokens, kN})},
        {});
    return download(*ops, floats(out), kTokens * kN);
  };
  std::vector<float> last;
  for (uint64_t seed : {1, 2}) {
    std::vector<uint16_t> bits;
    for (float v : Random(seed).floats(kLatents)) bits.push_back(f32_to_bf16(v));
    device.upload(latent.get(), bits.data(), kLatents * 2);
    Operands to = View<float>(floats(heads), {kTokens, kHeads, kValue});
    to.set(Operand(fp8.get(), DType::kF8E4M3, {kTokens, kHeads * kValue}));
    ops->mla_output({Operand(latent.get(), DType::kBF16, {kTokens, kHeads, kRank}), f8.uv, to}, {});
    const auto result = product(fp8);
    ops->quantize({View<const float>(floats(heads), {kTokens, kHeads * kValue}),
                   Operands(Operand(again.get(), DType::kF8E4M3, {kTokens, kHeads * kValue}))},
                  {});
    EXPECT_TRUE(same_bits(product(again), result)) << "quantized from the f32 rows";
    EXPECT_NE(result, last);
    last = result;
  }
}

}  // namespace
}  // namespace moectl::test
