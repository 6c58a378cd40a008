// What the flags of a rank mean on a backend: plan_setup().
#include "core/engine/engine_setup.h"

#include <gtest/gtest.h>

#include "tests/harness/wrapped_ops.h"

namespace moectl::test {
namespace {

class OtherCapabilities final : public WrappedOps {
 public:
  OtherCapabilities(std::unique_ptr<Ops> real, Capabilities capabilities)
      : WrappedOps(std::move(real)), capabilities_(std::move(capabilities)) {}
  const Capabilities& capabilities() const override { return capabilities_; }

 private:
  const Capabilities capabilities_;
};

ModelLimits limits_of(const EngineConfig& engine, const Capabilities& capabilities) {
  const Config model = read_config(engine.model_dir);
  OtherCapabilities ops(make_ops({}), capabilities);
  return plan_setup(engine, model, model.eos_token_ids, {{ops}, {ops}}).limits;
}

EngineConfig two_ranks() {
  EngineConfig engine;
  engine.model_dir = MOECTL_SOURCE_DIR "/models/demo";
  engine.parallelism = expert_parallel(2);
  return engine;
}

TEST(EngineSetup, TheCpuCombinesDeterministicallyAndReads) {
  const ModelLimits limits = limits_of(two_ranks(), {});
  EXPECT_EQ(limits.all2all_backend, All2AllBackend::kNaive);
  EXPECT_TRUE(limits.deterministic_combine);
}

TEST(EngineSetup, AGpuCombinesDeterministicallyOnRequest) {
  const Capabilities gpu = {.host_readable = false};
  EngineConfig engine = two_ranks();
  EXPECT_EQ(limits_of(engine, gpu).all2all_backend, All2AllBackend::kAuto);
  EXPECT_FALSE(limits_of(engine, gpu).deterministic_combine);
  engine.deterministic = true;
  EXPECT_TRUE(limits_of(engine, gpu).deterministic_combine);
  engine.deterministic = false;
  engine.precise = true;
  EXPECT_TRUE(limits_of(engine, gpu).deterministic_combine);
}

TEST(EngineSetup, TheAllToAllBackendIsTheOneThatWasGiven) {
  for (const All2AllBackend backend :
       {All2AllBackend::kNaive, All2AllBackend::kLowLatency, All2AllBackend::kHighThroughput}) {
    EngineConfig engine = two_ranks();
    engine.all2all_backend = backend;
    EXPECT_EQ(limits_of(engine, {}).all2all_backend, backend);
    EXPECT_EQ(limits_of(engine, {.host_readable = false}).all2all_backend, backend);
  }
}

}  // namespace
}  // namespace moectl::test
