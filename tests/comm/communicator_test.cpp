// Ranks as threads. A test that hangs here has found a defect; only the tests of the deadline wait for time.
#include "core/comm/communicator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>

#include "core/base/error.h"
#include "tests/comm/ranks.h"
#include "tests/harness/compare.h"
#include "tests/harness/generate.h"

namespace moectl::test {
namespace {

class CommunicatorTest : public testing::TestWithParam<int> {};

TEST_P(CommunicatorTest, BarrierSeparatesPhases) {
  const int size = GetParam();
  std::atomic<int> arrived{0};
  on_ranks(size, [&](Communicator& comm) {
    EXPECT_EQ(comm.size(), size);
    EXPECT_EQ(comm.capturable(), size == 1);
    for (int phase = 1; phase <= 50; ++phase) {
      ++arrived;
      comm.barrier({});
      EXPECT_EQ(arrived.load(), phase * size) << "rank " << comm.rank();
      comm.barrier({});
    }
  });
}

TEST_P(CommunicatorTest, AllGatherHost) {
  const int size = GetParam();
  on_ranks(size, [&](Communicator& comm) {
    for (int64_t round = 0; round < 50; ++round) {
      const auto all = comm.all_gather_host(round * 1000 + comm.rank());
      ASSERT_EQ(int(all.size()), size);
      for (int r = 0; r < size; ++r) ASSERT_EQ(all[size_t(r)], round * 1000 + r);
    }
  });
}

TEST_P(CommunicatorTest, RegisteredBuffersArePeersMemory) {
  const int size = GetParam();
  on_ranks(size, [&](Communicator& comm) {
    std::vector<int> first(3, comm.rank()), second(5, 100 + comm.rank());
    const auto firsts = comm.register_buffer(first.data(), 12), seconds = comm.register_buffer(second.data(), 20);
    ASSERT_EQ(int(firsts.size()), size);
    ASSERT_EQ(firsts[size_t(comm.rank())], reinterpret_cast<std::byte*>(first.data()));
    for (int r = 0; r < size; ++r) {
      ASSERT_EQ(*reinterpret_cast<int*>(firsts[size_t(r)]), r);
      ASSERT_EQ(*reinterpret_cast<int*>(seconds[size_t(r)]), 100 + r);
    }
    comm.barrier({});  // the vectors live until every rank has read them
  });
}

// Values of every rank for a collective: a function of rank, round and place.
std::vector<float> values_of(int rank, int round, int64_t n) {
  return Random(uint64_t(rank * 1000 + round)).floats(n, 100.0f);
}

std::vector<float> sum_in_rank_order(int size, int round, int64_t begin, int64_t n, int64_t total) {
  std::vector<float> sum;
  for (int r = 0; r < size; ++r) {
    const std::vector<float> v = values_of(r, round, total);
    for (int64_t i = 0; i < n; ++i) {
      if (r == 0)
        sum.push_back(v[size_t(begin + i)]);
      else
        sum[size_t(i)] += v[size_t(begin + i)];
    }
  }
  return sum;
}

const std::vector<int64_t>& counts() {
  static const std::vector<int64_t> all = {0, 1, 2, 3, 7, 8, 63, 1000};
  return all;
}

std::vector<float> slice(const std::vector<float>& v, int64_t begin, int64_t n) {
  return {v.begin() + begin, v.begin() + begin + n};
}

// body(comm, n, buffer): for counts of values, in turn, several times; `buffer` [capacity] is registered.
void for_counts(int size, const std::function<void(Communicator&, int round, int64_t n, View<float>)>& body) {
  const int64_t capacity = 2 * size * counts().back();
  on_ranks(size, [&](Communicator& comm) {
    std::vector<float> memory(static_cast<size_t>(capacity));
    comm.register_buffer(memory.data(), capacity * int64_t(sizeof(float)));
    int round = 0;
    for (int repeat = 0; repeat < 3; ++repeat)
      for (int64_t n : counts()) body(comm, round++, n, View<float>(memory.data(), {capacity}));
    comm.barrier({});
  });
}

TEST_P(CommunicatorTest, AllReduce) {
  const int size = GetParam();
  for_counts(size, [&](Communicator& comm, int round, int64_t n, View<float> buffer) {
    std::ranges::copy(values_of(comm.rank(), round, n), buffer.data);
    comm.all_reduce(buffer.first(n), {});
    ASSERT_TRUE(same_bits(std::vector<float>(buffer.data, buffer.data + n), sum_in_rank_order(size, round, 0, n, n)));
  });
}

TEST_P(CommunicatorTest, ReduceScatter) {
  const int size = GetParam();
  for_counts(size, [&](Communicator& comm, int round, int64_t n, View<float> buffer) {
    std::ranges::copy(values_of(comm.rank(), round, size * n), buffer.data);
    const bool in_place = round % 2 == 1;
    const View<float> out(buffer.data + (in_place ? comm.rank() : size) * n, {n});
    comm.reduce_scatter(View<const float>(buffer.data, {size, n}), out, {});
    ASSERT_TRUE(same_bits(std::vector<float>(out.data, out.data + n),
                          sum_in_rank_order(size, round, comm.rank() * n, n, size * n)));
  });
}

TEST_P(CommunicatorTest, AllGather) {
  const int size = GetParam();
  for_counts(size, [&](Communicator& comm, int round, int64_t n, View<float> buffer) {
    const bool in_place = round % 2 == 1;
    float* send = buffer.data + (in_place ? comm.rank() : size) * n;
    std::ranges::copy(values_of(comm.rank(), round, n), send);
    comm.all_gather(send, buffer.data, n * int64_t(sizeof(float)), {});
    const std::vector<float> all(buffer.data, buffer.data + size * n);
    for (int r = 0; r < size; ++r) ASSERT_TRUE(same_bits(slice(all, r * n, n), values_of(r, round, n))) << "rank " << r;
  });
}

TEST_P(CommunicatorTest, AllToAll) {
  const int size = GetParam();
  for_counts(size, [&](Communicator& comm, int round, int64_t n, View<float> buffer) {
    float* recv = buffer.data + size * n;
    std::ranges::copy(values_of(comm.rank(), round, size * n), buffer.data);
    comm.all_to_all(buffer.data, recv, n * int64_t(sizeof(float)), {});
    const std::vector<float> all(recv, recv + size * n);
    for (int r = 0; r < size; ++r)
      ASSERT_TRUE(same_bits(slice(all, r * n, n), slice(values_of(r, round, size * n), comm.rank() * n, n)))
          << "rank " << r;
  });
}

TEST_P(CommunicatorTest, RefusesBuffersThatAreNotRegistered) {
  on_ranks(GetParam(), [&](Communicator& comm) {
    std::vector<float> known(8), other(8);
    comm.register_buffer(known.data(), 8 * int64_t(sizeof(float)));
    EXPECT_THROW(comm.all_reduce(View<float>(other.data(), {8}), {}), Error);
    EXPECT_THROW(comm.all_reduce(View<float>(known.data() + 1, {8}), {}), Error);  // one value too many
    comm.all_reduce(View<float>(known.data() + 1, {7}), {});
    comm.barrier({});
  });
}

std::string failure_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kUnavailable);
    return e.what();
  }
  ADD_FAILURE() << "returned";
  return "";
}

