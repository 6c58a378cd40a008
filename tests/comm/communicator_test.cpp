// Ranks as threads. A test that hangs here has found a defect: nothing waits for time.
#include "core/comm/communicator.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <functional>
#include <thread>

#include "core/base/error.h"
#include "tests/comm/ranks.h"

namespace moectl::test {
namespace {

class CommunicatorTest : public testing::TestWithParam<int> {};

TEST_P(CommunicatorTest, BarrierSeparatesPhases) {
  const int size = GetParam();
  std::atomic<int> arrived{0};
  on_ranks(size, [&](Communicator& comm) {
    EXPECT_EQ(comm.size(), size);
    for (int phase = 1; phase <= 50; ++phase) {
      ++arrived;
      comm.barrier();
      EXPECT_EQ(arrived.load(), phase * size) << "rank " << comm.rank();
      comm.barrier();
    }
  });
}

TEST_P(CommunicatorTest, AllGatherGivesEveryPointerByRank) {
  const int size = GetParam();
  on_ranks(size, [&](Communicator& comm) {
    std::array<std::pair<int, int>, 30> mine;  // of each round its own: peers may still read the last one
    for (int round = 0; round < 30; ++round) {
      mine[size_t(round)] = {comm.rank(), round};
      const auto all = comm.all_gather(&mine[size_t(round)]);
      ASSERT_EQ(int(all.size()), size);
      for (int r = 0; r < size; ++r)
        ASSERT_EQ((*static_cast<const std::pair<int, int>*>(all[size_t(r)])), (std::pair{r, round}));
    }
    comm.barrier();
  });
}

void expect_aborted(const std::function<void()>& call, const std::string& reason) {
  try {
    call();
    ADD_FAILURE() << "returned after an abort";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kUnavailable);
    EXPECT_NE(std::string(e.what()).find(reason), std::string::npos) << e.what();
  }
}

// All but one rank wait, in a barrier or in all_gather; the last aborts instead.
TEST_P(CommunicatorTest, AbortWakesEveryoneAndIsFinal) {
  const int size = GetParam();
  for (bool gather : {false, true}) {
    std::atomic<int> woken{0};
    on_ranks(size, [&](Communicator& comm) {
      comm.barrier();
      if (comm.rank() == size / 2) {
        comm.abort("rank fell over");
        comm.abort("a later reason");
      } else {
        expect_aborted([&] { gather ? void(comm.all_gather(&comm)) : comm.barrier(); }, "rank fell over");
      }
      ++woken;
      expect_aborted([&] { comm.barrier(); }, "rank fell over");
      expect_aborted([&] { comm.all_gather(&comm); }, "rank fell over");
    });
    EXPECT_EQ(woken.load(), size);
  }
}

TEST_P(CommunicatorTest, AbortFromOutside) {
  const int size = GetParam();
  auto comms = make_local_communicators(size);
  std::vector<std::thread> threads;
  for (int r = 1; r < size; ++r)
    threads.emplace_back([&, r] { expect_aborted([&] { comms[size_t(r)]->barrier(); }, "outside"); });
  comms[0]->abort("outside");
  for (auto& t : threads) t.join();
  expect_aborted([&] { comms[0]->barrier(); }, "outside");
}

INSTANTIATE_TEST_SUITE_P(Ranks, CommunicatorTest, testing::Values(1, 2, 3, 4, 8, 16, 32));

TEST(Communicator, GroupsAreIndependent) {
  auto first = make_local_communicators(1), second = make_local_communicators(1);
  first[0]->abort("first");
  EXPECT_THROW(first[0]->barrier(), Error);
  EXPECT_NO_THROW(second[0]->barrier());
}

}  // namespace
}  // namespace moectl::test
