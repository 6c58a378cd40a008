// The communicator over NCCL with a stand-in for the library (tests/faults/nccl.cpp) and ranks on the host: what is put
// into streams, in which order, and how every wait ends. The real library needs GPUs: tests/kernels_cuda/nccl_test.cpp.
#include "core/comm/nccl_comm.h"

#include <gmock/gmock.h>

#include <atomic>
#include <thread>

#include "core/comm/expert_dispatch.h"
#include "core/comm/nccl_library.h"
#include "tests/comm/ranks.h"
#include "tests/harness/compare.h"
#include "tests/harness/generate.h"
#include "tests/harness/host_peers.h"

namespace moectl::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string stand_in(const std::string& folder) {
  return MOECTL_BINARY_DIR "/nccl_stand_in/" + folder + "/libnccl.so.2";
}
const NcclLibrary& library() {
  static const NcclLibrary loaded({stand_in("good")});
  return loaded;
}

struct Ranks {
  std::vector<std::unique_ptr<HostPeers>> devices;
  std::vector<std::unique_ptr<Communicator>> comms;

  explicit Ranks(int size, NcclOptions options = {}) : devices(host_peers(size)) {
    options.library = &library();
    comms = make_nccl_communicators(devices_of(devices), options);
  }
};

std::string failure_of(const std::function<void()>& call, Code code = Code::kUnavailable) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "returned";
  return "";
}

// ------------------------------------------------------------------------------------------------ library

TEST(NcclLibrary, SaysWhatIsThere) {
  EXPECT_TRUE(library().is_present()) << library().why_absent();
  EXPECT_EQ(library().version(), "2.29.3");
  EXPECT_EQ(library().path(), stand_in("good"));
}

TEST(NcclLibrary, SaysWhatWasTriedAndWhatToDo) {
  const NcclLibrary absent({stand_in("absent"), stand_in("old"), stand_in("lacks")});
  EXPECT_FALSE(absent.is_present());
  EXPECT_THAT(absent.why_absent(), AllOf(HasSubstr("absent/libnccl.so.2: cannot open shared object file"),
                                         HasSubstr("old/libnccl.so.2 is NCCL 2.27.7; 2.x from 2.28.0 on is needed"),
                                         HasSubstr("lacks/libnccl.so.2 lacks ncclSend"), HasSubstr("MOECTL_NCCL")));
  EXPECT_THAT(NcclLibrary({stand_in("next")}).why_absent(), HasSubstr("is NCCL 3.0.1; 2.x from 2.28.0 on is needed"));
  EXPECT_THAT(NcclLibrary({stand_in("ancient")}).why_absent(), HasSubstr("is NCCL 2.8.4"));
}

TEST(NcclLibrary, TakesTheFirstThatServes) {
  const NcclLibrary found({stand_in("absent"), stand_in("old"), stand_in("good")});
  EXPECT_TRUE(found.is_present());
  EXPECT_EQ(found.path(), stand_in("good"));
}

TEST(NcclComm, RefusesWhatNcclCannotDo) {
  const NcclLibrary absent({stand_in("absent")});
  const auto two = host_peers(2);
  EXPECT_THAT(failure_of([&] { make_nccl_communicators(devices_of(two), {.library = &absent}); }, Code::kBadConfig),
              HasSubstr("MOECTL_NCCL"));
  HostPeers a(3), b(4), c(3);
  EXPECT_THAT(failure_of(
                  [&] {
                    make_nccl_communicators({&a, &b, &c}, {.library = &library()});
                  },
                  Code::kBadConfig),
              AllOf(HasSubstr("ranks 0 and 2 share GPU 3"), HasSubstr("--devices")));
}

// ------------------------------------------------------------------------------------------------ collectives

