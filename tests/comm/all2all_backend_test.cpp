#include "core/comm/all2all_backend.h"

#include <gtest/gtest.h>

#include <string>

#include "core/base/error.h"

namespace moectl {
namespace {

TEST(All2AllBackend, Names) {
  for (const All2AllBackend backend :
       {All2AllBackend::kAuto, All2AllBackend::kNaive, All2AllBackend::kLowLatency, All2AllBackend::kHighThroughput})
    EXPECT_EQ(parse_all2all_backend(all2all_backend_name(backend)), backend);
  EXPECT_EQ(all2all_backend_name(All2AllBackend::kLowLatency), "low_latency");
  try {
    parse_all2all_backend("deepep");
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::kBadConfig);
    EXPECT_STREQ(e.what(), "--all2all-backend deepep: expected one of auto, naive, low_latency, high_throughput");
  }
}

TEST(All2AllBackend, AutoReadsOnTheCpuOnly) {
  const Capabilities cpu, gpu = {.host_readable = false};
  EXPECT_EQ(resolve_all2all_backend(All2AllBackend::kAuto, cpu), All2AllBackend::kNaive);
  EXPECT_EQ(resolve_all2all_backend(All2AllBackend::kAuto, gpu), All2AllBackend::kAuto);
  for (const All2AllBackend backend :
       {All2AllBackend::kNaive, All2AllBackend::kLowLatency, All2AllBackend::kHighThroughput}) {
    EXPECT_EQ(resolve_all2all_backend(backend, cpu), backend);
    EXPECT_EQ(resolve_all2all_backend(backend, gpu), backend);
  }
}

TEST(All2AllBackend, RanksWithoutEachOthersMemoryHaveNaiveOnly) {
  const Capabilities gpu = {.host_readable = false};
  EXPECT_EQ(resolve_all2all_backend(All2AllBackend::kAuto, gpu, false), All2AllBackend::kNaive);
  EXPECT_EQ(resolve_all2all_backend(All2AllBackend::kNaive, gpu, false), All2AllBackend::kNaive);
  for (const char* name : {"low_latency", "high_throughput"}) {
    try {
      resolve_all2all_backend(parse_all2all_backend(name), gpu, false);
      FAIL() << name << ": accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::kBadConfig);
      EXPECT_EQ(std::string(e.what()).rfind(std::string("--all2all-backend ") + name + " stores", 0), 0u) << e.what();
    }
  }
}

}  // namespace
}  // namespace moectl
