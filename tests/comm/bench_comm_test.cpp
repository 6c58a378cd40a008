// bench_comm() with ranks that are threads on the CPU: every measurement is there, its bytes are those of the rows that
// must be moved, outputs are equal where bits must be, and faults end all ranks.
#include "core/comm/bench_comm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace moectl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

CommBenchOptions small_options(int ep_size) {
  return {.device = "cpu",
          .ep_size = ep_size,
          .tokens = {5, 1},
          .hidden_size = 36,
          .top_k = 3,
          .num_experts = 8,
          .iterations = 4,
          .pause = std::chrono::milliseconds(0)};
}

std::vector<std::string> names(const CommReport& report) {
  std::vector<std::string> all;
  for (const CommResult& r : report.results) all.push_back(fmt::format("{} {} {}", r.operation, r.form, r.tokens));
  return all;
}

// By form and tokens.
std::map<std::string, uint64_t> hashes(const CommReport& report) {
  std::map<std::string, uint64_t> all;
  for (const CommResult& r : report.results)
    if (r.output_hash != 0) all[fmt::format("{} {}", r.form, r.tokens)] = r.output_hash;
  return all;
}

void expect_times(const CommTimes& t, int iterations) {
  EXPECT_EQ(t.iterations, iterations);
  EXPECT_GT(t.p50_seconds, 0);
  EXPECT_GE(t.p99_seconds, t.p50_seconds);
  EXPECT_GE(t.max_seconds, t.p99_seconds);
  EXPECT_LT(t.max_seconds, 60);
}

TEST(BenchComm, MeasuresEverything) {
  CommBenchOptions options = small_options(3);
  std::vector<std::pair<int, int>> progress;
  options.progress = [&](int done, int total) { progress.emplace_back(done, total); };
  const CommReport report = bench_comm(options);
  EXPECT_EQ(report.device, "cpu");
  EXPECT_TRUE(report.devices.empty());
  EXPECT_FALSE(report.crosses_link);
  EXPECT_EQ(report.dtype, DType::kF32);
  EXPECT_EQ(report.results_dtype, DType::kF32);
  EXPECT_GT(report.clock_step_seconds, 0);
  EXPECT_GT(report.flag_seconds, 0);
  ASSERT_EQ(report.link.size(), 2u);
  EXPECT_EQ(report.link[0].transfer, "stores");
  EXPECT_EQ(report.link[1].transfer, "loads");
  for (const LinkRate& r : report.link) {
    EXPECT_EQ(r.num_blocks, 1);
    EXPECT_GT(r.bytes_per_second, 1e6);
  }
  EXPECT_THAT(names(report),
              ElementsAre("stamps  0", "barrier  0", "all_gather  5", "dispatch deterministic 5",
                          "combine deterministic 5", "dispatch fast 5", "combine fast 5", "all_reduce f32 wire 5",
                          "all_gather  1", "dispatch deterministic 1", "combine deterministic 1", "dispatch fast 1",
                          "combine fast 1", "all_reduce f32 wire 1"));
  EXPECT_EQ(report.nccl, "");
  EXPECT_EQ(report.missing, "");
  for (const CommResult& r : report.results) {
    SCOPED_TRACE(r.operation);
    expect_times(r.back_to_back, 4);
    expect_times(r.after_pause, 4);
    EXPECT_EQ(r.rounds, 1);
    EXPECT_EQ(r.num_bytes > 0, r.tokens > 0);
    EXPECT_EQ(r.output_hash != 0, r.operation == "combine" || r.operation == "all_reduce");
    if (r.operation == "stamps")
      EXPECT_FALSE(r.collectives);
    else
      EXPECT_EQ(r.collectives, Collectives::kLocal);
  }
  ASSERT_EQ(progress.size(), 11u);
  for (size_t i = 0; i < progress.size(); ++i) EXPECT_EQ(progress[i], std::make_pair(int(i) + 1, 11));
}