void expect_aborted(const std::function<void()>& call, const std::string& reason) {
  const std::string message = failure_of(call);
  EXPECT_NE(message.find(reason), std::string::npos) << message;
}

// Every way to wait for peers, on a registered buffer of size() values and more.
using Wait = std::function<void(Communicator&, float*)>;
const std::vector<Wait>& waits() {
  static const std::vector<Wait> all = {
      [](Communicator& c, float*) { c.barrier({}); },
      [](Communicator& c, float*) { c.all_gather_host(1); },
      [](Communicator& c, float* p) { c.register_buffer(p, 4); },
      [](Communicator& c, float* p) { c.all_gather(p, p, 4, {}); },
      [](Communicator& c, float* p) { c.all_to_all(p, p + c.size(), 4, {}); },
      [](Communicator& c, float* p) { c.all_reduce(View<float>(p, {3}), {}); },
      [](Communicator& c, float* p) { c.reduce_scatter(View<const float>(p, {c.size()}), View<float>(p, {1}), {}); },
  };
  return all;
}

// All but one rank wait; the last one aborts instead.
TEST_P(CommunicatorTest, AbortWakesEveryoneAndIsFinal) {
  const int size = GetParam();
  for (const Wait& wait : waits()) {
    std::atomic<int> woken{0};
    on_ranks(size, [&](Communicator& comm) {
      std::vector<float> buffer(size_t(2 * size + 3));
      comm.register_buffer(buffer.data(), int64_t(buffer.size() * sizeof(float)));
      if (comm.rank() == size / 2) {
        comm.abort("rank fell over");
        comm.abort("a later reason");
      } else {
        expect_aborted([&] { wait(comm, buffer.data()); }, "rank fell over");
      }
      ++woken;
      for (const Wait& later : waits()) expect_aborted([&] { later(comm, buffer.data()); }, "rank fell over");
    });
    EXPECT_EQ(woken.load(), size);
  }
}

TEST_P(CommunicatorTest, AbortFromAnotherThread) {
  const int size = GetParam();
  auto comms = make_local_communicators(size);
  std::vector<std::thread> threads;
  for (int r = 1; r < size; ++r)
    threads.emplace_back([&, r] { expect_aborted([&] { comms[size_t(r)]->barrier({}); }, "outside"); });
  comms[0]->abort("outside");
  for (auto& t : threads) t.join();
  expect_aborted([&] { comms[0]->barrier({}); }, "outside");
}

INSTANTIATE_TEST_SUITE_P(Ranks, CommunicatorTest, testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 16, 32));

TEST(Communicator, DeadlineNamesTheRanksThatAreMissing) {
  auto comms = make_local_communicators(5, {.deadline = std::chrono::milliseconds(60)});
  std::vector<std::string> messages(5);
  std::vector<std::thread> threads;
  for (size_t r : {0, 2, 4})
    threads.emplace_back([&, r] { messages[r] = failure_of([&] { comms[r]->all_gather_host(1); }); });
  for (auto& t : threads) t.join();
  int first = 0;  // the others end with its abort
  for (size_t r : {0, 2, 4}) {
    EXPECT_NE(messages[r].find("waited 0.06 s in all_gather_host for rank 1, 3"), std::string::npos) << messages[r];
    first += messages[r].starts_with(fmt::format("rank {} waited", r));
  }
  EXPECT_EQ(first, 1);
  for (size_t r : {1, 3}) expect_aborted([&] { comms[r]->barrier({}); }, "for rank 1, 3");  // too late
}

TEST(Communicator, GroupsAreIndependent) {
  auto first = make_local_communicators(1), second = make_local_communicators(1);
  first[0]->abort("first");
  EXPECT_THROW(first[0]->barrier({}), Error);
  EXPECT_NO_THROW(second[0]->barrier({}));
}

}  // namespace
}  // namespace moectl::test
