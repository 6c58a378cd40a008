// bench_comm()'s measurements of NCCL beside another communicator, with a stand-in for the library
// (tests/faults/nccl.cpp) and ranks on the host: which rows there are, in which order, and that both move the same
// values.
#include <gmock/gmock.h>

#include <map>

#include "core/comm/bench_groups.h"
#include "core/comm/nccl_comm.h"
#include "core/comm/nccl_library.h"
#include "tests/harness/host_peers.h"

namespace moectl::test {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;

const NcclLibrary& library() {
  static const NcclLibrary loaded({MOECTL_BINARY_DIR "/nccl_stand_in/good/libnccl.so.2"});
  return loaded;
}

// Two ranks, one number of tokens.
class BenchCommNccl : public testing::Test {
 protected:
  CommReport measure(const std::vector<Collectives>& collectives) {
    setup_->collectives = collectives;
    std::vector<std::unique_ptr<Ops>> ops;
    for (int r = 0; r < 2; ++r) ops.push_back(make_ops({.device = "cpu"}));
    const auto devices = host_peers(2);
    std::vector<CommBenchGroup> groups;
    for (const Collectives c : collectives)
      groups.push_back({.collectives = c,
                        .by_rank = c == Collectives::kNccl
                                       ? make_nccl_communicators(devices_of(devices), {.library = &library()})
                                       : make_local_communicators(2)});
    return measure_groups(setup_, ops, groups);
  }
  CommBenchOptions& options() { return setup_->options; }

 private:
  const std::shared_ptr<CommBenchSetup> setup_ =
      std::make_shared<CommBenchSetup>(CommBenchSetup{.options = {.ep_size = 2,
                                                                  .tokens = {5},
                                                                  .hidden_size = 36,
                                                                  .top_k = 3,
                                                                  .num_experts = 8,
                                                                  .iterations = 4,
                                                                  .pause = std::chrono::milliseconds(0)},
                                                      .placement = make_placement(8, 2),
                                                      .ordinals = {0, 0}});
};

std::vector<std::string> names(const CommReport& report) {
  std::vector<std::string> all;
  for (const CommResult& r : report.results)
    all.push_back(fmt::format("{} {} {}", r.operation, r.form, r.collectives ? collectives_name(*r.collectives) : "-"));
  return all;
}

void expect_times(const CommReport& report) {
  for (const CommResult& r : report.results) {
    SCOPED_TRACE(r.operation);
    for (const CommTimes& t : {r.back_to_back, r.after_pause}) {
      EXPECT_EQ(t.iterations, 4);
      EXPECT_GT(t.p50_seconds, 0);
      EXPECT_GE(t.max_seconds, t.p50_seconds);
    }
  }
}

TEST_F(BenchCommNccl, RowsStandBesideThoseOfTheOther) {
  std::vector<std::pair<int, int>> progress;
  options().progress = [&](int done, int total) { progress.emplace_back(done, total); };
  const CommReport report = measure({Collectives::kLocal, Collectives::kNccl});
  const char* kinds[] = {"barrier ",      "all_gather ",  "dispatch deterministic", "combine deterministic",
                         "dispatch fast", "combine fast", "all_reduce f32 wire"};
  std::vector<std::string> expected = {"stamps  -"};
  for (const char* kind : kinds)
    for (const char* by : {"local", "nccl"}) expected.push_back(fmt::format("{} {}", kind, by));
  EXPECT_THAT(names(report), ElementsAreArray(expected));
  expect_times(report);
  EXPECT_FALSE(report.link.empty());
  EXPECT_GT(report.flag_seconds, 0);
  ASSERT_EQ(progress.size(), 12u);  // link, stamps; of both: barrier, all-gather, experts in both forms, all-reduce
  for (size_t i = 0; i < progress.size(); ++i) EXPECT_EQ(progress[i], std::make_pair(int(i) + 1, 12));
  // The bits and bytes of both, but of `fast`, where ranks add in another order. A sum of two is the same in any order.
  std::map<std::string, std::pair<uint64_t, int64_t>> first;
  for (const CommResult& r : report.results) {
    if (r.form == "fast") continue;
    const auto [it, is_new] = first.emplace(r.operation + r.form, std::pair(r.output_hash, r.num_bytes));
    EXPECT_EQ(it->second, std::pair(r.output_hash, r.num_bytes)) << r.operation << " " << r.form;
  }
}

TEST_F(BenchCommNccl, AloneItMeasuresNoLink) {
  const CommReport report = measure({Collectives::kNccl});
  EXPECT_THAT(names(report), ElementsAre("stamps  -", "barrier  nccl", "all_gather  nccl",
                                         "dispatch deterministic nccl", "combine deterministic nccl",
                                         "dispatch fast nccl", "combine fast nccl", "all_reduce f32 wire nccl"));
  expect_times(report);
  EXPECT_TRUE(report.link.empty());
  EXPECT_EQ(report.flag_seconds, 0);
}

// The backends that store into peers' memory are of p2p: refused where NCCL is alone, of no effect on it beside p2p.
TEST_F(BenchCommNccl, BackendsAreOfP2p) {
  options().backend = All2AllBackend::kLowLatency;
  try {
    measure({Collectives::kNccl});
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kBadConfig);
    EXPECT_THAT(e.what(), HasSubstr("--all2all-backend low_latency"));
    EXPECT_THAT(e.what(), HasSubstr("use auto or naive"));
  }
  if (make_ops({.device = "cpu"})->expert_all_to_all()) {
    EXPECT_EQ(measure({Collectives::kLocal, Collectives::kNccl}).results.size(), 15u);
  }
}

TEST_F(BenchCommNccl, ARankThatFailsEndsAll) {
  for (const int at : {2, 4, 12}) {
    options().progress = [at](int done, int) {
      if (done == at) throw Error(Code::kInternal, "rank 0 fails here");
    };
    try {
      measure({Collectives::kLocal, Collectives::kNccl});
      ADD_FAILURE() << "accepted";
    } catch (const Error& e) {
      EXPECT_STREQ(e.what(), "rank 0 fails here");
    }
  }
}

}  // namespace
}  // namespace moectl::test
