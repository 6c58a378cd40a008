// The p2p communicator: every collective against values computed on the host, eagerly and in a captured graph, with
// ranks on GPUs of their own or, where there are fewer, on shared ones; and what happens when a peer does not come.
#include <numeric>

#include "tests/kernels_cuda/gpu_ranks.h"

namespace moectl::test {
namespace {

using P2pCommTest = RanksOnGpus;

float value(int rank, int64_t i, int round) {
  return float((rank + 1) * 1000 + i % 97 + round) * 0.37f;
}

TEST_F(P2pCommTest, CollectivesGiveWhatTheHostComputes) {
  for (const int size : {1, 2, 3, 4})
    for (const bool captured : {false, true}) {
      SCOPED_TRACE(fmt::format("{} ranks, captured {}", size, captured));
      constexpr int64_t kEach = 1031;
      const int64_t all = kEach * size;
      std::vector<Rank> group = ranks(size);
      on_all(group, [&](Rank& rank) {
        Device& d = rank.device();
        const int r = rank.comm->rank();
        const Buffer send = d.alloc(all * 4), gathered = d.alloc(all * 4), exchanged = d.alloc(all * 4),
                     reduced = d.alloc(all * 4), scattered = d.alloc(kEach * 4);
        for (const Buffer* b : {&send, &gathered, &exchanged, &reduced}) rank.comm->register_buffer(b->get(), all * 4);
        rank.comm->register_buffer(scattered.get(), kEach * 4);
        const auto run = [&] {
          rank.comm->all_gather(send.get(), gathered.get(), kEach * 4, rank.stream());
          rank.comm->all_to_all(send.get(), exchanged.get(), kEach * 4, rank.stream());
          d.copy(reduced.get(), send.get(), all * 4, rank.stream());
          rank.comm->all_reduce(floats(reduced, all), rank.stream());
          rank.comm->reduce_scatter(floats(send, all), floats(scattered, kEach), rank.stream());
        };
        Graph graph;
        if (captured) {
          graph = d.graphs()->capture(run);
          rank.comm->all_gather_host(0);  // every rank's graph is there before one waits for a peer
        }
        for (int round = 0; round < 3; ++round) {
          std::vector<float> mine;
          for (int64_t i = 0; i < all; ++i) mine.push_back(value(r, i, round));
          d.upload(send.get(), mine.data(), all * 4);
          rank.comm->all_gather_host(0);  // no peer reads it before it is there
          captured ? d.graphs()->replay(graph, rank.stream()) : run();
          std::vector<float> expect_gathered, expect_exchanged, expect_reduced, expect_scattered;
          for (int64_t i = 0; i < all; ++i) {
            expect_gathered.push_back(value(int(i / kEach), i % kEach, round));
            expect_exchanged.push_back(value(int(i / kEach), r * kEach + i % kEach, round));
            float sum = value(0, i, round);
            for (int p = 1; p < size; ++p) sum = sum + value(p, i, round);
            expect_reduced.push_back(sum);
          }
          for (int64_t i = 0; i < kEach; ++i) expect_scattered.push_back(expect_reduced[size_t(r * kEach + i)]);
          EXPECT_TRUE(same_bits(download(rank, gathered, all), expect_gathered));
          EXPECT_TRUE(same_bits(download(rank, exchanged, all), expect_exchanged));
          EXPECT_TRUE(same_bits(download(rank, reduced, all), expect_reduced));
          EXPECT_TRUE(same_bits(download(rank, scattered, kEach), expect_scattered));
          rank.comm->all_gather_host(0);  // every rank has read its peers' rows of this round
        }
      });
    }
}

// Thousands of barriers without the host in the loop: in each round a rank adds what its neighbor wrote in the round
// before, so a barrier that lets one past too early, or a store that is not visible, gives another sum.
TEST_F(P2pCommTest, BarriersOrderWhatPeersWrite) {
  for (const int size : {2, 3}) {
    constexpr int64_t kSize = 4096;
    constexpr int kRounds = 2000;
    std::vector<Rank> group = ranks(size);
    on_all(group, [&](Rank& rank) {
      Device& d = rank.device();
      const int r = rank.comm->rank();
      const Buffer buffers[2] = {d.alloc(kSize * 4), d.alloc(kSize * 4)};
      std::vector<std::byte*> peers[2];
      for (int i = 0; i < 2; ++i) peers[i] = rank.comm->register_buffer(buffers[i].get(), kSize * 4);
      const std::vector<float> ones(size_t(kSize), 1.0f);
      d.upload(buffers[0].get(), ones.data(), kSize * 4);
      const auto at = [](std::byte* p) { return reinterpret_cast<const float*>(p); };
      const Buffer one = d.alloc(kSize * 4);
      d.upload(one.get(), ones.data(), kSize * 4);
      rank.comm->all_gather_host(0);
      for (int round = 0; round < kRounds; ++round) {
        const float* rows[] = {at(peers[round % 2][size_t((r + 1) % size)]), at(one.get())};
        rank.comm->barrier(rank.stream());
        d.peers()->sum({rows, floats(buffers[(round + 1) % 2], kSize)}, rank.stream());
      }
      const auto result = download(rank, buffers[kRounds % 2], kSize);
      EXPECT_EQ(result, std::vector<float>(size_t(kSize), float(kRounds + 1)));
      rank.comm->all_gather_host(0);
    });
  }
}

TEST_F(P2pCommTest, AnAbortEndsWaitsOnTheDevice) {
  std::vector<Rank> group = ranks(2);
  Rank &waits = group[0], &fails = group[1];
  waits.comm->barrier(waits.stream());
  const Event end = waits.device().record_event(waits.stream());
  fails.comm->abort("it ran out of luck");
  waits.device().wait(end);
  try {
    waits.comm->check();
    FAIL() << "a barrier without a peer";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kUnavailable);
    EXPECT_NE(std::string(e.what()).find("it ran out of luck"), std::string::npos) << e.what();
  }
  waits.comm->barrier(waits.stream());  // later ones do not wait at all
  waits.device().synchronize(waits.stream());
}

TEST_F(P2pCommTest, APeerThatDoesNotComeIsNamed) {
  std::vector<Rank> group = ranks(3);
  for (int r : {0, 2}) group[size_t(r)].comm->barrier(group[size_t(r)].stream());
  group[0].device().synchronize(group[0].stream());
  try {
    group[0].comm->check();
    FAIL() << "a barrier without a peer";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("rank 0 waited 15 s for rank 1 in a barrier"), std::string::npos) << e.what();
  }
  group[0].comm->abort(std::string("a peer is missing"));
  group[2].device().synchronize(group[2].stream());
  EXPECT_THROW(group[2].comm->check(), Error);
}

}  // namespace
}  // namespace moectl::test
