// --collectives: names, and what auto takes, for every kind of devices.
#include "core/comm/collectives.h"

#include <gmock/gmock.h>

#include "core/comm/nccl_comm.h"
#include "kernels/cpu_device.h"
#include "tests/harness/host_peers.h"

namespace moectl::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string present() {
  return "";
}
std::string absent() {
  return "it is absent";
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kBadConfig);
    return e.what();
  }
  return "";
}

TEST(Collectives, NamesAreThoseOfTheFlag) {
  for (const char* name : {"auto", "p2p", "nccl"}) EXPECT_EQ(collectives_name(parse_collectives(name)), name);
  for (const char* name : {"local", "gloo", "", "NCCL"})
    EXPECT_THAT(refusal([&] { parse_collectives(name); }), HasSubstr("expected auto, p2p or nccl"));
}

TEST(Collectives, RanksOnTheCpuExchangeThroughMemory) {
  CpuDevice a, b;
  const std::vector<Device*> one = {&a}, two = {&a, &b};
  for (const Collectives any : {Collectives::kAuto, Collectives::kP2p, Collectives::kNccl}) {
    EXPECT_EQ(choose_collectives(any, one, absent), Collectives::kLocal);  // a rank alone exchanges nothing
    if (any == Collectives::kAuto) continue;
    EXPECT_THAT(refusal([&] { choose_collectives(any, two, present); }),
                AllOf(HasSubstr(std::string(collectives_name(any))), HasSubstr("use --device cuda")));
  }
  EXPECT_EQ(choose_collectives(Collectives::kAuto, two, present), Collectives::kLocal);
}

TEST(Collectives, AutoTakesPeerAccessThenNccl) {
  const auto reachable = host_peers(3), apart = host_peers(3, false);
  const auto near = devices_of(reachable), far = devices_of(apart);
  EXPECT_EQ(choose_collectives(Collectives::kAuto, near, present), Collectives::kP2p);
  EXPECT_EQ(choose_collectives(Collectives::kAuto, near, absent), Collectives::kP2p);
  EXPECT_EQ(choose_collectives(Collectives::kAuto, far, present), Collectives::kNccl);
  EXPECT_THAT(refusal([&] { choose_collectives(Collectives::kAuto, far, absent); }),
              AllOf(HasSubstr("GPU 0 cannot reach GPU 1"), HasSubstr("it is absent"), HasSubstr("--devices")));
}

TEST(Collectives, WhatIsAskedForIsTakenOrRefused) {
  const auto reachable = host_peers(2), apart = host_peers(2, false);
  const auto near = devices_of(reachable), far = devices_of(apart);
  EXPECT_EQ(choose_collectives(Collectives::kNccl, near, present), Collectives::kNccl);
  EXPECT_EQ(choose_collectives(Collectives::kP2p, near, absent), Collectives::kP2p);
  EXPECT_THAT(refusal([&] { choose_collectives(Collectives::kNccl, near, absent); }),
              HasSubstr("--collectives nccl: it is absent"));
  EXPECT_THAT(refusal([&] { choose_collectives(Collectives::kP2p, far, present); }),
              AllOf(HasSubstr("GPU 0 cannot reach GPU 1"), HasSubstr("use --collectives nccl")));
}

TEST(Collectives, BothAreMeasuredWhereBothServe) {
  using enum Collectives;
  const auto reachable = host_peers(2), apart = host_peers(2, false);
  const auto near = devices_of(reachable), far = devices_of(apart);
  const auto expect = [](const UsableCollectives& got, const std::vector<Collectives>& all,
                         const std::string& missing) {
    EXPECT_EQ(got.all, all);
    EXPECT_EQ(got.missing, missing);
  };
  expect(usable_collectives(near, present), {kP2p, kNccl}, "");
  expect(usable_collectives(near, absent), {kP2p}, "NCCL is not measured: it is absent");
  expect(usable_collectives(far, present), {kNccl}, "p2p is not measured: GPU 0 cannot reach GPU 1");
  EXPECT_THAT(refusal([&] { usable_collectives(far, absent); }),
              AllOf(HasSubstr("GPU 0 cannot reach GPU 1"), HasSubstr("it is absent"), HasSubstr("--devices")));
  HostPeers a(3), b(4), c(3);
  expect(usable_collectives({&a, &b, &c}, present), {kP2p},
         "NCCL is not measured: ranks 0 and 2 share GPU 3, and NCCL takes one rank per GPU");
  CpuDevice cpu, other_cpu;
  expect(usable_collectives({&cpu, &other_cpu}, present), {kLocal}, "");
}

// Of any build, on any machine: NCCL serves, or one line says why not and what to do.
TEST(Collectives, NcclSaysWhatIsMissing) {
  const std::string why = why_no_nccl();
  EXPECT_EQ(why.find('\n'), std::string::npos) << why;
  if (why.empty())
    EXPECT_THAT(nccl_version(), HasSubstr("libnccl.so"));
  else
    EXPECT_THAT(why, testing::AnyOf(HasSubstr("install-deps"), HasSubstr("MOECTL_NCCL"))) << why;
}

}  // namespace
}  // namespace moectl::test
