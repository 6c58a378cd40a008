// A real engine whose matrix products a test may spoil, delay or make throw, on its last rank.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "core/comm/rank_communicators.h"
#include "core/engine/engine_impl.h"
#include "core/engine/engine_setup.h"
#include "core/engine/rank_group.h"
#include "core/engine/rank_worker.h"
#include "core/model/rank_weights.h"
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

// What Engine::create would start for these flags, to be changed before it is started.
struct EngineParts {
  Config config;
  EngineSetup setup;
  std::vector<RankSetup> ranks;
  ModelInfo info() const { return {.max_model_len = setup.scheduler.max_model_len}; }
};

inline EngineParts engine_parts(const EngineConfig& flags, const LocalGroupOptions& group = {}) {
  EngineParts parts{.config = read_config(flags.model_dir)};
  const OpsOptions backend = plan_ops(flags, parts.config, 1);
  const Checkpoint checkpoint = Checkpoint::open(flags.model_dir);
  parts.setup = plan_setup(flags, parts.config, parts.config.eos_token_ids, {{*make_ops(backend)}});
  std::vector<Ops*> ops;
  std::vector<Device*> devices;
  for (int r = 0; r < flags.parallelism.world_size(); ++r) {
    parts.ranks.push_back({.name = fmt::format("rank {}", r),
                           .ops = make_ops(backend),
                           .placement = parts.setup.placement,
                           .num_pages = parts.setup.scheduler.num_pages,
                           .limits = parts.setup.limits});
    ops.push_back(parts.ranks.back().ops.get());
    devices.push_back(&ops.back()->device());
  }
  auto comms = make_rank_communicators(Collectives::kLocal, devices, flags.parallelism, true, group);
  const auto weights = load_ranks(parts.config, checkpoint, ops, flags.parallelism, parts.setup.placement);
  for (size_t r = 0; r < parts.ranks.size(); ++r) {
    parts.ranks[r].weights = weights[r];
    parts.ranks[r].comm = std::move(comms[r].experts);
    parts.ranks[r].tp = std::move(comms[r].tp);
  }
  return parts;
}

inline std::unique_ptr<Engine> tampered_engine(const EngineConfig& flags, TamperedOps::Tamper tamper,
                                               const LocalGroupOptions& group = {}) {
  EngineParts parts = engine_parts(flags, group);
  auto& ops = parts.ranks.back().ops;
  ops = std::make_unique<TamperedOps>(std::move(ops), std::move(tamper));
  return start_engine(parts.info(), parts.setup.scheduler, start_rank_workers(parts.config, std::move(parts.ranks)));
}

}  // namespace moectl::test