std::vector<float> values_of(int rank, int round, int64_t n) {
  return Random(uint64_t(rank * 1000 + round)).floats(n, 100.0f);
}
std::vector<float> part(const std::vector<float>& v, int64_t begin, int64_t n) {
  return {v.begin() + begin, v.begin() + begin + n};
}
std::vector<float> sum_of(const std::vector<std::vector<float>>& rows) {
  std::vector<float> sum = rows[0];
  for (size_t r = 1; r < rows.size(); ++r)
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += rows[r][i];
  return sum;
}

void check_collectives(Communicator& comm, bool in_order, const std::vector<int64_t>& counts) {
  const int size = comm.size(), rank = comm.rank();
  int64_t most = 0;
  for (const int64_t n : counts) most = std::max(most, n);
  std::vector<float> memory(size_t(2 * size * most + 1));
  comm.register_buffer(memory.data(), int64_t(memory.size() * sizeof(float)));
  int round = 0;
  for (const int64_t n : counts) {
    ++round;
    float *send = memory.data(), *recv = memory.data() + size * n;
    const auto fill = [&] { std::ranges::copy(values_of(rank, round, size * n), send); };
    std::vector<std::vector<float>> whole, mine;  // of every rank: all values; the rows of this rank
    for (int r = 0; r < size; ++r) {
      whole.push_back(values_of(r, round, size * n));
      mine.push_back(part(whole.back(), rank * n, n));
    }
    std::vector<float> expect_gathered, expect_exchanged;
    for (int r = 0; r < size; ++r) {
      expect_gathered.insert(expect_gathered.end(), whole[size_t(r)].begin(), whole[size_t(r)].begin() + n);
      expect_exchanged.insert(expect_exchanged.end(), mine[size_t(r)].begin(), mine[size_t(r)].end());
    }
    const auto same = [&](const float* got, const std::vector<float>& expect, bool exact) {
      const std::vector<float> values(got, got + expect.size());
      if (exact) return bool(same_bits(values, expect));
      for (size_t i = 0; i < values.size(); ++i)  // `size` additions of values up to 100 in any order
        if (std::abs(values[i] - expect[i]) > float(size * size) * 100.0f * 0x1p-23f) return false;
      return true;
    };
    comm.barrier({});
    fill();
    comm.all_gather(send, recv, n * 4, {});
    ASSERT_TRUE(same(recv, expect_gathered, true)) << n;
    std::ranges::copy(part(whole[size_t(rank)], 0, n), recv + rank * n);
    comm.all_gather(recv + rank * n, recv, n * 4, {});  // in place
    ASSERT_TRUE(same(recv, expect_gathered, true)) << n;
    comm.all_to_all(send, recv, n * 4, {});
    ASSERT_TRUE(same(recv, expect_exchanged, true)) << n;
    comm.reduce_scatter(View<const float>(send, {size, n}), View<float>(recv, {n}), {});
    ASSERT_TRUE(same(recv, sum_of(mine), in_order)) << n;
    comm.all_reduce(View<float>(send, {size * n}), {});
    ASSERT_TRUE(same(send, sum_of(whole), in_order)) << n;
    fill();
    comm.reduce_scatter(View<const float>(send, {size, n}), View<float>(send + rank * n, {n}), {});  // in place
    ASSERT_TRUE(same(send + rank * n, sum_of(mine), in_order)) << n;
    comm.check();
  }
}

TEST(NcclComm, CollectivesGiveWhatTheHostComputes) {
  for (const int size : {1, 2, 3, 5})
    for (const bool deterministic : {false, true}) {
      SCOPED_TRACE(fmt::format("{} ranks, deterministic {}", size, deterministic));
      Ranks ranks(size, {.deterministic = deterministic});
      on_ranks(ranks.comms, [&](Communicator& comm) {
        EXPECT_TRUE(comm.capturable());
        check_collectives(comm, deterministic || size < 3, {1, 0, 2, 7, 1000, 3});
      });
    }
}

