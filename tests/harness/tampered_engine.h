// A real engine whose matrix products a test may spoil, delay or make throw, on its last rank.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "core/engine/engine_setup.h"
#include "core/engine/rank_worker.h"
#include "core/model/weights.h"
#include "tests/harness/wrapped_ops.h"

namespace moectl::test {

// Real operations; `after_linear` sees every matrix product.
class TamperedOps final : public WrappedOps {
 public:
  using Tamper = std::function<void(const LinearArgs&)>;
  TamperedOps(std::unique_ptr<Ops> real, Tamper after_linear)
      : WrappedOps(std::move(real)), after_linear_(std::move(after_linear)) {}
  void linear(const LinearArgs& a, Stream s) override {
    real().linear(a, s);
    after_linear_(a);
  }

 private:
  Tamper after_linear_;
};

inline std::unique_ptr<Engine> tampered_engine(const EngineConfig& flags, TamperedOps::Tamper tamper) {
  const Config config = read_config(flags.model_dir);
  const OpsOptions backend = plan_ops(flags, config, 1);
  const Checkpoint checkpoint = Checkpoint::open(flags.model_dir);
  const EngineSetup setup =
      plan_setup(flags, config, config.eos_token_ids, *make_ops(backend), checkpoint.total_bytes());
  std::vector<RankSetup> ranks;
  std::shared_ptr<const ModelWeights> weights;
  for (auto& comm : make_local_communicators(flags.ep_size)) {
    auto ops = make_ops(backend);
    if (!weights) weights = load_weights(config, checkpoint, *ops);
    if (comm->rank() == flags.ep_size - 1) ops = std::make_unique<TamperedOps>(std::move(ops), tamper);
    ranks.push_back({.weights = weights,
                     .ops = std::move(ops),
                     .comm = std::move(comm),
                     .num_pages = setup.scheduler.num_pages,
                     .limits = setup.limits,
                     .eos_token_ids = setup.scheduler.eos_token_ids});
  }
  const ModelInfo info = {.max_model_len = setup.scheduler.max_model_len};
  return start_engine(info, config, setup.scheduler, std::move(ranks));
}

}  // namespace moectl::test