// Every token chooses all experts, so that each rank sends it to all others.
TEST(BenchComm, BytesAreThoseOfTheRows) {
  CommBenchOptions options = small_options(4);
  options.top_k = 8;
  const int64_t row = 36 * 4;
  for (const CommResult& r : bench_comm(options).results) {
    const int64_t expected = r.tokens == 0                                           ? 0
                             : r.operation == "all_reduce"                           ? r.tokens * row
                             : r.operation == "combine" && r.form == "deterministic" ? r.tokens * 6 * row
                                                                                     : r.tokens * 3 * row;
    EXPECT_EQ(r.num_bytes, expected) << r.operation << " " << r.form << " " << r.tokens;
  }
  // One expert per rank and choices of two: at most as many results as choices, at least the half of them.
  options.num_experts = 4;
  options.top_k = 2;
  options.tokens = {64};
  for (const CommResult& r : bench_comm(options).results)
    if (r.operation == "dispatch" || r.operation == "combine") {
      EXPECT_GE(r.num_bytes, 64 * row);  // a token chooses one expert of its own rank at most
      EXPECT_LE(r.num_bytes, 64 * 2 * row);
    }
}

TEST(BenchComm, EqualInputsGiveEqualBits) {
  const CommBenchOptions options = small_options(2);
  const auto expected = hashes(bench_comm(options));
  ASSERT_EQ(expected.size(), 6u);
  EXPECT_NE(expected.at("deterministic 5"), expected.at("deterministic 1"));
  EXPECT_EQ(hashes(bench_comm(options)), expected);
  std::vector<All2AllBackend> backends = {All2AllBackend::kNaive};
  if (make_ops({.device = "cpu"})->expert_all_to_all())
    backends.insert(backends.end(), {All2AllBackend::kLowLatency, All2AllBackend::kHighThroughput});
  for (const All2AllBackend backend : backends) {
    CommBenchOptions other = options;
    other.backend = backend;
    other.iterations = 7;
    const auto got = hashes(bench_comm(other));
    for (const char* of : {"deterministic 5", "deterministic 1", "f32 wire 5", "f32 wire 1"})
      EXPECT_EQ(got.at(of), expected.at(of)) << all2all_backend_name(backend);
  }
}

Error refusal(const CommBenchOptions& options) {
  try {
    bench_comm(options);
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "accepted";
  return Error(Code::kInternal, "accepted");
}

TEST(BenchComm, RefusesWhatDoesNotFit) {
  const auto expect = [](auto&& change, const char* text) {
    CommBenchOptions options = small_options(2);
    change(options);
    const Error e = refusal(options);
    EXPECT_EQ(e.code(), Code::kBadConfig) << e.what();
    EXPECT_THAT(e.what(), HasSubstr(text));
  };
  expect([](auto& o) { o.ep_size = 1; }, "--ep-size 1: a group has 2 to 32 ranks");
  expect([](auto& o) { o.devices = {0, 1, 2}; }, "--devices names 3 GPU(s) for 2 ranks");
  expect([](auto& o) { o.top_k = 9; }, "--top-k 9: there are 8 experts");
  expect([](auto& o) { o.dtype = "fp8"; }, "--dtype fp8: the backend cpu-");
  expect([](auto& o) { o.tokens = {0}; }, "--tokens");
  for (const char* name : {"p2p", "nccl"})
    expect([&](auto& o) { o.collectives = name; }, "is for ranks on GPUs, and these are on the CPU: leave it away");
  expect([](auto& o) { o.collectives = "gloo"; }, "--collectives gloo: expected");
}

TEST(BenchComm, AutoIsLocalOnTheCpu) {
  CommBenchOptions options = small_options(2);
  options.tokens = {1};
  options.collectives = "auto";
  for (const CommResult& r : bench_comm(options).results)
    EXPECT_EQ(r.collectives.value_or(Collectives::kLocal), Collectives::kLocal);
}

// What one rank throws ends all of them, at once, and is what the caller sees.
TEST(BenchComm, ARankThatFailsEndsAll) {
  for (const int at : {1, 2, 4, 5, 11}) {
    CommBenchOptions options = small_options(3);
    options.progress = [at](int done, int) {
      if (done == at) throw Error(Code::kInternal, "rank 0 fails here");
    };
    EXPECT_STREQ(refusal(options).what(), "rank 0 fails here");
  }
}

}  // namespace
}  // namespace moectl