// Longer than the scratch of sums in rank order: several parts, the last one short.
TEST(NcclComm, LongSumsInRankOrder) {
  for (const int64_t scratch : {3, 7, 100}) {
    Ranks ranks(3, {.deterministic = true, .scratch_floats = scratch});
    on_ranks(ranks.comms, [&](Communicator& comm) { check_collectives(comm, true, {1, 5, 64, 333}); });
  }
}

TEST(NcclComm, PeersMemoryIsOutOfReach) {
  Ranks ranks(3);
  on_ranks(ranks.comms, [&](Communicator& comm) {
    float mine[4] = {};
    const auto by_rank = comm.register_buffer(mine, sizeof mine);
    ASSERT_EQ(by_rank.size(), 3u);
    for (int r = 0; r < 3; ++r)
      EXPECT_EQ(by_rank[size_t(r)], r == comm.rank() ? reinterpret_cast<std::byte*>(mine) : nullptr);
    float other[4] = {};
    EXPECT_THROW(comm.all_reduce(View<float>(other, {4}), {}), Error);  // not registered
    comm.barrier({});
  });
}

// Experts' results over NCCL: those of ranks that read each other's memory, bit for bit.
TEST(NcclComm, ExpertsAreDispatchedByCollectives) {
  constexpr int kSize = 3, kTopK = 2, kHidden = 5, kTokens = 9;
  const ExpertPlacement placement = make_placement(4, kSize);
  const auto dispatched = [&](const std::vector<std::unique_ptr<Communicator>>& comms, bool addressable) {
    std::vector<std::vector<float>> results(kSize);
    const ExpertDispatchConfig config = {.top_k = kTopK,
                                         .hidden_size = kHidden,
                                         .peers_addressable = addressable,
                                         .max_tokens = kTokens,
                                         .max_received_rows = 12};  // several rounds
    on_ranks(comms, [&](Communicator& comm) {
      auto ops = make_ops({.num_threads = 1, .spin = false});
      const auto dispatch = make_expert_dispatch(comm, *ops, placement, config);
      Random random(uint64_t(comm.rank() + 1));
      const int64_t n = kTokens - 3 * comm.rank();
      const std::vector<float> x = random.floats(kTokens * kHidden), weight = random.floats(kTokens * kTopK);
      std::vector<int32_t> idx;
      for (int i = 0; i < kTokens; ++i) idx.insert(idx.end(), {int32_t(i % 4), int32_t((i + 1 + i / 4 % 2) % 4)});
      std::vector<float>& out = results[size_t(comm.rank())];
      out.resize(size_t(n * kHidden));
      const View<const float> weights(weight.data(), {n, kTopK});
      dispatch->begin_step(n);
      for (int round = 0; round < dispatch->num_rounds(); ++round) {
        const auto rows = dispatch->dispatch({.x = View<const float>(x.data(), {n, kHidden}),
                                              .expert_idx = View<const int32_t>(idx.data(), {n, kTopK}),
                                              .expert_weight = weights},
                                             round);
        const int64_t num_rows = rows.expert_offsets(rows.expert_offsets.dim(0) - 1);
        for (int64_t i = 0; i < num_rows * kHidden; ++i) rows.out.f32().data[i] = 3.0f * rows.x.f32().data[i] + 1.0f;
        dispatch->combine({.expert_weight = weights, .out = View<float>(out.data(), {n, kHidden})}, round);
      }
      comm.barrier({});
    });
    return results;
  };
  const auto expected = dispatched(make_local_communicators(kSize), true);
  const auto results = dispatched(Ranks(kSize, {.deterministic = true}).comms, false);
  for (size_t r = 0; r < kSize; ++r) EXPECT_TRUE(same_bits(results[r], expected[r])) << r;
  // A form that reads peers' memory is refused, not run on null pointers.
  Ranks ranks(kSize);
  EXPECT_THAT(failure_of([&] { dispatched(ranks.comms, true); }, Code::kInternal), HasSubstr("cannot address"));
}

// ------------------------------------------------------------------------------------------------ ends

