// The communicator over the real NCCL, on GPUs of their own (NCCL takes one rank per GPU): skipped on a machine with
// fewer than two. What needs no GPU: tests/comm/nccl_comm_test.cpp.
#include "core/comm/nccl_comm.h"

#include "tests/kernels_cuda/gpu_ranks.h"

namespace moectl::test {
namespace {

class NcclTest : public RanksOnGpus {
 protected:
  void SetUp() override {
    RanksOnGpus::SetUp();
    if (IsSkipped()) return;
    CUDA_CHECK(cudaGetDeviceCount(&num_gpus_));
    if (num_gpus_ < 2) GTEST_SKIP() << "one GPU; NCCL takes one rank per GPU";
    if (const std::string why = why_no_nccl(); !why.empty()) GTEST_SKIP() << why;
  }
  std::vector<Rank> nccl_ranks(NcclOptions options = {}) const {
    std::vector<Rank> all(static_cast<size_t>(num_gpus_));
    std::vector<Device*> devices;
    for (int r = 0; r < num_gpus_; ++r) {
      all[size_t(r)].ops = make_ops({.device = "cuda", .device_index = r, .has_peers = true});
      devices.push_back(&all[size_t(r)].device());
    }
    auto comms = make_nccl_communicators(devices, options);
    for (int r = 0; r < num_gpus_; ++r) all[size_t(r)].comm = std::move(comms[size_t(r)]);
    return all;
  }

  int num_gpus_ = 0;
};

// Small whole numbers: sums are exact in any order.
float value(int rank, int64_t i, int round) {
  return float((rank + 1) * 100 + i % 97 + round);
}

TEST_F(NcclTest, CollectivesGiveWhatTheHostComputes) {
  for (const bool deterministic : {false, true})
    for (const bool captured : {false, true}) {
      SCOPED_TRACE(fmt::format("deterministic {}, captured {}", deterministic, captured));
      constexpr int64_t kEach = 1031;
      const int size = num_gpus_;
      const int64_t all = kEach * size;
      std::vector<Rank> group = nccl_ranks({.deterministic = deterministic, .scratch_floats = 700});
      on_all(group, [&](Rank& rank) {
        Device& d = rank.device();
        const int r = rank.comm->rank();
        const Buffer send = d.alloc(all * 4), gathered = d.alloc(all * 4), exchanged = d.alloc(all * 4),
                     reduced = d.alloc(all * 4), scattered = d.alloc(kEach * 4);
        for (const Buffer* b : {&send, &gathered, &exchanged, &reduced}) rank.comm->register_buffer(b->get(), all * 4);
        rank.comm->register_buffer(scattered.get(), kEach * 4);
        const auto run = [&] {
          rank.comm->barrier(rank.stream());
          rank.comm->all_gather(send.get(), gathered.get(), kEach * 4, rank.stream());
          rank.comm->all_to_all(send.get(), exchanged.get(), kEach * 4, rank.stream());
          d.copy(reduced.get(), send.get(), all * 4, rank.stream());
          rank.comm->all_reduce(floats(reduced, all), rank.stream());
          rank.comm->reduce_scatter(floats(send, all), floats(scattered, kEach), rank.stream());
        };
        Graph graph;
        if (captured) {
          graph = d.graphs()->capture(run);
          rank.comm->all_gather_host(0);
        }
        for (int round = 0; round < 5; ++round) {
          std::vector<float> mine, expect_gathered, expect_exchanged, expect_reduced;
          for (int64_t i = 0; i < all; ++i) {
            const int peer = int(i / kEach);
            mine.push_back(value(r, i, round));
            expect_gathered.push_back(value(peer, i % kEach, round));
            expect_exchanged.push_back(value(peer, r * kEach + i % kEach, round));
            float sum = 0;
            for (int p = 0; p < size; ++p) sum += value(p, i, round);
            expect_reduced.push_back(sum);
          }
          d.upload(send.get(), mine.data(), all * 4);
          captured ? d.graphs()->replay(graph, rank.stream()) : run();
          EXPECT_TRUE(same_bits(download(rank, gathered, all), expect_gathered));
          EXPECT_TRUE(same_bits(download(rank, exchanged, all), expect_exchanged));
          EXPECT_TRUE(same_bits(download(rank, reduced, all), expect_reduced));
          EXPECT_TRUE(same_bits(
              download(rank, scattered, kEach),
              std::vector<float>(expect_reduced.begin() + r * kEach, expect_reduced.begin() + (r + 1) * kEach)));
        }
        rank.comm->all_gather_host(0);
      });
    }
}

TEST_F(NcclTest, AnAbortEndsAWaitOnTheDevice) {
  std::vector<Rank> group = nccl_ranks();
  Rank &waits = group[0], &fails = group[1];
  waits.comm->barrier(waits.stream());
  fails.comm->abort("it ran out of luck");
  waits.device().synchronize(waits.stream());
  try {
    waits.comm->check();
    FAIL() << "a barrier without a peer";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("it ran out of luck"), std::string::npos) << e.what();
  }
}

// In a captured graph, which the host knows nothing of: the marks around the collective tell.
TEST_F(NcclTest, APeerThatDoesNotComeIsNamed) {
  std::vector<Rank> group = nccl_ranks({.timeout = std::chrono::seconds(2)});
  std::vector<Graph> graphs(group.size());
  on_all(group, [&](Rank& rank) {
    graphs[size_t(rank.comm->rank())] = rank.device().graphs()->capture([&] { rank.comm->barrier(rank.stream()); });
  });
  for (size_t r = 0; r + 1 < group.size(); ++r) group[r].device().graphs()->replay(graphs[r], group[r].stream());
  group[0].device().synchronize(group[0].stream());
  try {
    group[0].comm->check();
    FAIL() << "a barrier without a peer";
  } catch (const Error& e) {
    const std::string expected = fmt::format("in a barrier over NCCL for rank {}", group.size() - 1);
    EXPECT_NE(std::string(e.what()).find(expected), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace moectl::test
