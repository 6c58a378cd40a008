// The expert all-to-all between CPU ranks. Results are exact: one row per choice gives the bits of one rank, the
// reduced form those of each rank's sum, added in rank order. A test that hangs has found a defect.
#include "kernels/expert_all_to_all.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <latch>
#include <stdexcept>

#include "core/base/error.h"
#include "tests/comm/all_to_all_ranks.h"
#include "tests/comm/ranks.h"
#include "tests/harness/compare.h"

namespace moectl::test {
namespace {

std::vector<AllToAllMemory> memory_of(const AllToAllShape& shape) {
  return std::vector<AllToAllMemory>(size_t(shape.num_ranks), AllToAllMemory(shape));
}

// Random numbers of tokens in a round, the same on every rank.
std::vector<int64_t> random_counts(const AllToAllShape& shape, Random& random) {
  std::vector<int64_t> counts;
  for (int64_t r = 0; r < shape.num_ranks; ++r)
    counts.push_back(random.below(3) == 0 ? 0 : random.below(shape.max_tokens + 1));
  return counts;
}

// Rounds of dispatch and combine on every rank; every slot is poisoned once it was read.
void expect_exact(const AllToAllShape& shape, int64_t max_replicas, int64_t num_rounds, uint32_t delay_seed = 0) {
  SCOPED_TRACE(fmt::format("{} ranks, {} experts, up to {} replicas, top-{}, rows of {}, {}{}", shape.num_ranks,
                           shape.num_experts, max_replicas, shape.top_k, shape.hidden,
                           shape.reduced ? "reduced" : "one row per choice", shape.scaled ? ", scaled" : ""));
  const RandomPlacement placement(shape.num_experts, shape.num_ranks, max_replicas, uint64_t(shape.hidden));
  std::vector<AllToAllMemory> memory = memory_of(shape);
  on_ranks(int(shape.num_ranks), [&](Communicator& comm) {
    AllToAllRank rank(shape, placement, memory, comm.rank(), comm.peer_wait(), uint64_t(comm.rank() + 1));
    rank.signals.delay_seed = delay_seed;
    Random counts(uint64_t(shape.num_ranks * 100 + shape.top_k));
    comm.barrier({});  // every rank's memory is there
    for (int64_t round = 0; round < num_rounds; ++round) {
      rank.dispatch(random_counts(shape, counts), counts.below(4));
      rank.poison_tokens();
      if (round % 2 == 1) rank.poison_choices();
      rank.compute();
      rank.combine();
      const std::vector<float> out = rank.output();
      rank.poison_slots();
      const auto same = same_bits(out, rank.expected());
      if (!same)  // ends the other ranks, too
        throw std::runtime_error(fmt::format("rank {}, round {}: {}", comm.rank(), round, same.message()));
    }
    comm.check();
    comm.barrier({});
  });
}

TEST(ExpertAllToAll, RandomRoutings) {
  for (int64_t ranks : {1, 2, 3, 4, 5})
    for (bool reduced : {false, true})
      for (bool scaled : {false, true})
        for (int64_t max_replicas : {1, 2, 4}) {
          expect_exact({ranks, 16, 5, 11, 7, reduced, scaled}, max_replicas, 10);
          expect_exact({ranks, 6, 1, 4, 20, reduced, scaled}, max_replicas, 10);
          expect_exact({ranks, 9, 8, 33, 3, reduced, scaled}, max_replicas, 10);
        }
}

// Of two ranks; a tenth of it of three. The environment variable sets another number: 1,000,000 take about a minute.
int64_t stress_rounds() {
  const char* rounds = std::getenv("MOECTL_ALL_TO_ALL_ROUNDS");
  return rounds ? std::atoll(rounds) : 100'000;
}

// Random delays before every store, signal and wait.
TEST(ExpertAllToAll, StressTwoRanks) {
  const int64_t rounds = stress_rounds();
  ASSERT_GE(rounds, 20) << "MOECTL_ALL_TO_ALL_ROUNDS";
  expect_exact({2, 5, 2, 5, 3, false}, 2, rounds / 2, 1);
  expect_exact({2, 5, 2, 5, 3, true}, 2, rounds - rounds / 2, 2);
}

TEST(ExpertAllToAll, StressThreeRanks) {
  const int64_t rounds = stress_rounds() / 10;
  ASSERT_GE(rounds, 2) << "MOECTL_ALL_TO_ALL_ROUNDS";
  expect_exact({3, 5, 2, 5, 3, false}, 2, rounds / 2, 3);
  expect_exact({3, 5, 2, 5, 3, true}, 2, rounds - rounds / 2, 4);
}

// ------------------------------------------------------------------------------------------------ failures

constexpr int32_t kLayer = 7;
const AllToAllShape kSmall = {.num_ranks = 1, .num_experts = 6, .top_k = 3, .hidden = 5, .max_tokens = 4};

// No rows, no results, and peers get nothing more. The wait of these calls would be an hour.
void expect_ended(AllToAllRank& rank, const std::vector<int64_t>& counts, std::vector<AllToAllMemory>& memory,
                  int silent) {
  rank.signals.wait.timeout_ns = std::chrono::nanoseconds(std::chrono::hours(1)).count();
  const std::vector<uint32_t> flags = memory[size_t(silent)].flags;
  const auto tokens = memory[size_t(silent)].x;
  rank.dispatch(counts, 0);
  EXPECT_EQ(rank.num_rows(), 0);
  for (const void* row : rank.combine()) EXPECT_EQ(row, nullptr);
  EXPECT_EQ(memory[size_t(silent)].flags, flags);
  EXPECT_EQ(memory[size_t(silent)].x, tokens);
}

// All ranks but `missing` call: dispatch, or also combine, which the missing one does not reach.
void expect_missing(int size, int missing, PeerOperation::Kind kind) {
  SCOPED_TRACE(fmt::format("rank {} of {} misses operation {}", missing, size, int(kind)));
  AllToAllShape shape = kSmall;
  shape.num_ranks = size;
  const RandomPlacement placement(shape.num_experts, size, 2, 1);
  std::vector<AllToAllMemory> memory = memory_of(shape);
  const std::vector<int64_t> counts(size_t(size), 3);
  std::latch started(size), ended(size - 1), compared(size - 1);
  on_ranks(size,
           [&](Communicator& comm) {
             AllToAllRank rank(shape, placement, memory, comm.rank(), comm.peer_wait(), 1);
             rank.signals.layer = kLayer;
             started.arrive_and_wait();
             const bool is_missing = comm.rank() == missing;
             if (is_missing && kind == PeerOperation::kDispatch) return;
             rank.dispatch(counts, 0);
             if (is_missing) return;
             if (kind == PeerOperation::kCombine) {
               EXPECT_GT(rank.num_rows(), 0);
               rank.compute();
               for (const void* row : rank.combine()) EXPECT_EQ(row, nullptr);
             }
             const PeerStatus& status = *comm.peer_wait().status;
             const PeerOperation expected{kind, kLayer};
             EXPECT_EQ(status.missing, 1 + missing);
             EXPECT_EQ(status.operation, expected.code());
             EXPECT_EQ(status.at, expected.code());
             ended.arrive_and_wait();
             // What they signaled before the timeout, and no more.
             for (int peer = 0; peer < size; ++peer) {
               const uint32_t* signaled = memory[size_t(missing)].flags.data() + peer;
               if (peer == missing) continue;
               EXPECT_EQ(signaled[AllToAllSignals::kTokens * size], 1u);
               EXPECT_EQ(signaled[AllToAllSignals::kResults * size], kind == PeerOperation::kCombine ? 1u : 0u);
             }
             expect_ended(rank, counts, memory, missing);
             compared.arrive_and_wait();
             try {
               comm.check();
               ADD_FAILURE() << "rank " << comm.rank() << " works on";
             } catch (const Error& e) {
               EXPECT_EQ(e.code(), Code::kUnavailable);
               const char* operation = kind == PeerOperation::kDispatch ? "dispatch" : "combine";
               const std::string text =
                   fmt::format("waited 0.5 s for rank {} in {} of layer {}", missing, operation, kLayer);
               EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
             }
           },
           {.deadline = std::chrono::milliseconds(500)});
}

TEST(ExpertAllToAll, TimeoutNamesTheRankAndTheOperation) {
  expect_missing(2, 1, PeerOperation::kDispatch);
  expect_missing(2, 0, PeerOperation::kCombine);
  expect_missing(3, 0, PeerOperation::kDispatch);
  expect_missing(4, 2, PeerOperation::kCombine);
  expect_missing(5, 4, PeerOperation::kDispatch);
}

// All ranks but one wait, for up to the 120 s of the group; the last one aborts.
void expect_aborted(int size, PeerOperation::Kind kind) {
  SCOPED_TRACE(fmt::format("{} ranks, operation {}", size, int(kind)));
  AllToAllShape shape = kSmall;
  shape.num_ranks = size;
  const RandomPlacement placement(shape.num_experts, size, 2, 1);
  std::vector<AllToAllMemory> memory = memory_of(shape);
  const std::vector<int64_t> counts(size_t(size), 3);
  const int last = size / 2;
  std::latch started(size), ended(size);
  on_ranks(size, [&](Communicator& comm) {
    AllToAllRank rank(shape, placement, memory, comm.rank(), comm.peer_wait(), 1);
    rank.signals.layer = kLayer;
    started.arrive_and_wait();
    const bool aborts = comm.rank() == last;
    if (kind == PeerOperation::kCombine) rank.dispatch(counts, 0);
    if (aborts)
      comm.abort("a rank failed");
    else if (kind == PeerOperation::kDispatch)
      rank.dispatch(counts, 0);
    else
      for (const void* row : rank.combine()) EXPECT_EQ(row, nullptr);
    if (!aborts) {
      const PeerStatus& status = *comm.peer_wait().status;
      EXPECT_EQ(status.missing, 0);
      EXPECT_EQ(status.at, (PeerOperation{kind, kLayer}.code()));
    }
    ended.arrive_and_wait();
    expect_ended(rank, counts, memory, last);
    EXPECT_THROW(comm.check(), Error);
  });
}

TEST(ExpertAllToAll, AbortEndsEveryWait) {
  for (int size : {1, 2, 3, 5}) {
    expect_aborted(size, PeerOperation::kDispatch);
    expect_aborted(size, PeerOperation::kCombine);
  }
}

}  // namespace
}  // namespace moectl::test
