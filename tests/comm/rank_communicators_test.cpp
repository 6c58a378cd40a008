// Which ranks are in which groups, and that groups do not hear of each other.
#include "core/comm/rank_communicators.h"

#include <gtest/gtest.h>

#include <thread>

#include "core/base/error.h"
#include "kernels/cpu_device.h"

namespace moectl::test {
namespace {

struct Ranks {
  explicit Ranks(const Parallelism& p, const LocalGroupOptions& options = {}) {
    for (int r = 0; r < p.world_size(); ++r) devices.push_back(std::make_unique<CpuDevice>());
    std::vector<Device*> pointers;
    for (const auto& device : devices) pointers.push_back(device.get());
    comms = make_rank_communicators(Collectives::kLocal, pointers, p, true, options);
  }
  // f(rank) on a thread of each rank.
  void on_all(const std::function<void(int)>& f) {
    std::vector<std::thread> threads;
    for (int r = 0; r < int(comms.size()); ++r) threads.emplace_back([&, r] { f(r); });
    for (auto& t : threads) t.join();
  }
  std::vector<std::unique_ptr<CpuDevice>> devices;
  std::vector<RankCommunicators> comms;
};

using Values = std::vector<int64_t>;

TEST(RankCommunicators, TpGroupsFollowEachOtherAndExpertsAreOnAllRanks) {
  Ranks ranks({.tp_size = 2, .dp_size = 3, .ep_size = 6});
  ranks.on_all([&](int r) {
    const RankCommunicators& comms = ranks.comms[size_t(r)];
    EXPECT_EQ(comms.experts->rank(), r);
    EXPECT_EQ(comms.tp->rank(), r % 2);
    EXPECT_EQ(comms.experts->all_gather_host(10 * r), (Values{0, 10, 20, 30, 40, 50}));
    const int first = r / 2 * 2;
    EXPECT_EQ(comms.tp->all_gather_host(10 * r), (Values{10 * first, 10 * (first + 1)}));
  });
}

TEST(RankCommunicators, ARankThatHoldsAllExpertsIsAlone) {
  Ranks ranks({.tp_size = 2, .dp_size = 2});
  ranks.on_all([&](int r) {
    EXPECT_EQ(ranks.comms[size_t(r)].experts->size(), 1);
    EXPECT_EQ(ranks.comms[size_t(r)].tp->size(), 2);
  });
  Ranks data_parallel({.dp_size = 2});
  for (const RankCommunicators& comms : data_parallel.comms) {
    EXPECT_EQ(comms.experts->size(), 1);
    EXPECT_EQ(comms.tp, nullptr);
  }
}

TEST(RankCommunicators, WithoutTensorParallelismThereIsNoTpGroup) {
  Ranks ranks(expert_parallel(3));
  for (const RankCommunicators& comms : ranks.comms) {
    EXPECT_EQ(comms.experts->size(), 3);
    EXPECT_EQ(comms.tp, nullptr);
  }
}

// Messages number ranks as the instance does, whatever the group.
TEST(RankCommunicators, ADeadlineInATpGroupNamesRanksOfTheInstance) {
  Ranks ranks({.tp_size = 2, .dp_size = 2, .ep_size = 4}, {.deadline = std::chrono::milliseconds(40)});
  try {
    ranks.comms[3].tp->barrier({});
    ADD_FAILURE() << "rank 2 did not come";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kUnavailable);
    EXPECT_NE(std::string(e.what()).find("rank 3 waited 0.04 s in barrier for rank 2"), std::string::npos) << e.what();
  }
  EXPECT_NO_THROW(ranks.on_all([&](int r) {
    if (r < 2) ranks.comms[size_t(r)].tp->barrier({});  // the other group goes on
    ranks.comms[size_t(r)].experts->barrier({});
  }));
}

}  // namespace
}  // namespace moectl::test