TEST(NcclComm, AnAbortEndsEveryWait) {
  for (int round = 0; round < 20; ++round) {
    Ranks ranks(3);
    std::atomic<int> ended{0};
    on_ranks(ranks.comms, [&](Communicator& comm) {
      if (comm.rank() == 1) {
        comm.abort("rank fell over");
        comm.abort("a later reason");
      } else {
        EXPECT_THAT(failure_of([&] { comm.barrier({}); }), HasSubstr("rank fell over"));
      }
      for (int again = 0; again < 3; ++again) {
        EXPECT_THAT(failure_of([&] { comm.barrier({}); }), HasSubstr("rank fell over"));
        EXPECT_THAT(failure_of([&] { comm.check(); }), HasSubstr("rank fell over"));
        EXPECT_THAT(failure_of([&] { comm.all_gather_host(1); }), HasSubstr("rank fell over"));
      }
      ++ended;
    });
    EXPECT_EQ(ended.load(), 3);
  }
}

// No rank's thread calls anything any more, and yet the group ends and names who is missing: the watching thread.
TEST(NcclComm, APeerThatDoesNotComeIsNamed) {
  Ranks ranks(4, {.timeout = std::chrono::milliseconds(300)});
  std::vector<std::thread> threads;
  std::vector<std::string> messages(4);
  for (const int r : {0, 3})
    threads.emplace_back([&, r] { messages[size_t(r)] = failure_of([&] { ranks.comms[size_t(r)]->barrier({}); }); });
  for (std::thread& t : threads) t.join();
  EXPECT_THAT(messages, testing::Contains(AllOf(HasSubstr("waited 0.3 s"), HasSubstr("barrier"))));
  for (int r = 0; r < 4; ++r)
    EXPECT_THAT(failure_of([&] { ranks.comms[size_t(r)]->check(); }), HasSubstr("waited 0.3 s"));
}

TEST(NcclComm, TheDeviceTellsWhichRankIsLate) {
  Ranks ranks(3, {.timeout = std::chrono::milliseconds(300)});
  // What a graph that waits on rank 0's GPU shows the host: it has begun a collective, rank 2 as well, rank 1 has not.
  for (const int r : {0, 2}) {
    PeerStatus& status = *ranks.comms[size_t(r)]->peer_wait().status;
    std::atomic_ref(status.at).store(PeerOperation{PeerOperation::kAllToAll}.code());
    ++std::atomic_ref(status.marks);
  }
  std::string message;
  while (message.empty()) try {
      ranks.comms[1]->check();
      std::this_thread::yield();
    } catch (const Error& e) {
      message = e.what();
    }
  EXPECT_THAT(message, AllOf(HasSubstr("waited 0.3 s on its GPU in an all-to-all over NCCL for rank 1")));
  // The reason is there before the GPUs are told, so that every rank that ends knows it: the flags follow.
  for (auto& comm : ranks.comms)
    while (std::atomic_ref(comm->peer_wait().status->aborted).load() != 1) std::this_thread::yield();
}

// A rank that makes another call than its peers: NCCL's own error, in every rank's words.
TEST(NcclComm, AnErrorOfTheLibraryEndsTheGroup) {
  Ranks ranks(2);
  std::vector<std::string> messages(2);
  on_ranks(ranks.comms, [&](Communicator& comm) {
    std::vector<float> buffer(16);
    comm.register_buffer(buffer.data(), 64);
    messages[size_t(comm.rank())] =
        failure_of([&] { comm.all_to_all(buffer.data(), buffer.data() + 8, comm.rank() == 0 ? 8 : 12, {}); });
  });
  for (const std::string& message : messages)
    EXPECT_THAT(message, AllOf(HasSubstr("NCCL 2.29.3"), HasSubstr("invalid usage, a receive without its send"),
                               HasSubstr("NCCL_DEBUG")));
}

}  // namespace
}  // namespace moectl::test
