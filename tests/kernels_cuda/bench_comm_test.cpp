// bench_comm() and LinkBench on GPUs; with one GPU, ranks share it.
#include "core/comm/bench_comm.h"

#include <map>

#include "kernels/bench_link.h"
#include "kernels/gpu.h"
#include "tests/kernels_cuda/gpu_test.h"

namespace moectl::test {
namespace {

[[maybe_unused]] const bool kEager = (load_kernels_eagerly(), true);

class BenchCommTest : public GpuTest {
 protected:
  static int num_devices() {
    int count = 0;
    CUDA_CHECK(cudaGetDeviceCount(&count));
    return count;
  }
  static CommBenchOptions options() {
    return {.device = "cuda",
            .ep_size = 2,
            .devices = {0, 1 % num_devices()},
            .tokens = {1, 33},
            .hidden_size = 512,
            .top_k = 4,
            .num_experts = 16,
            .iterations = 20,
            .pause = std::chrono::milliseconds(1)};
  }
};

TEST_F(BenchCommTest, LinkCopiesAndStamps) {
  const auto ops = make_ops({.device = "cuda"});
  Device& device = ops->device();
  const auto link = make_link_bench(device);
  EXPECT_GT(link->clock_step_seconds(), 0);
  EXPECT_LE(link->clock_step_seconds(), 2e-6) << "shorter operations could not be timed";
  std::vector<int> host(100'004);
  for (size_t i = 0; i < host.size(); ++i) host[i] = int(i * 7);
  const DeviceArray<int> from(host);
  const int64_t size = int64_t(host.size()), bytes = size * 4;
  std::vector<int> blocks = link->num_blocks();
  ASSERT_TRUE(link->has_copy_engine());
  blocks.push_back(0);
  for (const int num_blocks : blocks) {
    DeviceArray<int> to(size + 4);
    link->copy({.to = to.data(), .from = from.data(), .num_bytes = bytes, .num_blocks = num_blocks}, device.stream());
    device.synchronize(device.stream());
    const std::vector<int> got = to.host();
    EXPECT_TRUE(std::equal(host.begin(), host.end(), got.begin())) << num_blocks << " blocks";
    EXPECT_EQ(got[size_t(size)], -1) << num_blocks << " blocks";
  }
  const DeviceArray<int64_t> log(std::vector<int64_t>(4, 0));
  for (int i = 0; i < 5; ++i) link->stamp(View<int64_t>(log.data(), {4}), device.stream());
  device.synchronize(device.stream());
  const std::vector<int64_t> stamps = log.host();
  EXPECT_EQ(stamps[0], 5);
  EXPECT_GT(stamps[1], 0);
  EXPECT_LE(stamps[1], stamps[2]);
  EXPECT_LE(stamps[2], stamps[3]);
}

TEST_F(BenchCommTest, MeasuresEverything) {
  const CommReport report = bench_comm(options());
  EXPECT_EQ(report.device, "cuda");
  EXPECT_EQ(report.crosses_link, num_devices() > 1);
  EXPECT_EQ(report.link.size(), 7u) << "stores and loads by 1, 8 and all blocks, and the copy engine";
  for (const LinkRate& r : report.link) EXPECT_GT(r.bytes_per_second, 1e9) << r.transfer << " " << r.num_blocks;
  EXPECT_GT(report.flag_seconds, 0);
  EXPECT_LT(report.flag_seconds, 1e-3);
  EXPECT_EQ(report.nccl.empty(), !report.missing.empty()) << report.missing;
  // Stamps; of each a barrier, and per number of tokens all-gather, dispatch and combine in both forms, all-reduce; p2p
  // has the all-reduce with a bf16 wire, too.
  EXPECT_EQ(report.results.size(), 1u + (1 + 2 * 7) + (report.nccl.empty() ? 0 : 1 + 2 * 6));
  std::map<std::string, uint64_t> hashes;  // p2p and NCCL: equal in the deterministic form, and a sum of two in any
  for (const CommResult& r : report.results)
    if (r.form == "deterministic" || r.form == "f32 wire") {
      const std::string name = fmt::format("{} {} {}", r.operation, r.form, r.tokens);
      EXPECT_EQ(hashes.emplace(name, r.output_hash).first->second, r.output_hash) << name;
    }
  for (const CommResult& r : report.results) {
    EXPECT_GE(r.back_to_back.iterations, 20) << r.operation;
    EXPECT_EQ(r.after_pause.iterations, 20) << r.operation;
    EXPECT_GE(r.back_to_back.p50_seconds, 0) << r.operation;
    EXPECT_LT(r.back_to_back.p50_seconds, 0.1) << r.operation;
    if (r.operation != "stamps") {
      EXPECT_GT(r.back_to_back.max_seconds, 0) << r.operation;
    }
  }
}

TEST_F(BenchCommTest, BackendsGiveEqualBits) {
  const auto hashes = [](const CommBenchOptions& options) {
    std::vector<uint64_t> all;
    for (const CommResult& r : bench_comm(options).results)
      if (r.operation == "combine" && r.form == "deterministic" && r.collectives == Collectives::kP2p)
        all.push_back(r.output_hash);
    return all;
  };
  CommBenchOptions naive = options();
  naive.backend = All2AllBackend::kNaive;
  const std::vector<uint64_t> expected = hashes(naive);
  ASSERT_EQ(expected.size(), 2u);
  if (!make_ops({.device = "cuda", .has_peers = true})->expert_all_to_all())
    GTEST_SKIP() << "this version has one backend on GPUs";
  for (const All2AllBackend backend :
       {All2AllBackend::kAuto, All2AllBackend::kLowLatency, All2AllBackend::kHighThroughput}) {
    CommBenchOptions other = options();
    other.backend = backend;
    EXPECT_EQ(hashes(other), expected) << all2all_backend_name(backend);
  }
}

TEST_F(BenchCommTest, RefusesWhatIsNotThere) {
  CommBenchOptions absent = options();
  absent.devices = {0, 63};
  EXPECT_THROW(bench_comm(absent), Error);
}

}  // namespace
}  // namespace moectl::test
